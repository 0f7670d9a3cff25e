"""When an arm is as good as it should be: learning curves against the simulated clock.

Time to a target is read off a smoothed curve, because a curve that wobbles would touch the target
by luck first; how much sooner an arm is there than another is a ratio of the means over seeds.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedras_jax import metrics, network, pareto, registry, stats
from fedras_jax.spec import Spec

# The target, as a share of the baseline's final quality.
TARGET = 0.95
METRIC = "ndcg@10"
# Evaluations that a point of a smoothed curve is the mean of.
WINDOW = 5

COLUMNS = (
    # (key, heading, format)
    ("arm", "arm", "{}"),
    ("downlink", "downlink", "{}"),
    ("hr@10", "HR@10", "{:.4f}"),
    ("ndcg@10", "NDCG@10", "{:.4f}"),
    ("no_loss", "no loss", "{}"),
    ("hr_bound", "HR - dense >=", "{:+.4f}"),
    ("ndcg_bound", "NDCG - dense >=", "{:+.4f}"),
    ("hours", "hours to target", "{:.3f}"),
    ("speedup", "times sooner", "{:.2f}"),
    ("rounds", "rounds", "{:.0f}"),
    ("n_actions", "K", "{:.1f}"),
    ("up_bytes", "up B", "{:,.0f}"),
    ("down_bytes", "down B", "{:,.0f}"),
    ("clock", "clock", "{}"),
)
CLOCK_COLUMNS = (
    ("arm", "arm", "{}"),
    ("round_s", "s a round", "{:.2f}"),
    *((f"{phase}_share", phase, "{:.1%}") for phase in network.PHASES),
    ("rules", "rules", "{}"),
    ("free_upload", "free upload", "<= {:.2f}x"),
    ("free_download", "free download", "<= {:.2f}x"),
)
TIER_COLUMNS = (
    ("arm", "arm", "{}"),
    ("tier", "tier", "{}"),
    ("clients", "clients", "{}"),
    ("drawn", "drawn", "{:.1%}"),
    ("counted", "counted", "{:.1%}"),
    ("never", "never counted", "{:.1%}"),
    ("waited", "waited for", "{:.1%}"),
    ("n_actions", "K", "{:.1f}"),
    ("seconds", "s a round", "{:.2f}"),
    ("hr@10", "HR@10", "{:.4f}"),
    ("difference", "- dense", "{:+.4f}"),
)


class Timed(NamedTuple):
    """An arm in a scenario.

    Attributes:
      name: of the arm.
      spec: of its runs, but for their seeds.
      rounds: for each of S seeds, the columns of `rounds.parquet`.
      clients: for each of S seeds, the columns of `clients.parquet`.
      ranks: int [S, U], final ranks.
      drawn, counted: int [S, U], rounds in which a client was drawn, and in which it counted.
      retimed: how many of the S were not run, but re-timed (`retiming`).
    """

    name: str
    spec: Spec
    rounds: Sequence[dict[str, np.ndarray]]
    clients: Sequence[dict[str, np.ndarray]]
    ranks: np.ndarray
    drawn: np.ndarray
    counted: np.ndarray
    retimed: int = 0


def downlink(spec: Spec) -> str:
    """What clients fetch, in words."""
    parts = ["dense"] if spec.downlink == "dense" and spec.snapshot_bits == 32 else []
    if spec.downlink != "dense":
        args = ",".join(f"{k}={v}" for k, v in spec.downlink_args.items())
        parts.append(f"{spec.downlink}:{args}" if args else spec.downlink)
    if spec.downlink_trend:
        parts.append(f"trend {spec.downlink_trend:g}")
    if not spec.downlink_feedback:
        parts.append("no feedback")
    if spec.snapshot_bits < 32:
        parts.append(f"table in {spec.snapshot_bits} bits")
    return ", ".join(parts)


def curve(rounds: dict[str, np.ndarray], metric: str = METRIC) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and smoothed quality at every evaluation, both [E].

    A point is the mean of the `WINDOW` evaluations around it, fewer at the ends.

    Args:
      rounds: columns; the metric is NaN where nothing was evaluated.
      metric: the column.
    """
    at = np.flatnonzero(~np.isnan(rounds[metric]))
    quality, half = rounds[metric][at], WINDOW // 2
    total = np.concatenate([[0.0], np.cumsum(quality)])
    low = np.maximum(np.arange(at.size) - half, 0)
    high = np.minimum(np.arange(at.size) + half + 1, at.size)
    return rounds["clock_s"][at], (total[high] - total[low]) / (high - low)


def time_to(seconds: np.ndarray, quality: np.ndarray, target: float) -> float:
    """When a curve first reaches a target, between two points linearly; NaN if it never does.

    Args:
      seconds, quality: [E], a curve.
      target: of the quality.
    """
    there = np.flatnonzero(quality >= target)
    if not there.size:
        return float("nan")
    i = int(there[0])
    if i == 0:
        return float(seconds[0])
    share = (target - quality[i - 1]) / (quality[i] - quality[i - 1])
    return float(seconds[i - 1] + share * (seconds[i] - seconds[i - 1]))


def table(
    arms: Sequence[Timed], baseline: str, *, target: float = TARGET, margin: float = 0.008
) -> list[dict[str, Any]]:
    """A row an arm: quality, time to target, and what the slowest clients spent their time on.

    Means over seeds. The target is a share of the baseline's final quality, mean of its seeds. An
    arm that some seed of which does not reach it has no time. What is lost is less than `hr_bound`
    and `ndcg_bound` say, with 95 % confidence. `free_upload` says how many times as
    fast rounds were at most if uploads took no time, `free_download` likewise: another client may
    then be the slowest, but none would be done before the rest of what this one did (unless it
    failed, and would have failed sooner). Where the server does not wait for everyone, or devices
    are not a preset's, that is not known.

    Args:
      arms: of the same seeds and clients.
      baseline: the name of one of them.
      target: share of the baseline's final quality.
      margin: what counts as a loss.
    """
    base = next(arm for arm in arms if arm.name == baseline)
    goal = float(target * np.mean([metrics.summarise(r)[METRIC] for r in base.ranks]))
    base_s = np.array([time_to(*curve(r), goal) for r in base.rounds])
    rows = []
    for arm in arms:
        found = [metrics.summarise(r) for r in arm.ranks]
        reached = np.array([time_to(*curve(r), goal) for r in arm.rounds])
        when = [
            np.interp(t, r["clock_s"], r["round"]) for t, r in zip(reached, arm.rounds, strict=True)
        ]
        ndcg, hr = (
            stats.non_inferiority(arm.ranks, base.ranks, margin=margin, metric=m)
            for m in (METRIC, "hr@10")
        )
        kept = ndcg.no_loss and hr.no_loss
        spent = {p: np.mean([r[f"{p}_s"].sum() for r in arm.rounds]) for p in network.PHASES}

        def mean(name, arm=arm):
            return float(np.mean([r[name].sum() / r["clients"].sum() for r in arm.rounds]))

        rows.append(
            {
                "arm": arm.name,
                "downlink": downlink(arm.spec),
                "hr@10": float(np.mean([m["hr@10"] for m in found])),
                "ndcg@10": float(np.mean([m[METRIC] for m in found])),
                "no_loss": "baseline" if arm is base else pareto.verdict(kept, arm.ranks),
                "hr_bound": None if arm is base else hr.lower,
                "ndcg_bound": None if arm is base else ndcg.lower,
                "hours": None if np.isnan(reached).any() else float(reached.mean() / 3600),
                "speedup": None
                if np.isnan(reached).any() or np.isnan(base_s).any()
                else float(base_s.mean() / reached.mean()),
                "rounds": None if np.isnan(reached).any() else float(np.mean(when)),
                "round_s": float(np.mean([r["seconds"].mean() for r in arm.rounds])),
                **_breakdown(arm, spent),
                "n_actions": float(np.mean([r["n_actions"].mean() for r in arm.rounds])),
                "up_bytes": mean("up_bytes"),
                "down_bytes": mean("down_bytes"),
                "clock": _clock(arm),
            }
        )
    return rows


def _breakdown(arm: Timed, spent: dict[str, float]) -> dict[str, Any]:
    """What the clock is spent on, and what it would be worth to spend less on."""
    total = sum(spent.values())
    share = {p: float(x / total) if total else 0.0 for p, x in spent.items()}
    # On a file's devices, which may change with time, nothing is known of other rounds.
    known = arm.spec.arrival == "synchronous" and not registry.is_file(arm.spec.profile)

    def at_most(phase):
        return 1 / (1 - share[phase]) if known and share[phase] < 1 else None

    return {
        **{f"{p}_share": x for p, x in share.items()},
        "rules": max(share, key=lambda p: share[p]) if total else None,
        "free_upload": at_most("upload"),
        "free_download": at_most("download"),
    }


def _clock(arm: Timed) -> str:
    """How its seconds have come about."""
    if not arm.retimed:
        return "run"
    seeds = len(arm.rounds)
    return "re-timed" if arm.retimed == seeds else f"{arm.retimed} of {seeds} re-timed"


def verdict(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What rules the clock of which arms, as lines: where compression can matter and where not.

    Args:
      rows: from `table`.
    """
    kinds = (
        ("transfers are half of the clock or more", ("download", "upload")),
        ("computing is half of it or more", ("train", "encode")),
        ("latency is half of it or more", ("latency",)),
    )
    lines, left = [], list(rows)
    for words, phases in kinds:
        mine = [r for r in left if sum(r[f"{p}_share"] for p in phases) >= 0.5]
        left = [r for r in left if r not in mine]
        if mine:
            lines.append(f"{words}: {', '.join(r['arm'] for r in mine)}")
    if left:
        lines.append(f"nothing is half of it: {', '.join(r['arm'] for r in left)}")
    return lines


def tiers(arms: Sequence[Timed], baseline: str, tier: np.ndarray) -> list[dict[str, Any]]:
    """A row for each arm and tier: who takes part, with which K, and how good it gets for them.

    `never` is the share of the tier's clients of which no payload counted, `waited` that of the
    clock in which the server waited for one of them; unknown where it does not wait for everyone.

    Args:
      arms: of the same seeds and clients.
      baseline: the name of one of them.
      tier: int [U].
    """
    base = next(arm for arm in arms if arm.name == baseline)
    rows = []
    for arm in arms:
        waited = _waited(arm, tier)
        for t in np.unique(tier):
            mine = tier == t
            logs = [(c, mine[c["client"]]) for c in arm.clients]

            def mean(name, logs=logs):
                return float(np.mean(np.concatenate([c[name][here] for c, here in logs])))

            def never(a, mine=mine):
                return float((a.counted[:, mine] == 0).mean())

            def hr(a, mine=mine):
                return float(np.mean([metrics.summarise(r[mine])["hr@10"] for r in a.ranks]))

            rows.append(
                {
                    "arm": arm.name,
                    "tier": int(t),
                    "clients": int(mine.sum()),
                    "drawn": float(arm.drawn[:, mine].sum() / max(arm.drawn.sum(), 1)),
                    "counted": float(arm.counted[:, mine].sum() / max(arm.counted.sum(), 1)),
                    "never": never(arm),
                    "waited": waited.get(int(t)),
                    "n_actions": mean("n_actions"),
                    "seconds": mean("seconds"),
                    "hr@10": hr(arm),
                    "difference": hr(arm) - hr(base),
                }
            )
    return rows


def _waited(arm: Timed, tier: np.ndarray) -> dict[int, float]:
    """By tier, the share of the clock in which the server waited for one of its clients."""
    if arm.spec.arrival != "synchronous":
        return {}
    spent = np.zeros(int(tier.max()) + 1)
    for log in arm.clients:
        # In each round the first of the slowest.
        order = np.lexsort((-log["seconds"], log["round"]))
        last = order[np.unique(log["round"][order], return_index=True)[1]]
        np.add.at(spent, tier[log["client"][last]], log["seconds"][last])
    total = spent.sum()
    return {int(t): float(spent[t] / total) for t in np.unique(tier)} if total else {}
