"""Quality against bytes: which arms lose nothing, which are on the front, and who beats whom.

An arm is on the Pareto front if no other arm is at least as good for at most as many bytes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fedras_jax import report, stats

# 'No loss' means no loss in both; the first is the one that rivals are compared in.
METRICS = ("ndcg@10", "hr@10")
MARGIN = 0.008
# With fewer seeds, intervals are printed, but no verdict.
SEEDS_OF_A_CLAIM = 5
# The codecs that every other one is compared with: our form of actions, and the paper's.
FORMS = ("directional", "actions")

COLUMNS = (
    # (key, heading, format)
    ("arm", "arm", "{}"),
    ("hr@10", "HR@10", "{:.4f}"),
    ("ndcg@10", "NDCG@10", "{:.4f}"),
    ("up_bytes", "up B", "{:,.0f}"),
    ("total_bytes", "up+down B", "{:,.0f}"),
    ("hr@10_difference", "HR - dense", "{:+.4f}"),
    ("hr@10_lower", "above", "{:+.4f}"),
    ("ndcg@10_difference", "NDCG - dense", "{:+.4f}"),
    ("ndcg@10_lower", "above", "{:+.4f}"),
    ("verdict", "no loss", "{}"),
    ("mark", "front", "{}"),
)
RIVAL_COLUMNS = (
    ("rival", "rival", "{}"),
    ("rival_bytes", "up B", "{:,.0f}"),
    ("form", "against", "{}"),
    ("arm", "its nearest arm below", "{}"),
    ("arm_bytes", "up B", "{:,.0f}"),
    ("difference", "NDCG - rival", "{:+.4f}"),
    ("low", "from", "{:+.4f}"),
    ("upper", "to", "{:+.4f}"),
    ("adjusted_p", "p (Holm)", "{:.2g}"),
)

RIVAL_FIELDS = (
    *("rival", "rival_bytes", "form", "arm", "arm_bytes", "seeds"),
    *("difference", "low", "upper", "p_value", "adjusted_p"),
)


class Arm(NamedTuple):
    """A finished arm.

    Attributes:
      name: as on the command line.
      codec: its codec's name.
      series: arms of a series differ in their budget; a plot joins them.
      summaries: `summary.json` of the run of each of S seeds.
      ranks: int [S, U], final ranks, seeds in the same order in all arms.
    """

    name: str
    codec: str
    series: str
    summaries: Sequence[dict[str, Any]]
    ranks: np.ndarray


def front(
    cost: Float[np.ndarray, " n"], quality: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether each of n arms is on the front: none is cheaper or better without being the other.

    Arms that cost the same and are equally good are on it together.
    """
    cheaper, better = cost[:, None] <= cost, quality[:, None] >= quality
    strictly = (cost[:, None] < cost) | (quality[:, None] > quality)
    beaten = np.any(cheaper & better & strictly, axis=0)
    return np.logical_not(beaten)


def table(arms: Sequence[Arm], baseline: str, *, margin: float = MARGIN) -> list[dict[str, Any]]:
    """A row an arm, by bytes up: means over seeds, and differences to the baseline.

    Args:
      arms: all of the same seeds and clients, with different names.
      baseline: the name of one of them.
      margin: what counts as a loss, in either metric.

    Raises:
      ValueError: the arms are of other seeds or clients, or have no baseline.
    """
    by_name = {arm.name: arm for arm in arms}
    if baseline not in by_name:
        raise ValueError(f"the baseline {baseline!r} is none of the arms")
    means = report.comparison({arm.name: arm.summaries for arm in arms})
    rows = []
    for arm, mean in zip(arms, means, strict=True):
        row = {
            "arm": arm.name,
            "codec": arm.codec,
            "series": arm.series,
            "seeds": mean["runs"],
            "client_lr": arm.summaries[0]["spec"]["client_lr"],
            **{name: mean[name] for name in ("hr@10", "ndcg@10", "up_bytes", "down_bytes")},
            "total_bytes": mean["up_bytes"] + mean["down_bytes"],
        }
        row |= _against(arm, by_name[baseline], margin)
        rows.append(row)
    for cost in ("up", "total"):
        on = front(
            np.array([row[f"{cost}_bytes"] for row in rows]),
            np.array([row["ndcg@10"] for row in rows]),
        )
        for row, member in zip(rows, on.tolist(), strict=True):
            row[f"front_{cost}"] = member
    for row in rows:
        places = [cost for cost in ("up", "total") if row[f"front_{cost}"]]
        row["mark"] = ", ".join(places) or None
    return sorted(rows, key=lambda row: row["up_bytes"])


def _against(arm: Arm, base: Arm, margin: float) -> dict[str, Any]:
    """Columns that compare an arm with the baseline; empty for the baseline itself."""
    row: dict[str, Any] = {}
    found = []
    for metric in METRICS:
        compared = stats.non_inferiority(arm.ranks, base.ranks, margin=margin, metric=metric)
        found.append(compared.no_loss)
        for name in ("difference", "lower", "low", "upper", "p_value"):
            row[f"{metric}_{name}"] = None if arm is base else getattr(compared, name)
    row["no_loss"], row["verdict"] = all(found), verdict(all(found), arm.ranks)
    if arm is base:
        row |= {"no_loss": None, "verdict": None}
    return row


def verdict(no_loss: bool, ranks: np.ndarray) -> str:
    """'yes' or 'no', once there are seeds enough to say so."""
    if len(ranks) < SEEDS_OF_A_CLAIM:
        return f"{count_of_seeds(ranks)}: not a claim"
    return "yes" if no_loss else "no"


def count_of_seeds(ranks: np.ndarray) -> str:
    """'1 seed', '3 seeds'."""
    return f"{len(ranks)} seed" + "s" * (len(ranks) != 1)


def rivals(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Every rival against each form's arm of the most bytes that are no more than the rival's.

    A difference above 0 says that the form's arm is better, for no more bytes. An arm of one form
    is a rival of the other. P-values are adjusted over all tests of the table together, those of
    both forms. A rival that is smaller than every arm of a form is not compared with it.

    Args:
      arms: of the same seeds and clients.

    Returns:
      A row a rival and form, by the rival's bytes up; none for a form without an arm.
    """
    bytes_up = report.comparison({arm.name: arm.summaries for arm in arms})
    sized = sorted(
        ((row["up_bytes"], arm) for row, arm in zip(bytes_up, arms, strict=True)),
        key=lambda pair: pair[0],
    )
    # Plain arms: with other fields of the experiment changed it is another comparison.
    own = {form: [pair for pair in sized if pair[1].series == form] for form in FORMS}
    rows = [
        _against_form(size, rival, form, own[form])
        for size, rival in sized
        for form in FORMS
        if own[form] and rival.codec != form
    ]
    tested = [row for row in rows if row["p_value"] is not None]
    adjusted = stats.holm([row["p_value"] for row in tested])
    for row, p in zip(tested, adjusted.tolist(), strict=True):
        row["adjusted_p"] = p
    return rows


def _against_form(
    size: float, rival: Arm, form: str, own: Sequence[tuple[float, Arm]]
) -> dict[str, Any]:
    """A row of `rivals`, not yet adjusted; `own` are the form's arms, by bytes up."""
    row: dict[str, Any] = dict.fromkeys(RIVAL_FIELDS)
    row |= {"rival": rival.name, "rival_bytes": size, "form": form, "seeds": len(rival.ranks)}
    below = [pair for pair in own if pair[0] <= size]
    if below:
        arm_bytes, arm = below[-1]
        compared = stats.non_inferiority(arm.ranks, rival.ranks, metric=METRICS[0])
        # A single seed says nothing of others.
        p_value = compared.p_value if len(rival.ranks) > 1 else None
        row |= {"arm": arm.name, "arm_bytes": arm_bytes, "p_value": p_value}
        row |= {name: getattr(compared, name) for name in ("difference", "low", "upper")}
    return row
