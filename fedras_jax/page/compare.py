"""The table of a group: means over seeds, and differences to the baseline with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedras_jax import network, pareto, stats, timing
from fedras_jax.page.collect import METRICS, Arm, Group

COSTS = ("up_bytes", "total_bytes")
# Clients resampled in all of a page's bootstraps together, which bounds their time; and draws of
# one comparison: with 64, its standard error is off by 9 % (one standard deviation of it).
WORK = 600_000_000
DRAWS = (64, 2000)


def draws(groups: Sequence[Group]) -> int:
    """Bootstrap draws of each comparison, so that all of them take some seconds."""
    work = sum(
        len(METRICS) * arm.runs[0].ranks.size
        for group in groups
        for arm in group.arms
        if arm.runs[0].ranks is not None
    )
    return int(np.clip(WORK // max(work, 1), *DRAWS))


def table(
    group: Group, *, margin: float = pareto.MARGIN, n_boot: int = DRAWS[1]
) -> list[dict[str, Any]]:
    """A row for each finished arm.

    A difference to the baseline is over the seeds that both have. An arm that is compared with
    none has the interval of its own mean. P-values are adjusted for the arms of the group.

    Args:
      group: arms on the same data.
      margin: what counts as a loss, in either metric.
      n_boot: bootstrap draws of a comparison.
    """
    arms = [arm for arm in group.arms if arm.finished]
    rows = [_row(arm) | _against(arm, group.baseline, margin, n_boot) for arm in arms]
    for metric in METRICS:
        tested = [row for row in rows if row.get(f"{metric}_p") is not None]
        adjusted = stats.holm([row[f"{metric}_p"] for row in tested])
        for row, p in zip(tested, adjusted.tolist(), strict=True):
            row[f"{metric}_holm"] = p
        for cost in COSTS:
            on = pareto.front(
                np.array([row[cost] for row in rows], float),
                np.array([row[metric] for row in rows], float),
            )
            for row, member in zip(rows, on.tolist(), strict=True):
                row[f"front {cost} {metric}"] = member
    _time(rows, arms, group.baseline)
    return rows


def _row(arm: Arm) -> dict[str, Any]:
    up = arm.mean("payload.up_bytes_mean") or 0.0
    down = arm.mean("payload.down_bytes_mean") or 0.0
    return {
        "arm": arm.name,
        "seeds": len(arm.runs),
        **{metric: arm.mean(metric) for metric in METRICS},
        "up_bytes": up,
        "down_bytes": down,
        "total_bytes": up + down,
        "up_reduction": arm.mean("payload.up_reduction"),
        "total_reduction": arm.mean("payload.total_reduction"),
        "clients_per_s": arm.mean("speed.clients_per_s"),
    }


def _against(arm: Arm, base: Arm | None, margin: float, n_boot: int) -> dict[str, Any]:
    """Differences where there is a baseline to pair with, the interval of the mean otherwise."""
    row: dict[str, Any] = {"verdict": None, "note": None}
    paired: list[int] = []
    if base is not None and arm is not base:
        paired = sorted(set(arm.seeds) & set(base.seeds))
        row["note"] = None if paired else "no seed in common with the baseline"
    ours = arm.ranks(paired or arm.seeds)
    # Against an arm that is worth nothing, the difference is the mean itself.
    theirs = base.ranks(paired) if base is not None and paired else np.where(ours, 2**30, 0)
    lossless = []
    for metric in METRICS:
        try:
            found = stats.non_inferiority(
                ours, theirs.astype(ours.dtype), margin=margin, metric=metric, n_boot=n_boot
            )
        except ValueError as e:
            return row | {"note": f"cannot be compared: {e}"}
        row |= {f"{metric}_low": found.low, f"{metric}_high": found.upper}
        if paired:
            row |= {
                f"{metric}_difference": found.difference,
                f"{metric}_lower": found.lower,
                f"{metric}_p": found.p_value,
            }
            lossless.append(found.no_loss)
    if paired:
        sure = "" if len(paired) >= pareto.SEEDS_OF_A_CLAIM else "?"
        row |= {"paired": len(paired), "verdict": ("yes" if all(lossless) else "no") + sure}
    return row


def _time(rows: list[dict[str, Any]], arms: Sequence[Arm], base: Arm | None) -> None:
    """Seconds a round, what the slowest clients spent them on, and time to the target."""
    goal = None if base is None else timing.TARGET * (base.mean(timing.METRIC) or 0.0)
    reached: dict[str, float] = {}
    for row, arm in zip(rows, arms, strict=True):
        seconds = arm.mean("clock.seconds")
        if not seconds:
            continue
        row["round_s"] = seconds / arm.fields["rounds"]
        spent = {phase: arm.mean(f"clock.{phase}_s") or 0.0 for phase in network.PHASES}
        total = sum(spent.values())
        row |= {f"{p}_share": s / total if total else 0.0 for p, s in spent.items()}
        curves = [timing.curve(run.rounds) for run in arm.runs if run.rounds is not None]
        if goal is not None and curves:
            times = [timing.time_to(s, q, goal) for s, q in curves]
            if not np.isnan(times).any():
                reached[arm.name] = float(np.mean(times))
                row["hours"] = reached[arm.name] / 3600
    first = None if base is None else reached.get(base.name)
    for row in rows:
        mine = reached.get(row["arm"])
        row["sooner"] = first / mine if first and mine else None
