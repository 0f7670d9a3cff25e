"""The tables of the page as text, with what they are sorted by."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedras_jax import network, pareto
from fedras_jax.page.collect import METRICS

# Margins to each side of 0 that the bar of an interval has room for.
_SCALE = 2.5
# P-values below are not told apart: what they are made of is an approximation.
_TINY = 1e-6
COLUMNS = (
    # (key, heading, format, words)
    ("arm", "arm", "{}", "fields in which arms differ"),
    ("seeds", "seeds", "{}", "runs that the means are over"),
    ("ndcg@10", "NDCG@10", "{:.4f}", "mean over clients and seeds"),
    ("ndcg@10 interval", "95 % interval", "", "of the difference to the baseline"),
    ("hr@10", "HR@10", "{:.4f}", "mean over clients and seeds"),
    ("hr@10 interval", "95 % interval", "", "of the difference to the baseline"),
    ("verdict", "no loss", "{}", "see below"),
    ("ndcg@10_holm", "p NDCG", "{:.2g}", "that NDCG@10 is the baseline's, adjusted (Holm)"),
    ("hr@10_holm", "p HR", "{:.2g}", "that HR@10 is the baseline's, adjusted (Holm)"),
    ("up_bytes", "up B", "{:,.0f}", "bytes up a client and round, headers included"),
    ("down_bytes", "down B", "{:,.0f}", "bytes down a client and round"),
    ("up_reduction", "saved up", "{:.2%}", "of the whole table in float32"),
    ("total_reduction", "saved both", "{:.2%}", "of the whole table in float32, up and down"),
    ("hours", "hours to target", "{:.3f}", "simulated"),
    ("sooner", "times sooner", "{:.2f}", "than the baseline"),
    ("front", "front", "{}", "of NDCG@10 against bytes: up, both"),
    ("clients_per_s", "clients/s", "{:,.0f}", "of training, without compilation and evaluation"),
)


def edge(margin: float) -> float:
    """Where the margin lies on the scale of a bar, in percent."""
    return 50 - 50 / _SCALE if margin else 50.0


def columns(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Those that some row fills: (key, heading, words)."""
    return [(key, heading, words) for key, heading, _, words in COLUMNS if _filled(rows, key)]


def _filled(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    if key.endswith(" interval"):
        key = key.replace(" interval", "_low")
    return key == "front" or any(row.get(key) is not None for row in rows)


def rows_of(
    rows: Sequence[Mapping[str, Any]], base: str | None, margin: float, numbers: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Rows of the table by bytes up, each with its cells."""
    found = []
    for row in sorted(rows, key=lambda row: row["up_bytes"]):
        cells = [
            _interval(row, key.partition(" ")[0], margin)
            if key.endswith(" interval")
            else _cell(row, key, pattern)
            for key, _, pattern, _ in COLUMNS
            if key != "arm" and _filled(rows, key)
        ]
        found.append(
            {"number": numbers[row["arm"]], "name": row["arm"], "cells": cells}
            | {"base": row["arm"] == base}
        )
    return found


def _cell(row: Mapping[str, Any], key: str, pattern: str) -> dict[str, Any]:
    if key == "front":
        on = [w for w in ("up", "total") if row[f"front {w}_bytes {METRICS[0]}"]]
        words = ", ".join("both" if w == "total" else w for w in on)
        return {"text": words, "sort": -len(on)}
    value = row.get(key)
    if key.endswith("_holm") and value is not None and value < _TINY:
        return {"text": f"<{_TINY:g}", "sort": f"{value:.6g}"}
    if key == "seeds" and row.get("paired", value) != value:
        return {"text": f"{value} ({row['paired']} paired)", "sort": value}
    text = "" if value is None else pattern.format(value)
    return {"text": text, "sort": f"{value:.6g}" if isinstance(value, int | float) else text}


def _interval(row: Mapping[str, Any], metric: str, margin: float) -> dict[str, Any]:
    """Numbers and where a bar of them lies, in percent of a scale of some margins to each side."""
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    if low is None or high is None:
        return {"text": "", "sort": ""}
    centre = row.get(f"{metric}_difference")
    if centre is None:
        return {"text": f"{low:.4f} to {high:.4f}", "sort": row[metric]}
    scale = _SCALE * (margin or pareto.MARGIN)
    places = np.clip([50 + 50 * v / scale for v in (low, centre, high)], 0, 100)
    return {
        "text": f"{centre:+.4f}",
        "sort": f"{centre:.6g}",
        "title": f"{low:+.4f} to {high:+.4f}; one-sided: above {row[f'{metric}_lower']:+.4f}",
        "range": f"{low:+.4f} to {high:+.4f}",
        "bar": [round(float(p), 1) for p in places],
        "good": row[f"{metric}_lower"] > -margin,
    }


def clock(rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """Arms in whose rounds time passes, the slowest first."""
    timed = [row for row in rows if row.get("round_s")]
    return [
        {
            "number": numbers[row["arm"]],
            "name": row["arm"],
            "seconds": row["round_s"],
            "told": f"{row['round_s']:,.0f}" if row["round_s"] >= 100 else f"{row['round_s']:.3g}",
            "parts": [(p, row[f"{p}_share"]) for p in network.PHASES],
        }
        for row in sorted(timed, key=lambda row: -row["round_s"])
    ]
