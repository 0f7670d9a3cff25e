"""Learning curves, means over seeds and thin enough for a page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedras_jax.page.collect import METRICS, Arm, Columns

# Points of all curves of a page together, and of one of them.
POINTS = 20_000
LIMITS = (20, 200)


def points(n_arms: int) -> int:
    """Points of a curve, on a page of so many arms."""
    return int(np.clip(POINTS // max(n_arms, 1), *LIMITS))


def curve(arm: Arm, at_most: int) -> dict[str, np.ndarray] | None:
    """What an arm was like at its evaluations, none if nothing was evaluated.

    Bytes are those of a client that takes part in every round. The loss and the number of actions
    are means since the point before.

    Returns:
      [P] each: 'rounds', 'up', 'total' in bytes, 'hours' of simulated time; the metrics, means over
      seeds, with 'METRIC low' and 'METRIC high', the lowest and highest seed; 'loss', 'n_actions'.
    """
    logs = [run.rounds for run in arm.runs if run.rounds is not None and len(run.rounds["round"])]
    logs = [log for log in logs if METRICS[0] in log]
    if not logs:
        return None
    evaluated = [log["round"][~np.isnan(log[METRICS[0]])] for log in logs]
    shared = evaluated[0]
    for other in evaluated[1:]:
        shared = np.intersect1d(shared, other)
    if not shared.size:
        return None
    kept = shared[np.unique(np.linspace(0, shared.size - 1, at_most).round().astype(int))]
    seeds = [_points(log, kept) for log in logs]
    found = {name: np.mean([s[name] for s in seeds], axis=0) for name in seeds[0]}
    for metric in METRICS:
        found[f"{metric} low"] = np.min([s[metric] for s in seeds], axis=0)
        found[f"{metric} high"] = np.max([s[metric] for s in seeds], axis=0)
    return found


def _points(log: Columns, rounds: np.ndarray) -> dict[str, np.ndarray]:
    at = np.searchsorted(log["round"], rounds)
    clients = np.maximum(log["clients"], 1)
    up = np.cumsum(log["up_bytes"] / clients)
    down = np.cumsum(log["down_bytes"] / clients)
    clock = log.get("clock_s", np.zeros(len(clients)))
    starts = np.concatenate([[0], at[:-1] + 1])

    def mean(values: np.ndarray) -> np.ndarray:
        # The last stretch would go on to the end of the log, beyond the last point.
        return np.add.reduceat(values[: at[-1] + 1], starts) / (at + 1 - starts)

    return {
        "rounds": rounds.astype(float),
        "up": up[at],
        "total": (up + down)[at],
        "hours": np.nan_to_num(clock[at]) / 3600,
        **{metric: log[metric][at] for metric in METRICS},
        "loss": mean(log["loss"]),
        "n_actions": mean(log["n_actions"]),
    }


def rounded(values: Sequence[float] | np.ndarray, digits: int = 5) -> list[Any]:
    """Numbers with few digits, None for what is not a number: small as JSON."""
    return [
        None if not np.isfinite(v) else int(v) if v == int(v) else float(f"{v:.{digits}g}")
        for v in np.asarray(values, np.float64).tolist()
    ]
