"""The page: everything about a study in one HTML file that needs no network."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedras_jax import network, pareto, report, timing
from fedras_jax.errors import ResultsError, SpecError
from fedras_jax.page import cells, clients, commands, compare, curves, figures
from fedras_jax.page.collect import METRICS, Arm, Group, Study, told
from fedras_jax.results.write import whole

# Arms that are drawn at first; the page has all of them.
DRAWN = 10
_SHOWN = 8


def write(path: str | Path, study: Study, *, margin: float = pareto.MARGIN) -> Path:
    """Write the page about a study.

    Args:
      path: HTML file to write, whole or not at all.
      study: from `collect`.
      margin: what counts as a loss.

    Raises:
      SpecError: plotly or jinja2 is not installed.
      ResultsError: it cannot be written.
    """
    path = Path(path)
    text = render(study, margin=margin)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResultsError(f"{path} cannot be written: {e}") from e
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def libraries() -> tuple[Any, str]:
    """The module jinja2, and plotly.js as text.

    Raises:
      SpecError: they are not installed.
    """
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError as e:
        missing = "the report needs plotly and jinja2: pip install 'fedras_jax[report]'"
        raise SpecError(missing) from e
    return jinja2, get_plotlyjs()


def render(study: Study, *, margin: float = pareto.MARGIN) -> str:
    """The page as text; arguments and errors as `write`."""
    jinja2, plotly = libraries()
    n_boot = compare.draws(study.groups)
    n_arms = sum(len(group.arms) for group in study.groups)
    groups = [_group(i, g, margin, n_boot, n_arms) for i, g in enumerate(study.groups)]
    status = [row["status"] for row in study.rows]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedras_jax.page", "."),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("template.html.j2").render(
        plotly=plotly,
        groups=groups,
        data=_embedded({group["id"]: group.pop("data") for group in groups}),
        counts={s: status.count(s) for s in ("finished", "diverged", "unfinished")},
        n_arms=n_arms,
        open_runs=[_open(row, study) for row in study.rows if row["status"] != "finished"],
        repeated=study.repeated,
        environments=_environments(study.rows),
        margin=margin,
        n_boot=n_boot,
        claim=pareto.SEEDS_OF_A_CLAIM,
        target=timing.TARGET,
    )


def _embedded(content: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _group(number: int, group: Group, margin: float, n_boot: int, n_arms: int) -> dict[str, Any]:
    rows = compare.table(group, margin=margin, n_boot=n_boot)
    base = None if group.baseline is None else group.baseline.name
    chosen = _chosen(group, rows)
    order = sorted(range(len(group.arms)), key=lambda i: (i not in chosen, i))
    colours = {i: place for place, i in enumerate(i for i in order if group.arms[i].name != base)}
    styles = [figures.style(colours.get(i, -1)) for i in range(len(group.arms))]
    names = [arm.name for arm in group.arms]
    drawn = _figures(group, rows, names, styles, margin, curves.points(n_arms))
    ident = f"g{number}"
    swept = commands.sweep_file([[run.spec for run in arm.runs] for arm in group.arms])
    return {
        "id": ident,
        "title": group.title,
        "base": base,
        "sentence": _sentence(group),
        "common": [(name, told(value)) for name, value in group.common.items()],
        "varying": [
            (name, ", ".join(map(told, values[:40])) + (", ..." if len(values) > 40 else ""))
            for name, values in group.varying.items()
        ],
        "arms": [
            {"name": arm.name, "state": _state(arm), "commands": _commands(arm)}
            for arm in group.arms
        ],
        "sweep": None if swept is None else commands.told(swept),
        "columns": cells.columns(rows),
        "rows": cells.rows_of(rows, base, margin, {name: i for i, name in enumerate(names)}),
        "clock": cells.clock(rows, {name: i for i, name in enumerate(names)}),
        "phases": network.PHASES,
        "edge": cells.edge(margin),
        "notes": [f"{row['arm']}: {row['note']}" for row in rows if row["note"]],
        "framed_out": figures.framed_out(rows, base),
        "tiers": drawn.pop("tiers"),
        "logged": drawn.pop("logged"),
        "figures": {name: figure["controls"] for name, figure in drawn.items()},
        "data": {
            "arms": [
                {"name": name, "label": figures.wrapped(name), "chosen": i in chosen, **styles[i]}
                for i, name in enumerate(names)
            ],
            "figures": drawn,
        },
    }


def _figures(
    group: Group,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    styles: Sequence[dict[str, str]],
    margin: float,
    points: int,
) -> dict[str, Any]:
    """The figures of a group by their names, and what they say about tiers."""
    found: dict[str, Any] = {}
    base = None if group.baseline is None else group.baseline.name
    lines = {i: line for i, a in enumerate(group.arms) if (line := curves.curve(a, points))}
    if lines:
        found["curves"] = figures.curves(lines, styles)
    done = {i: arm for i, arm in enumerate(group.arms) if arm.finished}
    found |= {"tiers": [], "logged": 0}
    if not done:
        return found
    numbers = {name: i for i, name in enumerate(names)}
    found["front"] = figures.front(rows, base, numbers, styles, margin)
    cuts = clients.cuts(group, points // 2)
    shares = {i: clients.reach(arm, cuts, arm.seeds) for i, arm in done.items()}
    gains = {}
    if group.baseline is not None:
        of_arms = ((i, clients.gain(arm, group.baseline, cuts)) for i, arm in done.items())
        gains = {i: gain for i, gain in of_arms if gain is not None}
    found["reach"] = figures.reach(shares, gains, cuts, styles)
    tier = clients.tiers(group)
    logged = [i for i, arm in done.items() if any(run.logged for run in arm.runs)]
    if logged or tier is not None:
        n_files = max(clients.FILES // max(len(logged), 1), 1)
        read = set(logged[: clients.FILES])
        of = {
            i: clients.by_tier(arm, tier, n_files if i in read else 0)
            for i, arm in done.items()
            if i in read or not logged
        }
        found["boxes"] = figures.tiers(of, names)
        first = next(iter(of.values()))
        found |= {"tiers": [(r["tier"], r["clients"]) for r in first], "logged": len(read)}
    return found


def _chosen(group: Group, rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Numbers of the arms that are drawn at first."""
    if len(group.arms) <= DRAWN:
        return set(range(len(group.arms)))
    wanted = {row["arm"] for row in rows if group.baseline and row["arm"] == group.baseline.name}
    ahead = [row for row in rows if row[f"front up_bytes {METRICS[0]}"]]
    ahead += [row for row in rows if row[f"front total_bytes {METRICS[0]}"]]
    ahead += sorted(rows, key=lambda row: -row[METRICS[0]])
    for row in ahead:
        if len(wanted) < _SHOWN:
            wanted.add(row["arm"])
    found = {i for i, arm in enumerate(group.arms) if arm.name in wanted}
    return found or set(range(_SHOWN))


def _sentence(group: Group) -> str:
    common = group.common

    def word(name: str, text: str) -> str | None:
        return text.format(told(common[name])) if name in common else None

    cohort = common.get("cohort_size")
    parts = [
        word("model", "model {}"),
        word("dim", "D={}"),
        word("rounds", "{} rounds"),
        None if cohort is None else f"{cohort or 'all'} clients a round",
        word("codec", "codec {}"),
        word("profile", "profile {}"),
        _ranked(group),
    ]
    sizes = {r.ranks.size for arm in group.arms for r in arm.runs if r.ranks is not None}
    parts.insert(0, " or ".join(f"{n:,} clients" for n in sorted(sizes)) or None)
    return ", ".join(part for part in parts if part) + "."


def _ranked(group: Group) -> str | None:
    candidates = group.common.get("candidates")
    if candidates is None:
        return None
    names = ("candidates_mean", "candidates_least")  # the same in all runs on the same data
    rows = [run.row for arm in group.arms for run in arm.runs]
    numbers = [{name: row.get(f"clients.{name}") for name in names} for row in rows]
    known = next((each for each in numbers if None not in each.values()), {})
    return f"held-out item ranked among {report.ranked_among(candidates, known)}"


def _state(arm: Arm) -> str | None:
    """Why an arm is in no table; None for one that is."""
    if arm.finished:
        return None
    diverged = any(run.row["status"] == "diverged" for run in arm.runs)
    return "diverged" if diverged else "not finished"


def _commands(arm: Arm) -> dict[str, Any]:
    return {
        "line": commands.command(arm.runs[0].spec, seeds=arm.seeds),
        "folders": [run.row["folder"] for run in arm.runs],
    }


def _open(row: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """A run that has not finished, and how far it came."""
    return {
        "folder": row["folder"],
        "status": row["status"],
        "round": row.get("diverged.round", study.reached.get(row["folder"])),
        "rounds": row["rounds"],
        "message": row.get("diverged.message", ""),
    }


def _environments(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What runs ran on: (name, values)."""
    values: dict[str, dict[str, int]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("env.") and value is not None:
                of = values.setdefault(name.removeprefix("env."), {})
                of[str(value)] = of.get(str(value), 0) + 1
    return [
        (name, ", ".join(v if len(of) == 1 else f"{v} ({n} runs)" for v, n in of.items()))
        for name, of in values.items()
    ]
