"""Which events count: the rating threshold, repeats and the k-core."""

import numpy as np

from fedras_jax.errors import DataError


def rating_mask(ratings: np.ndarray | None, min_rating: float, name: str) -> np.ndarray:
    """Rows rated `min_rating` or better, bool [n].

    Raises:
        DataError: there are no ratings, or none is high enough.
    """
    if ratings is None:
        raise DataError(
            f"{name}: min_rating={min_rating} needs ratings and the source has none; "
            "leave min_rating out."
        )
    kept = ratings >= min_rating
    if not kept.any():
        raise DataError(
            f"{name}: min_rating={min_rating} removed all {len(ratings)} interactions; the "
            f"ratings run from {ratings.min()} to {ratings.max()}, lower it."
        )
    return kept


def drop_repeats(
    users: np.ndarray, items: np.ndarray, times: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Orders rows by user, then time, then file order, and keeps each pair's first.

    Args:
        users: int64 [n] user indices.
        items: int64 [n] item indices.
        times: [n] or None.

    Returns:
        The three columns in that order, repeats removed.
    """
    # lexsort and stable argsort both keep the file's order among equals.
    order = np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))
    users, items = users[order], items[order]
    pairs = users * (items.max() + 1) + items
    first = np.sort(np.unique(pairs, return_index=True)[1])
    return users[first], items[first], None if times is None else times[order][first]


def core_mask(users: np.ndarray, items: np.ndarray, k: int, name: str) -> np.ndarray:
    """Rows of the k-core: the largest part where every user and every item has k rows or more.

    Removing a user can push an item below k and the other way round, hence the repetition.

    Args:
        users: int64 [n] user indices.
        items: int64 [n] item indices, pairs distinct.
        k: the least number of rows; 0 and 1 keep all.
        name: the dataset in messages.

    Returns:
        bool [n].

    Raises:
        DataError: k is negative, or the core is empty.
    """
    if k < 0:
        raise DataError(f"{name}: expected k_core of 0 or more, found {k}.")
    rows = np.arange(len(users))
    while k > 1 and rows.size:
        in_core = (np.bincount(users[rows]) >= k)[users[rows]]
        in_core &= (np.bincount(items[rows]) >= k)[items[rows]]
        if in_core.all():
            break
        rows = rows[in_core]
    if not rows.size:
        raise DataError(
            f"{name}: k_core={k} removed all {len(users)} interactions that were left; "
            "no users and items have that many among themselves, lower it."
        )
    kept = np.zeros(len(users), bool)
    kept[rows] = True
    return kept
