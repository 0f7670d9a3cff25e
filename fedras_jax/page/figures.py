"""Figures for plotly.js, as plain JSON with choices left open.

Where an object has the key '$', its value names the controls that choose among the other keys:
{"$": "x", "rounds": [...], "up": [...]}, or two controls and keys as 'up|ndcg@10'. Strings that
begin with '@' are colours of the page's theme. A trace with 'arm' is drawn while that arm is
chosen, under its name and with the figure's 'hover'; others always. The script of the page does so.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedras_jax import pareto
from fedras_jax.page import clients
from fedras_jax.page.collect import METRICS
from fedras_jax.page.curves import rounded

Figure = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

WORDS = {"ndcg@10": "NDCG@10", "hr@10": "HR@10", "loss": "training loss", "n_actions": "actions K"}
AXES = {
    # key: (in the control, title of the axis, kind)
    "rounds": ("rounds", "round", "linear"),
    "up": ("bytes up", "bytes up, of a client in every round", "log"),
    "total": ("bytes up + down", "bytes up and down, of a client in every round", "log"),
    "hours": ("simulated time", "simulated hours", "log"),
}
COSTS = {
    "up_bytes": ("bytes up", "bytes up (client and round)"),
    "total_bytes": ("bytes up + down", "bytes up and down (client and round)"),
}
COLOURS = 7
TIERS = 6
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "cross")
# What `clients.by_tier` gives of a quantity, as a box has it.
_PARTS = ("mean", "lowerfence", "q1", "median", "q3", "upperfence")
_HOVER = "%{{fullData.name}}<br>{}<extra></extra>"
# Arms that keep less than this part of the baseline's quality start outside the frame: on a scale
# that shows them, the others could not be told apart.
_FRAMED = 0.8


def style(i: int) -> dict[str, str]:
    """Colour, dash and marker of an arm: the same in all figures; of the baseline with -1."""
    if i < 0:
        return {"colour": "@ink", "dash": "solid", "symbol": "star"}
    turn = i // COLOURS
    return {
        "colour": f"@c{i % COLOURS}",
        "dash": _DASHES[turn % len(_DASHES)],
        "symbol": _SYMBOLS[(i + turn) % len(_SYMBOLS)],
    }


def curves(
    lines: Mapping[int, Mapping[str, np.ndarray]], styles: Sequence[dict[str, str]]
) -> Figure:
    """Quality and more by rounds, bytes and time.

    Args:
      lines: of each arm that has some, from `curves.curve`.
      styles: of each arm.
    """
    timed = any(line["hours"].any() for line in lines.values())
    xs = [key for key in AXES if key != "hours" or timed]
    ys = [key for key in WORDS if any(line[key].any() for line in lines.values())]
    formats = dict.fromkeys(xs, "~s") | {"rounds": ",", "hours": "~g"}
    traces = []
    for i, line in lines.items():
        ranged = {
            m: [rounded(line[f"{m} low"], 4), rounded(line[f"{m} high"], 4)]
            for m in METRICS
            if (line[f"{m} low"] < line[f"{m} high"]).any()
        }
        many = line["rounds"].size > 30
        traces.append(
            {
                "arm": i,
                "type": "scatter",
                "mode": "lines" if many else "lines+markers",
                "line": {"color": styles[i]["colour"], "dash": styles[i]["dash"], "width": 2},
                "marker": {"symbol": styles[i]["symbol"], "size": 5},
                "x": {"$": "x", **{key: rounded(line[key], 4) for key in xs}},
                "y": {"$": "y", **{key: rounded(line[key], 4) for key in ys}},
                "text": {
                    "$": "y",
                    **{
                        key: [f"seeds {a} to {b}" for a, b in zip(*ranged[key], strict=True)]
                        if key in ranged
                        else ""
                        for key in ys
                    },
                },
            }
        )
    return {
        "hover": _HOVER.format("%{x:,.5~g}, <b>%{y:.4~f}</b><br>%{text}"),
        "controls": [
            _control("x", "against", {key: AXES[key][0] for key in xs}),
            _control("y", "show", {key: WORDS[key] for key in ys}),
        ],
        "traces": traces,
        "layout": {
            "xaxis": {
                "title": {"text": {"$": "x", **{key: AXES[key][1] for key in xs}}},
                "type": {"$": "x", **{key: AXES[key][2] for key in xs}},
                "tickformat": {"$": "x", **formats},
            },
            "yaxis": {"title": {"text": {"$": "y", **{key: WORDS[key] for key in ys}}}},
        },
    }


def front(
    rows: Rows,
    baseline: str | None,
    numbers: Mapping[str, int],
    styles: Sequence[dict[str, str]],
    margin: float,
) -> Figure:
    """Quality against bytes, with the front, the baseline and what counts as no loss.

    Args:
      rows: from `compare.table`.
      baseline: name of an arm.
      numbers: of an arm's name, where its style is.
      styles: of each arm.
      margin: what counts as a loss.
    """
    every = {
        "type": "scatter",
        "mode": "markers",
        "marker": {"color": "@faint", "size": 7},
        "x": {"$": "x", **{cost: [row[cost] for row in rows] for cost in COSTS}},
        "y": {"$": "y", **{metric: rounded([row[metric] for row in rows]) for metric in METRICS}},
        "text": [wrapped(row["arm"]) for row in rows],
        "hovertemplate": "%{text}<br>%{x:,.0f} B, <b>%{y:.4f}</b><extra></extra>",
    }
    steps: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "line": {"color": "@ink", "width": 5, "shape": "hv"},
        "opacity": 0.2,
        "hoverinfo": "skip",
        "x": {"$": "xy"},
        "y": {"$": "xy"},
    }
    for cost in COSTS:
        for metric in METRICS:
            best = sorted((r for r in rows if r[f"front {cost} {metric}"]), key=lambda r: r[cost])
            steps["x"][f"{cost}|{metric}"] = [row[cost] for row in best]
            steps["y"][f"{cost}|{metric}"] = rounded([row[metric] for row in best])
    traces = [steps, every]
    for row in rows:
        own = styles[numbers[row["arm"]]]
        traces.append(
            {
                "arm": numbers[row["arm"]],
                "type": "scatter",
                "mode": "markers",
                "marker": {"color": own["colour"], "symbol": own["symbol"], "size": 11},
                "x": {"$": "x", **{cost: [row[cost]] for cost in COSTS}},
                "y": {"$": "y", **{metric: rounded([row[metric]]) for metric in METRICS}},
                "error_y": {"$": "y", **{metric: _bar(row, metric) for metric in METRICS}}
                if baseline is None or row["arm"] != baseline
                else {"visible": False},
                "text": {"$": "y", **{m: [_words(row, m)] for m in METRICS}},
            }
        )
    base = next((row for row in rows if row["arm"] == baseline), None)
    layout: dict[str, Any] = {
        "xaxis": {
            "title": {"text": {"$": "x", **{cost: title for cost, (_, title) in COSTS.items()}}},
            "type": "log",
            "tickformat": "~s",
        },
        "yaxis": {"title": {"text": {"$": "y", **{m: WORDS[m] for m in METRICS}}}},
    }
    if base is not None:
        layout["shapes"] = {"$": "y", **{m: _margin(base[m], margin) for m in METRICS}}
        ranges = {m: _range(rows, base[m], m) for m in METRICS}
        if any(ranges.values()):
            layout["yaxis"]["range"] = {"$": "y", **ranges}
    return {
        "hover": _HOVER.format("%{x:,.0f} B, %{text}"),
        "controls": [
            _control("x", "against", {cost: words for cost, (words, _) in COSTS.items()}),
            _control("y", "show", {m: WORDS[m] for m in METRICS}),
        ],
        "traces": traces,
        "layout": layout,
    }


def framed_out(rows: Rows, baseline: str | None) -> int:
    """Arms that `front` starts without."""
    base = next((row for row in rows if row["arm"] == baseline), None)
    return 0 if base is None else sum(row[METRICS[0]] < _FRAMED * base[METRICS[0]] for row in rows)


def reach(
    shares: Mapping[int, np.ndarray],
    gains: Mapping[int, np.ndarray],
    cuts: np.ndarray,
    styles: Sequence[dict[str, str]],
) -> Figure:
    """For how many clients the held-out item is among the first k, by k.

    Args:
      shares: of each finished arm, from `clients.reach`.
      gains: of those that can be paired with the baseline, from `clients.gain`.
      cuts: [P], values of k.
      styles: of each arm.
    """
    ys = ({"gain": "HR@k less the baseline's"} if gains else {}) | {"hr": "HR@k"}
    traces = []
    for i, share in shares.items():
        y = {"$": "y", "hr": rounded(share, 4)}
        if gains:
            y["gain"] = rounded(np.round(gains[i], 5), 3) if i in gains else []
        traces.append(
            {
                "arm": i,
                "type": "scatter",
                "mode": "lines",
                "line": {"color": styles[i]["colour"], "dash": styles[i]["dash"], "width": 2},
                "x": cuts.tolist(),
                "y": y,
            }
        )
    return {
        "hover": _HOVER.format("HR@%{x}: <b>%{y:.4~f}</b>"),
        "controls": [_control("y", "show", ys)] if len(ys) > 1 else [],
        "state": {"y": "hr"},
        "traces": traces,
        "layout": {
            "xaxis": {"title": {"text": "k"}, "type": "log", "tickformat": "~g"},
            "yaxis": {"title": {"text": {"$": "y", **ys}}},
        },
    }


def tiers(rows: Mapping[int, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Figure:
    """Boxes of what clients sent, received and waited for, an arm a line and a tier a colour.

    Args:
      rows: of arms, from `clients.by_tier`.
      names: of all arms.
    """
    shown = {
        name: words
        for name, words in clients.QUANTITIES.items()
        if any(name in row for of in rows.values() for row in of)
    }
    kinds = {"hr@10": ("HR@10", "linear"), **shown}
    labels = {row["tier"] for of in rows.values() for row in of}
    traces = []
    for i, of in rows.items():
        for row in of:
            box: dict[str, Any] = {
                "arm": i,
                "type": "box",
                "orientation": "h",
                "y": [wrapped(names[i], 60)],
                "offsetgroup": str(row["tier"]),
                "marker": {"color": f"@t{min(row['tier'], TIERS - 1)}"},
                "line": {"width": {"$": "x", **dict.fromkeys(kinds, 1.5), "hr@10": 6}},
                "name": f"tier {row['tier']}" if len(labels) > 1 else "all clients",
                "hoverinfo": "x+name",
            }
            for k, part in enumerate(_PARTS):
                box[part] = {"$": "x", **{name: _quantile(row, name, k) for name in kinds}}
            traces.append(box)
    return {
        "controls": [_control("x", "show", {key: words for key, (words, _) in kinds.items()})],
        "traces": traces,
        "tiers": max(len(labels), 1),
        "layout": {
            "boxmode": "group",
            "xaxis": {
                "title": {"text": {"$": "x", **{key: words for key, (words, _) in kinds.items()}}},
                "type": {"$": "x", **{key: kind for key, (_, kind) in kinds.items()}},
                "tickformat": {"$": "x", **dict.fromkeys(kinds, "~s"), "hr@10": ".3~f"},
            },
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": False},
        },
    }


def _quantile(row: Mapping[str, Any], name: str, k: int) -> list[Any]:
    values = [row[name]] * 6 if name == "hr@10" else row.get(name)
    return [] if values is None else rounded([values[k]], 4)


def _control(axis: str, label: str, options: Mapping[str, str]) -> dict[str, Any]:
    return {"axis": axis, "label": label, "options": list(options.items())}


def wrapped(name: str, width: int = 34) -> str:
    """A name for a label, broken into lines; HTML in it is shown as it is."""
    lines = textwrap.wrap(name, width) or [name]
    return "<br>".join(line.replace("&", "&amp;").replace("<", "&lt;") for line in lines)


def _words(row: Mapping[str, Any], metric: str) -> str:
    """A metric with its interval."""
    value = f"{WORDS[metric]} <b>{row[metric]:.4f}</b>"
    difference = row.get(f"{metric}_difference")
    if difference is None:
        return value
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return f"{value}<br>{difference:+.4f} to the baseline<br>95 %: {low:+.4f} to {high:+.4f}"


def _bar(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Half-widths of an interval; around an arm's mean, though it may be one of the difference."""
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    if low is None or high is None:
        return {"visible": False}
    centre = row.get(f"{metric}_difference")
    centre = row[metric] if centre is None else centre
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded([high - centre], 3),
        "arrayminus": rounded([centre - low], 3),
        "thickness": 1.2,
        "width": 4,
    }


def _margin(quality: float, margin: float) -> list[dict[str, Any]]:
    common = {"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "layer": "below"}
    return [
        {
            **common,
            "type": "rect",
            "y0": quality - margin,
            "y1": quality,
            "fillcolor": "@band",
            "line": {"width": 0},
        },
        {
            **common,
            "type": "line",
            "y0": quality,
            "y1": quality,
            "line": {"color": "@faint", "width": 1, "dash": "dash"},
        },
    ]


def _range(rows: Rows, quality: float, metric: str) -> list[float] | None:
    values = [row[metric] for row in rows]
    if min(values) >= _FRAMED * quality:
        return None
    low = min(v for v in values if v >= _FRAMED * quality)
    pad = 0.08 * max(max(values) - low, pareto.MARGIN) + pareto.MARGIN
    return [low - pad, max(values) + pad]
