"""How clients fare: the quality of each, and by tier what they sent, received and waited for."""

from collections.abc import Collection
from typing import Any

import numpy as np

from fedras_jax import assembly, metrics, results
from fedras_jax.errors import FedrasError
from fedras_jax.page.collect import Arm, Group

# Columns of clients.parquet that are shown, with words for them and how an axis counts them.
QUANTITIES = {
    "n_actions": ("actions K", "linear"),
    "up_bytes": ("bytes up", "log"),
    "down_bytes": ("bytes down", "log"),
    "seconds": ("simulated seconds", "log"),
}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CUT_OFF = 10
# Logs of clients that are read for a page; they are by far the largest files.
FILES = 60


def reach(arm: Arm, cuts: np.ndarray, seeds: Collection[int]) -> np.ndarray:
    """HR@k at several k, over all clients and some seeds."""
    ranks = np.sort(arm.ranks(seeds), axis=None)
    ranks = ranks[ranks > 0]
    return np.searchsorted(ranks, cuts, side="right") / max(ranks.size, 1)


def gain(arm: Arm, base: Arm, cuts: np.ndarray) -> np.ndarray | None:
    """HR@k less the baseline's, over the seeds that both have; None if there are none."""
    shared = set(arm.seeds) & set(base.seeds)
    return reach(arm, cuts, shared) - reach(base, cuts, shared) if shared else None


def cuts(group: Group, at_most: int) -> np.ndarray:
    """Values of k from 1 to the last rank there is, evenly on a logarithmic scale."""
    last = max(int(r.ranks.max()) for a in group.arms for r in a.runs if r.ranks is not None)
    return np.unique(np.geomspace(1, max(last, 2), at_most).round().astype(int))


def tiers(group: Group) -> np.ndarray | None:
    """int [U], the tier of each client; None where the profile has none or is not to be had."""
    arm = next((arm for arm in group.arms if arm.finished), None)
    if arm is None or arm.runs[0].ranks is None:
        return None
    try:
        tier = assembly.tiers_of(arm.runs[0].spec, arm.runs[0].ranks.size)
    except FedrasError:
        return None
    return None if tier is None or (tier == tier[0]).all() else tier


def by_tier(arm: Arm, tier: np.ndarray | None, n_files: int) -> list[dict[str, Any]]:
    """Quantiles of each quantity, and HR@10, of the clients of each tier.

    Args:
      arm: a finished one.
      tier: int [U], or None if all clients are of a kind.
      n_files: seeds whose logs of clients are read, at most.

    Returns:
      A dict a tier: 'tier', 'clients', 'hr@10', and where there are logs 'seeds' and for each
      quantity a list of its mean and `QUANTILES`.
    """
    n_clients = 0 if arm.runs[0].ranks is None else arm.runs[0].ranks.size
    tier = np.zeros(n_clients, int) if tier is None else tier
    folders = [run.row["folder"] for run in arm.runs if run.logged][:n_files]
    log = results.load(folders, "clients") if folders else None
    columns = {}
    if log is not None:
        names = [name for name in QUANTITIES if name in log.column_names]
        columns = {name: log[name].to_numpy() for name in names}
        of = tier[log["client"].to_numpy()]
    rows = []
    for t in np.unique(tier):
        mine = [run.ranks[tier == t] for run in arm.runs if run.ranks is not None]
        ranks = np.concatenate(mine)
        hits = metrics.hit(ranks[ranks > 0], CUT_OFF)
        row: dict[str, Any] = {
            "tier": int(t),
            "clients": int((tier == t).sum()),
            "hr@10": float(hits.mean()) if hits.size else None,
            "seeds": len(folders),
        }
        for name, values in columns.items():
            here = values[of == t]
            if here.size:
                row[name] = [float(here.mean()), *np.quantile(here, QUANTILES).tolist()]
        rows.append(row)
    return rows
