"""The picture of quality against bytes: two metrics by two costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedras_jax import pareto
from fedras_jax.errors import SpecError

METRICS = (("ndcg@10", "NDCG@10"), ("hr@10", "HR@10"))
COSTS = (("up_bytes", "bytes up"), ("total_bytes", "bytes up and down"))
# Arms that keep less than this part of the baseline's quality are counted, not drawn: on a scale
# that shows them, the others could not be told apart.
DRAWN = 0.8
MARKERS = "osD^vP*Xph<>"


def plot(
    path: Path, rows: Sequence[Mapping[str, Any]], baseline: str, *, title: str, margin: float
) -> None:
    """Quality against bytes a client and round, one line a series.

    Args:
      path: PNG to write.
      rows: from `pareto.table`.
      baseline: the arm that is a horizontal line, with the margin below it shaded.
      title: of the whole.
      margin: what counts as a loss.

    Raises:
      SpecError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as e:
        raise SpecError("the plot needs matplotlib: pip install 'fedras_jax[plot]'") from e
    base = next(row for row in rows if row["arm"] == baseline)
    series = list(dict.fromkeys(row["series"] for row in rows if row is not base))
    # The strong half of the 20 colours first.
    colours = [matplotlib.colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]
    styles = {
        name: {"color": colours[i % len(colours)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(sorted(series))
    }
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    panels = figure.subplots(len(METRICS), len(COSTS), sharex="col", sharey="row", squeeze=False)
    for line, (metric, quality) in zip(panels, METRICS, strict=True):
        for axes, (cost, label) in zip(line, COSTS, strict=True):
            _panel(axes, rows, base, styles, metric, cost, margin)
            axes.set_xlabel(f"{label} (client and round, log scale)")
        line[0].set_ylabel(quality)
    for axes in panels.flat:
        axes.label_outer()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _panel(axes, rows, base, styles, metric, cost, margin) -> None:
    """One metric by one cost."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low = DRAWN * base[metric]
    shown = [row for row in rows if row[metric] >= low]
    for name, style in sorted(styles.items()):
        of = sorted((row for row in rows if row["series"] == name), key=lambda row: row[cost])
        of = [row for row in of if row is not base]
        own = name.partition(",")[0] in pareto.FORMS
        width, above = (2.4, 3) if own else (1.2, 2)
        points = _points(of, cost, metric)
        axes.plot(*points, label=name, ms=6, lw=width, zorder=above, alpha=0.9, **style)
    axes.axhline(base[metric], color="0.35", ls="--", lw=1.2, label=f"{base['arm']} (baseline)")
    axes.plot(base[cost], base[metric], color="0.35", marker="s", ms=7, ls="")
    axes.axhspan(
        base[metric] - margin,
        base[metric],
        color="0.35",
        alpha=0.1,
        lw=0,
        label="within the margin",
    )
    on = pareto.front(*(np.array(values, float) for values in _points(rows, cost, metric)))
    best = sorted(
        (row for row, member in zip(rows, on.tolist(), strict=True) if member),
        key=lambda row: row[cost],
    )
    x, y = _points(best, cost, metric)
    axes.plot(x, y, color="black", lw=3.5, alpha=0.25, zorder=0, drawstyle="steps-post")
    axes.plot(
        x, y, ls="", marker="o", ms=13, mfc="none", mec="black", mew=1.1, label="Pareto front"
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=_ticks(rows, cost)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    top = max(row[metric] for row in rows)
    bottom = min(row[metric] for row in shown)
    pad = 0.06 * max(top - bottom, margin)
    axes.set_ylim(min(bottom, base[metric] - margin) - pad, top + pad)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(shown) < len(rows):
        text = f"arms below: {len(rows) - len(shown)}"
        axes.text(0.98, 0.02, text, transform=axes.transAxes, ha="right", color="0.35")


def _points(rows, cost, metric) -> tuple[list[float], list[float]]:
    return [row[cost] for row in rows], [row[metric] for row in rows]


def _ticks(rows, cost) -> tuple[float, ...]:
    """Digits that get a tick: more of them where the scale is short."""
    span = max(row[cost] for row in rows) / max(min(row[cost] for row in rows), 1)
    if span > 100:
        return (1.0, 3.0)
    return (1.0, 2.0, 5.0) if span > 5 else tuple(np.arange(1, 10, 1.0))


def human(size: float) -> str:
    """Bytes as '800 B', '3 kB', '1.2 MB'."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.3g} B"
