"""Interactions drawn from a model: any size, heavy-tailed popularity, tastes to be learned."""

import re
from collections.abc import Iterator

import numpy as np

from fedras_jax.data.interactions import Interactions
from fedras_jax.errors import DataError

PREFIX = "synthetic:"

_SHORTEST = 3
# The spread of log history lengths; about that of MovieLens 1M.
_LENGTH_SIGMA = 1.0
# The standard deviation of a client's scores: a taste moves an item's odds by e^±2, roughly.
_TASTE = 2.0
# Keys drawn at a time; bounds the working memory at about 24 bytes each, 96 MiB.
_CHUNK_KEYS = 1 << 22
_FIRST_SECOND, _MEAN_GAP = 1_500_000_000, 3600.0


def synthetic(
    n_clients: int,
    n_items: int,
    *,
    mean_interactions: float = 50,
    dim: int = 8,
    popularity_exponent: float = 1.0,
    seed: int = 0,
    name: str | None = None,
) -> Interactions:
    """Draws interactions of clients whose tastes are vectors.

    Item popularity follows a power law, rank^-exponent, over randomly ordered items. Client u
    chooses items without replacement, in time order, with odds popularity × exp(score), the
    score being the product of u's and the item's latent factors with standard deviation 2. The
    number of choices is lognormal (σ = 1), clipped to [3, n_items / 2], so the realised mean
    lies off `mean_interactions` where that is near either end.

    Memory beyond the result is bounded: about 100 MiB, or one client's row of items where that
    is more. The same arguments give the same interactions, whatever the chunks.

    Args:
        n_clients: U, 1 or more.
        n_items: M, 6 or more; all are kept, chosen or not.
        mean_interactions: mean history length before clipping.
        dim: length of the latent factors.
        popularity_exponent: of the power law; 0 makes all items equally popular.
        seed: of all draws, not negative.
        name: the dataset's name, by default "synthetic-UxM".

    Returns:
        Interactions with times, ids 0..U-1 and 0..M-1, without titles.

    Raises:
        DataError: an argument out of its range.
    """
    name = name or f"synthetic-{n_clients}x{n_items}"
    _check(name, n_clients, n_items, mean_interactions, dim, popularity_exponent, seed)
    rng = np.random.default_rng(seed)
    # Logarithms throughout: a steep power law underflows.
    log_popularity = -popularity_exponent * np.log(1.0 + rng.permutation(n_items))
    clients = rng.standard_normal((n_clients, dim), np.float32)
    factors = rng.standard_normal((n_items, dim), np.float32) * np.float32(_TASTE / dim**0.5)
    lengths = _lengths(rng, n_clients, n_items, mean_interactions)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Interactions(
        name=name,
        client_ids=np.arange(n_clients),
        item_ids=np.arange(n_items),
        offsets=offsets,
        items=np.concatenate(list(_choices(rng, log_popularity, clients, factors, lengths))),
        times=_times(rng, offsets),
    )


def synthetic_from_spec(spec: str, *, seed: int) -> Interactions:
    """Draws "synthetic:UxM" or "synthetic:UxMxN", N being the mean number of interactions.

    Raises:
        DataError: anything else behind the prefix, or sizes out of range.
    """
    match = re.fullmatch(r"synthetic:(\d+)x(\d+)(?:x(\d+))?", spec, re.ASCII)
    if match is None:
        raise DataError(
            f"{spec!r}: expected synthetic:CLIENTSxITEMS or "
            "synthetic:CLIENTSxITEMSxMEAN_INTERACTIONS, as in synthetic:300x1000x40."
        )
    n_clients, n_items, mean = match.groups()
    if mean is None:
        return synthetic(int(n_clients), int(n_items), seed=seed)
    return synthetic(int(n_clients), int(n_items), mean_interactions=int(mean), seed=seed)


def _check(
    name: str,
    n_clients: int,
    n_items: int,
    mean_interactions: float,
    dim: int,
    popularity_exponent: float,
    seed: int,
) -> None:
    for what, value, least in (
        ("n_clients", n_clients, 1),
        ("n_items", n_items, 2 * _SHORTEST),
        ("mean_interactions", mean_interactions, 1),
        ("dim", dim, 1),
        ("popularity_exponent", popularity_exponent, 0),
        ("seed", seed, 0),
    ):
        if not value >= least:
            raise DataError(f"{name}: expected {what} of {least} or more, found {value}.")


def _lengths(
    rng: np.random.Generator, n_clients: int, n_items: int, mean_interactions: float
) -> np.ndarray:
    """History lengths, int64 [U]."""
    location = np.log(mean_interactions) - _LENGTH_SIGMA**2 / 2
    drawn = np.rint(rng.lognormal(location, _LENGTH_SIGMA, n_clients))
    return np.clip(drawn, _SHORTEST, n_items // 2).astype(np.int64)


def _choices(
    rng: np.random.Generator,
    log_popularity: np.ndarray,
    clients: np.ndarray,
    factors: np.ndarray,
    lengths: np.ndarray,
) -> Iterator[np.ndarray]:
    """A chunk's clients' distinct items in the order of choice, int32 [sum of their lengths].

    Sampling without replacement by Gumbel top-k: the items with the largest log-odds plus
    Gumbel noise win, in that order.
    """
    n_items = len(log_popularity)
    rows = max(1, _CHUNK_KEYS // n_items)
    for start in range(0, len(clients), rows):
        keys = clients[start : start + rows] @ factors.T
        keys += log_popularity.astype(np.float32)
        # The logarithm of an exponential draw is a negated Gumbel draw, in single precision.
        # A draw of exactly 0 makes its item win, as it should.
        with np.errstate(divide="ignore"):
            keys -= np.log(rng.standard_exponential(keys.shape, np.float32))
        chosen = lengths[start : start + rows]
        longest = int(chosen.max())
        winners = np.argpartition(-keys, longest - 1, axis=1)[:, :longest]
        order = np.argsort(-np.take_along_axis(keys, winners, axis=1), axis=1)
        ranked = np.take_along_axis(winners, order, axis=1).astype(np.int32)
        yield ranked[np.arange(longest) < chosen[:, None]]


def _times(rng: np.random.Generator, offsets: np.ndarray) -> np.ndarray:
    """Seconds, int64 [nnz], rising within each client by an hour on average."""
    gaps = 1 + rng.exponential(_MEAN_GAP, offsets[-1]).astype(np.int64)
    elapsed = np.cumsum(gaps)
    before = np.concatenate([[0], elapsed])[offsets[:-1]]
    return _FIRST_SECOND + elapsed - np.repeat(before, np.diff(offsets))
