"""Pictures of arms in time: learning curves and what the clock goes to; tiers of clients."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedras_jax import network, timing
from fedras_jax.errors import SpecError

# Inches for an arm where each has a line of its own.
_LINE = 0.24
# Histograms side by side, and in all.
_ABREAST, _HISTOGRAMS = 4, 12
_PHASE_COLOURS = {
    "latency": "#999999",
    "download": "#4477aa",
    "train": "#ccbb44",
    "encode": "#ee8866",
    "upload": "#aa3377",
}
_TIER_COLOURS = ("#cc3311", "#ee9900", "#33aa77", "#0077bb", "#66227a", "#777777")


def plot(
    path: Path,
    arms: Sequence[timing.Timed],
    rows: Sequence[Mapping[str, Any]],
    *,
    goal: float,
    title: str,
) -> None:
    """Three panels: quality by hours and by rounds, and what every arm's clock goes to.

    Args:
      path: PNG to write.
      arms: of one scenario.
      rows: from `timing.table`.
      goal: quality that is drawn as a line.
      title: of the whole.

    Raises:
      SpecError: matplotlib is not installed.
    """
    figure = _figure(13, 5.5 + _LINE * len(arms) * 1.6)
    above, below = figure.subfigures(2, 1, height_ratios=[5, _LINE * (len(arms) + 4)])
    hours, by_round = above.subplots(1, 2)
    for i, arm in enumerate(arms):
        style = {"color": _colour(i), "ls": _dashes(i), "lw": 1.6, "label": shortened(arm.name)}
        curves = [timing.curve(r) for r in arm.rounds]
        goods = np.mean([q for _, q in curves], axis=0)
        hours.plot(np.mean([s for s, _ in curves], axis=0) / 3600, goods, **style)
        evaluated = ~np.isnan(arm.rounds[0][timing.METRIC])
        by_round.plot(arm.rounds[0]["round"][evaluated], goods, **style)
    for axes in (hours, by_round):
        axes.axhline(goal, color="0.5", lw=0.8, ls="--")
        axes.set_ylabel("NDCG@10 (smoothed, mean of seeds)")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    hours.set(xscale="log", xlabel="simulated hours (log scale)", title="Quality by time")
    by_round.set(xlabel="round", title="Quality by round")
    above.legend(*hours.get_legend_handles_labels(), **_beneath(arms, 2))

    shares = below.subplots()
    left = np.zeros(len(rows))
    for phase in network.PHASES:
        part = np.array([row[f"{phase}_share"] for row in rows])
        colour = _PHASE_COLOURS[phase]
        shares.barh(range(len(rows)), part, left=left, color=colour, height=0.75, label=phase)
        left += part
    for i, row in enumerate(rows):
        shares.annotate(
            f"{row['round_s']:,.3g} s", (1, i), (4, 0), textcoords="offset points", va="center"
        )
    _lines(shares, [row["arm"] for row in rows])
    shares.set(
        xlim=(0, 1),
        title="What the client does that the server waits for, and how long a round is",
        xlabel="share of the clock",
    )
    below.legend(
        *shares.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def plot_tiers(
    path: Path,
    arms: Sequence[timing.Timed],
    by_tier: Sequence[Mapping[str, Any]],
    tier: np.ndarray,
    *,
    title: str,
) -> None:
    """By tier: how often each K was sent, mean K, part taken, and quality.

    Histograms are of arms of which clients send different K in the same round, those of them that
    vary it most.

    Args:
      path: PNG to write.
      arms: of one scenario.
      by_tier: from `timing.tiers`.
      tier: int [U].
      title: of the whole.

    Raises:
      SpecError: matplotlib is not installed.
    """
    varied = [_varied(arm) for arm in arms]
    chosen = sorted(np.argsort(varied)[::-1][:_HISTOGRAMS])
    shown = [arms[i] for i in chosen if varied[i] > 0]
    abreast = min(len(shown), _ABREAST)
    deep = -(-len(shown) // _ABREAST)
    high, low = 2.5 * deep, 1.6 + _LINE * max(len(arms), 6)
    figure = _figure(14, high + low + 0.6)
    if shown:
        above, below = figure.subfigures(2, 1, height_ratios=[high, low])
        for i, arm in enumerate(shown):
            _histogram(above.add_subplot(deep, abreast, i + 1), arm, tier)
    else:
        below = figure
    panels = below.subplots(1, 3, sharey=True)
    handles = _dots(panels, [arm.name for arm in arms], by_tier)
    below.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _dots(panels: Any, names: Sequence[str], by_tier: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A line an arm, a dot a tier: K, part taken, quality; returns what the legend shows."""
    actions, part, quality = panels
    handles = []
    kinds = sorted({row["tier"] for row in by_tier})
    clients = {row["tier"]: row["clients"] for row in by_tier}
    for place, t in enumerate(kinds):
        of_tier = {row["arm"]: row for row in by_tier if row["tier"] == t}
        rows = [of_tier[name] for name in names]
        share = clients[t] / sum(clients.values())
        # Tiers a little above and below the line, so that all are seen where they are equal.
        at = np.arange(len(names)) + 0.5 * (place + 0.5) / len(kinds) - 0.25
        colour = _tier_colour(t)
        label = f"tier {t}, {share:.0%} of clients"
        dot = {"color": colour, "s": 20, "label": label}
        handles.append(actions.scatter([row["n_actions"] for row in rows], at, **dot))
        quality.scatter([row["difference"] for row in rows], at, **dot)
        ring = {"facecolors": "none", "edgecolors": colour, "s": 36, "lw": 0.9}
        part.scatter([row["drawn"] / share for row in rows], at, **ring)
        part.scatter([row["counted"] / share for row in rows], at, color=colour, s=9)
    for axes in panels:
        _lines(axes, names)
        axes.grid(axis="x", alpha=0.3)
    part.axvline(1, color="0.5", lw=0.8, ls="--")
    quality.axvline(0, color="0.5", lw=0.8, ls="--")
    # From nothing, so that sampling's noise looks like what it is.
    part.set_xlim(0, max(1.25, 1.05 * part.get_xlim()[1]))
    actions.set(xlabel="mean K", title="Actions")
    part.set(
        xlabel="share of cohorts over share of clients",
        title="Drawn (rings) and counted (dots)",
    )
    quality.set(xlabel="HR@10, difference to dense", title="Quality")
    quality.locator_params(axis="x", nbins=4)
    return handles


def shortened(arm: str) -> str:
    """An arm's name without the words that all have in common."""
    return arm.replace("spec.", "").replace("_args", "")


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise SpecError("the plot needs matplotlib: pip install 'fedras_jax[plot]'") from e
    return Figure(figsize=(width, height), layout="constrained")


def _lines(axes: Any, names: Sequence[str]) -> None:
    """A line for each arm, the first on top."""
    axes.set_yticks(range(len(names)), [shortened(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _beneath(arms: Sequence[timing.Timed], columns: int) -> dict[str, Any]:
    """Where a legend of all arms goes."""
    size = 8 if len(arms) > 12 else 9
    return {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": size}


def _colour(i: int) -> Any:
    """Black for the baseline; then the strong half of 20 colours first."""
    import matplotlib

    if i == 0:
        return "black"
    return matplotlib.colormaps["tab20"](2 * (i - 1) % 20 + (2 * (i - 1) // 20) % 2)


def _dashes(i: int) -> str:
    return "-" if i <= 20 else "--"


def _tier_colour(t: int) -> str:
    return _TIER_COLOURS[t % len(_TIER_COLOURS)]


def _varied(arm: timing.Timed) -> float:
    """How much K varies among the clients of a round: mean variance."""
    found = []
    for log in arm.clients:
        of, k = log["round"], log["n_actions"].astype(float)
        n = np.maximum(np.bincount(of), 1)
        mean = np.bincount(of, k) / n
        found.append(np.mean((k - mean[of]) ** 2))
    return float(np.mean(found))


def _histogram(axes: Any, arm: timing.Timed, tier: np.ndarray) -> None:
    """How often clients of each tier sent each K."""
    kinds = np.unique(tier)
    columns = [
        np.concatenate([c["n_actions"][tier[c["client"]] == t] for c in arm.clients]) for t in kinds
    ]
    top = max((int(c.max()) for c in columns if c.size), default=1)
    colours = [_tier_colour(int(t)) for t in kinds]
    axes.hist(columns, bins=np.arange(top + 2) - 0.5, density=True, color=colours)
    axes.set(xlabel="K", ylabel="share of payloads")
    axes.set_title(_wrapped(shortened(arm.name)), fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name.replace(",", ", "), 48))
