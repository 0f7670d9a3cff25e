"""Quality against bytes: a grid of codecs and budgets, with intervals.

    python -m experiments.pareto --flagfile=experiments/configs/pareto.flags \
        --data_dir=DATA_DIR --workdir=results/pareto

An arm is CODEC or CODEC:NAME=VALUE,NAME=VALUE, where spec.FIELD=VALUE sets a field of the
experiment; without any, `--grid` names them (`experiments/grids.py`). The arm `dense` is the
baseline, and is run in any case. Runs that `--workdir` already holds are loaded, so a grid that
was stopped goes on where it was; runs that were killed begin anew. Writes pareto.csv, rivals.csv,
pareto.png, wall_time.csv and a folder a run.

`--tune` chooses a step size for every arm but those that set spec.client_lr: so arms of
`--grid=published` stay as they were published, and their rivals beside them are at their best.
"""

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app
from absl import flags as absl_flags

from experiments import arms, flags, grids
from experiments.executor import Executor, all_of
from fedras_jax import pareto, pareto_plot, report
from fedras_jax.errors import DivergedError, SpecError
from fedras_jax.spec import Spec

absl_flags.adopt_module_key_flags(flags)  # so that --help shows them
absl_flags.adopt_module_key_flags(arms)

GRID = absl_flags.DEFINE_enum("grid", "core", sorted(grids.GRIDS), "Arms, if none are named.")
MARGIN = absl_flags.DEFINE_float("margin", pareto.MARGIN, "What counts as a loss, in both metrics.")
TUNE = absl_flags.DEFINE_bool(
    "tune",
    False,
    "Choose client_lr among --lrs, by NDCG@10 of the validation item, for each arm that sets none.",
)
LRS = absl_flags.DEFINE_list("lrs", ["0.25", "0.5", "1.0"], "Local step sizes for --tune.")

BASELINE = "dense"
WALL_TIME = "wall_time.csv"


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.no_arguments(argv)
        arms.refuse()
        flags.refuse(["checkpoint_every"], "what is done is kept a run at a time")
        flags.refuse(["log_clients"], "no table here looks at single clients")
        if arms.ARM.value:
            flags.refuse(["grid"], "--arm names the arms")
        if not TUNE.value:
            flags.refuse(["lrs"], "they are for --tune")
        base = flags.spec_from_flags()
        names = arms.ARM.value or grids.GRIDS[GRID.value]
        specs = {arm: arms.parse(base, arm) for arm in dict.fromkeys([BASELINE, *names])}
        seeds = arms.seeds(base.seed)
        rates = _rates()
        if not MARGIN.value >= 0:
            raise SpecError(f"--margin must not be negative, not {MARGIN.value}")
        if flags.WORKDIR.value is None:
            raise SpecError("--workdir is needed: a grid is too long to be lost")
        workdir = Path(flags.WORKDIR.value)
        execute = Executor()
        finished, diverged = _run_all(specs, seeds, rates, workdir, execute)
        rows = pareto.table(finished, BASELINE, margin=MARGIN.value)
        against = pareto.rivals(finished)
        _write(workdir, base, rows, against)
    print()
    print(report.heading(base, finished[0].summaries[0], seeds).split("\n")[0])
    print(
        f"Bytes are per client and round, headers included. No loss: one-sided 95 % bounds (above) "
        f"of both\ndifferences are above -{MARGIN.value:g}, over clients and seeds. Front: by "
        "NDCG@10.\n"
    )
    print(report.render(rows, pareto.COLUMNS))
    if against:
        print(
            "\nEach rival against the largest arm of each form that takes no more bytes. P-values "
            "are paired by\nclient and seed, and adjusted over all rows of this table together.\n"
        )
        print(report.render(against, pareto.RIVAL_COLUMNS))
    for arm in diverged:
        print(f"\n{arm} diverged, and is left out")
    print(f"\nresults: {workdir}/pareto.csv, rivals.csv, pareto.png and a folder a run")
    print(_wall_time(workdir))


def _rates() -> list[float]:
    """Step sizes to choose from, none without `--tune`.

    Raises:
      SpecError: no numbers.
    """
    try:
        return [float(text) for text in LRS.value] if TUNE.value else []
    except ValueError as e:
        raise SpecError(f"--lrs={','.join(LRS.value)}: expected numbers, as in 0.25,0.5") from e


def _run_all(
    specs: dict[str, Spec], seeds: list[int], rates: list[float], workdir: Path, execute: Executor
) -> tuple[list[pareto.Arm], list[str]]:
    """All arms in order; those that diverge are only named.

    Raises:
      DivergedError: the baseline does.
    """
    finished: list[pareto.Arm] = []
    diverged: list[str] = []
    started, busy = time.monotonic(), 0
    for i, (name, spec) in enumerate(specs.items(), 1):
        before, began = execute.ran, time.monotonic()
        folder = report.folder_name(name)
        fields = arms.fields_of(name)
        try:
            if rates and "client_lr" not in fields:
                lr = _best_rate(
                    spec.replace(seed=seeds[0]), rates, workdir / "tune" / folder, execute
                )
                spec = spec.replace(client_lr=lr)
            places = {workdir / folder / f"seed{s}": spec.replace(seed=s) for s in seeds}
            runs = all_of(execute(places))
        except DivergedError as e:
            if name == BASELINE:
                raise
            diverged.append(name)
            told = str(e)
        else:
            series = ", ".join([spec.codec, *fields])
            summaries, ranks = zip(*runs, strict=True)
            finished.append(pareto.Arm(name, spec.codec, series, summaries, np.stack(ranks)))
            mean = report.comparison({name: summaries})[0]
            told = f"NDCG@10 {mean['ndcg@10']:.4f}, {mean['up_bytes']:,.0f} B up"
        if execute.ran > before:
            _add_time(workdir, name, execute.ran - before, time.monotonic() - began)
        if flags.PROGRESS.value:
            # A guess from above: arms to come may be there already, and then take no time.
            busy += execute.ran > before
            left = (time.monotonic() - started) / max(busy, 1) * (len(specs) - i) / 60
            print(f"[{i}/{len(specs)}] {name}: {told}; {left:.0f} min left", flush=True)
    return finished, diverged


def _best_rate(spec: Spec, rates: list[float], folder: Path, execute: Executor) -> float:
    """The step size with the best NDCG@10 of the validation item.

    Raises:
      DivergedError: with all of them training diverges.
    """
    tried = {folder / f"lr{lr:g}": spec.replace(client_lr=lr, evaluate_on="valid") for lr in rates}
    found = {
        tried[place].client_lr: one[0]["metrics"]["ndcg@10"]
        for place, one in execute(tried).items()
        if not isinstance(one, DivergedError)
    }
    if not found:
        raise DivergedError(f"training diverges with each of {rates}")
    return max(found, key=lambda lr: found[lr])


def _add_time(workdir: Path, name: str, runs: int, seconds: float) -> None:
    """A line more, so that the whole of a grid that was stopped is known in the end."""
    path = workdir / WALL_TIME
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("arm", "runs", "seconds")] * fresh + [(name, runs, f"{seconds:.1f}")])


def _wall_time(workdir: Path) -> str:
    """'129 runs in 97.0 minutes', with those of earlier calls; runs that were loaded take none."""
    path = workdir / WALL_TIME
    rows = []
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    runs, seconds = (
        sum(int(row["runs"]) for row in rows),
        sum(float(row["seconds"]) for row in rows),
    )
    return f"{runs} run{'s' * (runs != 1)} in {seconds / 60:.1f} minutes: {path}"


def _write(
    workdir: Path, base: Spec, rows: list[dict[str, Any]], against: list[dict[str, Any]]
) -> None:
    report.write_csv(workdir / "pareto.csv", rows)
    if against:
        report.write_csv(workdir / "rivals.csv", against)
    seeds = rows[0]["seeds"]
    pareto_plot.plot(
        workdir / "pareto.png",
        rows,
        BASELINE,
        title=f"{base.dataset}, {base.model.upper()}, D={base.dim}, {base.rounds} rounds, "
        f"means of {seeds} seed{'s' * (seeds != 1)}",
        margin=MARGIN.value,
    )


if __name__ == "__main__":
    app.run(main)
