"""Ranking metrics of leave-one-out evaluation, from the rank of the one held-out item.

Ranks start at 1; clients that are not evaluated have rank 0 and count nowhere.
"""

import numpy as np


def hit_rate(rank: np.ndarray, k: int) -> float:
    """HR@k: the share of clients whose held-out item is among the first k."""
    return float(np.mean(_evaluated(rank) <= k))


def ndcg(rank: np.ndarray, k: int) -> float:
    """NDCG@k with one relevant item: 1 / log2(1 + rank) within the first k, else 0."""
    rank = _evaluated(rank)
    return float(np.mean(np.where(rank <= k, 1 / np.log2(1 + rank), 0)))


def mrr(rank: np.ndarray, k: int) -> float:
    """MRR@k: 1 / rank within the first k, else 0."""
    rank = _evaluated(rank)
    return float(np.mean(np.where(rank <= k, 1 / rank, 0)))


METRICS = {"hr": hit_rate, "ndcg": ndcg, "mrr": mrr}


def summarise(rank: np.ndarray, ks: tuple[int, ...] = (5, 10, 20)) -> dict[str, float]:
    """Every metric at every cut-off, as {"hr@10": ...}."""
    return {f"{name}@{k}": metric(rank, k) for k in ks for name, metric in METRICS.items()}


def _evaluated(rank: np.ndarray) -> np.ndarray:
    rank = np.asarray(rank, np.float64)
    rank = rank[rank > 0]
    if rank.size == 0:
        raise ValueError("no client has a held-out item: there is nothing to evaluate")
    return rank
