"""Runs side by side: a table to read, a CSV to keep, a plot to look at."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedras_jax.errors import SpecError
from fedras_jax.spec import Spec

COLUMNS = (
    # (key, heading, format)
    ("arm", "arm", "{}"),
    ("hr@10", "HR@10", "{:.4f}"),
    ("ndcg@10", "NDCG@10", "{:.4f}"),
    ("up_bytes", "up B/client", "{:,.0f}"),
    ("down_bytes", "down B/client", "{:,.0f}"),
    ("up_reduction", "saved vs dense", "{:.2%}"),
    ("up_reduction_against_rows", "saved vs rows", "{:.2%}"),
    ("clients_per_s", "clients/s", "{:,.0f}"),
)


def folder_name(arm: str) -> str:
    """An arm's name as a folder's: 'actions:k=16,dtype=float16' -> 'actions-k16-dtypefloat16'."""
    return re.sub(r"[^\w.-]+", "-", arm.replace("=", "")).strip("-")


def comparison(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row an arm, means over its runs (one a seed).

    Args:
      summaries: arm -> `summary.json` of each of its runs.
    """
    rows = []
    for arm, runs in summaries.items():

        def mean(group, name, runs=runs):
            return float(np.mean([run[group][name] for run in runs]))

        payload = {
            name: mean("payload", name)
            for name in ("up_reduction", "up_reduction_against_rows", "down_reduction")
        }
        rows.append(
            {
                "arm": arm,
                "runs": len(runs),
                "hr@10": mean("metrics", "hr@10"),
                "ndcg@10": mean("metrics", "ndcg@10"),
                "up_bytes": mean("payload", "up_bytes_mean"),
                "down_bytes": mean("payload", "down_bytes_mean"),
                **payload,
                "clients_per_s": mean("speed", "clients_per_s"),
            }
        )
    return rows


def heading(base: Spec, summary: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """What the table below it is about, and how to read its columns."""
    clients = summary["clients"]["total"]
    ranked = ranked_among(base.candidates, summary["clients"])
    return (
        f"{base.dataset}: {clients} clients, {base.rounds} rounds of "
        f"{base.cohort_size or clients}, D={base.dim}, seed {', '.join(map(str, seeds))}; the "
        f"held-out item is ranked among {ranked}.\n"
        "Bytes are per client and round, headers included; uplink saved against the "
        "whole float32 table and\nagainst the touched rows in float32 (negative: larger). "
        "clients/s is of training alone.\n"
    )


def ranked_among(candidates: int, clients: Mapping[str, Any]) -> str:
    """What held-out items are ranked among, as in '99 sampled items'.

    Args:
      candidates: the Spec's.
      clients: of the summary; how many there really are is missing from those of earlier versions.
    """
    if not candidates:
        return "all unseen items"
    mean, least = (clients.get(f"candidates_{which}") for which in ("mean", "least"))
    if mean in (None, least):
        return f"{candidates if mean is None else least:,} sampled items"
    return f"{mean:.1f} sampled items on average, {least} at least"


def render(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, str]] = COLUMNS
) -> str:
    """The rows as an aligned text table.

    Args:
      rows: one dict a line; None is an empty cell.
      columns: (key, heading, format) of each column.
    """
    cells = [[head for _, head, _ in columns]]
    cells += [
        ["" if row[key] is None else form.format(row[key]) for key, _, form in columns]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_comparison(workdir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`comparison.csv`: the table at full precision."""
    write_csv(workdir / "comparison.csv", rows)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table at full precision, its columns those of the first row; None is an empty cell."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plot(path: Path, base: Spec, rounds: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Quality against rounds, what a client has sent, and time if any passes; one line an arm.

    Args:
      path: PNG to write.
      base: what the arms have in common, for the title.
      rounds: arm -> rows of `rounds.parquet` of one run.

    Raises:
      SpecError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise SpecError("the plot needs matplotlib: pip install 'fedras_jax[plot]'") from e
    timed = any(run[-1]["clock_s"] > 0 for run in rounds.values())
    figure = Figure(figsize=(11 + 5 * timed, 4.4), layout="constrained")
    panels = figure.subplots(1, 2 + timed, sharey=True)
    curves, cost = panels[:2]
    for i, (arm, rows) in enumerate(rounds.items()):
        sent = np.cumsum([row["up_bytes"] / max(row["clients"], 1) for row in rows])
        at = [i for i, row in enumerate(rows) if "ndcg@10" in row]
        quality = [rows[i]["ndcg@10"] for i in at]
        # Curves that coincide stay visible: later ones are thinner and marked differently.
        style = {"label": arm, "marker": "osD^v"[i % 5], "ms": 5, "lw": 2.4 - 0.5 * min(i, 3)}
        curves.plot([rows[i]["round"] for i in at], quality, **style)
        cost.plot(sent[at] / 1024, quality, **style)
        if timed:
            panels[2].plot([rows[i]["clock_s"] / 3600 for i in at], quality, **style)
    curves.set(xlabel="round", ylabel="NDCG@10", title="Quality by round")
    cost.set(
        xlabel="KiB sent by a client that takes part in every round (log scale)",
        xscale="log",
        title="Quality by uplink",
    )
    if timed:
        panels[2].set(xlabel="simulated hours (log scale)", xscale="log", title="Quality by time")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    curves.legend(frameon=False)
    figure.suptitle(f"{base.dataset}, {base.model.upper()}, D={base.dim}")
    figure.savefig(path, dpi=150)
