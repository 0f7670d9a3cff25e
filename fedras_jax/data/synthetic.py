"""Interactions drawn from a model: any size, heavy-tailed popularity, tastes to be learned."""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from fedras_jax.data.interactions import Interactions
from fedras_jax.data.store import CLIENT_BYTES, Store, open_store, writing
from fedras_jax.errors import DataError

PREFIX = "synthetic:"

_SHORTEST = 3
# The spread of log history lengths; about that of MovieLens 1M.
_LENGTH_SIGMA = 1.0
# The standard deviation of a client's scores: a taste moves an item's odds by e^±2, roughly.
_TASTE = 2.0
# Keys drawn at a time; bounds the working memory at about 24 bytes each, 96 MiB.
_CHUNK_KEYS = 1 << 22
# From so many items on, a client's winners are looked for above a threshold, found from every
# `_STRIDE`th item: partitioning a whole row takes as long as all else together.
_MANY_ITEMS, _STRIDE = 1 << 15, 16
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
    world = _world(n_clients, n_items, mean_interactions, dim, popularity_exponent, seed, name)
    offsets = np.concatenate([[0], np.cumsum(world.lengths)]).astype(np.int64)
    return Interactions(
        name=world.name,
        client_ids=np.arange(n_clients),
        item_ids=np.arange(n_items),
        offsets=offsets,
        items=np.concatenate([items for _, items in _choices(world)]),
        times=_times(world.rng, offsets),
    )


def synthetic_store(
    path: str | os.PathLike[str],
    n_clients: int,
    n_items: int,
    *,
    mean_interactions: float = 50,
    dim: int = 8,
    popularity_exponent: float = 1.0,
    seed: int = 0,
    validation: bool = True,
    name: str | None = None,
    tell: Callable[[str, int, int | None], None] = lambda what, done, total: None,
) -> Store:
    """A store of what `synthetic` draws with the same arguments, split by `leave_one_out`.

    Memory is bounded as there, and besides takes about 100 bytes a client.

    Args:
        path: a place where nothing is yet.
        n_clients, n_items, mean_interactions, dim, popularity_exponent, seed, name: as there.
        validation: whether to hold out a validation item.
        tell: called now and then with what is done, how many of it, and of how many.

    Raises:
        DataError: an argument out of its range, or the store cannot be written.
    """
    world = _world(n_clients, n_items, mean_interactions, dim, popularity_exponent, seed, name)
    size = 4 * int(world.lengths.sum()) + CLIENT_BYTES * n_clients + 8 * n_items
    with writing(path, validation=validation, expected_bytes=size) as writer:
        done = 0
        for lengths, items in _choices(world):
            writer.add(lengths, items)
            done += len(lengths)
            tell("clients", done, n_clients)
        made = {
            "synthetic": True,
            "mean_interactions": mean_interactions,
            "dim": dim,
            "popularity_exponent": popularity_exponent,
            "seed": seed,
        }
        writer.finish(world.name, np.arange(n_clients), np.arange(n_items), made)
    return open_store(path)


def synthetic_from_spec(spec: str, *, seed: int) -> Interactions:
    """Draws "synthetic:UxM" or "synthetic:UxMxN", N being the mean number of interactions.

    Raises:
        DataError: anything else behind the prefix, or sizes out of range.
    """
    n_clients, n_items, mean = sizes_of(spec)
    if mean is None:
        return synthetic(n_clients, n_items, seed=seed)
    return synthetic(n_clients, n_items, mean_interactions=mean, seed=seed)


def sizes_of(spec: str) -> tuple[int, int, int | None]:
    """Clients, items and, where it is given, mean interactions of "synthetic:UxM[xN]".

    Raises:
        DataError: anything else behind the prefix.
    """
    match = re.fullmatch(r"synthetic:(\d+)x(\d+)(?:x(\d+))?", spec, re.ASCII)
    if match is None:
        raise DataError(
            f"{spec!r}: expected synthetic:CLIENTSxITEMS or "
            "synthetic:CLIENTSxITEMSxMEAN_INTERACTIONS, as in synthetic:300x1000x40."
        )
    n_clients, n_items, mean = match.groups()
    return int(n_clients), int(n_items), None if mean is None else int(mean)


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


class _World(NamedTuple):
    """What clients choose from, and how they do."""

    name: str
    rng: np.random.Generator
    log_popularity: np.ndarray
    clients: np.ndarray
    factors: np.ndarray
    lengths: np.ndarray


def _world(
    n_clients: int,
    n_items: int,
    mean_interactions: float,
    dim: int,
    popularity_exponent: float,
    seed: int,
    name: str | None,
) -> _World:
    name = name or f"synthetic-{n_clients}x{n_items}"
    _check(name, n_clients, n_items, mean_interactions, dim, popularity_exponent, seed)
    rng = np.random.default_rng(seed)
    # Logarithms throughout: a steep power law underflows.
    log_popularity = -popularity_exponent * np.log(1.0 + rng.permutation(n_items))
    clients = rng.standard_normal((n_clients, dim), np.float32)
    factors = rng.standard_normal((n_items, dim), np.float32) * np.float32(_TASTE / dim**0.5)
    lengths = _lengths(rng, n_clients, n_items, mean_interactions)
    return _World(name, rng, log_popularity, clients, factors, lengths)


def _lengths(
    rng: np.random.Generator, n_clients: int, n_items: int, mean_interactions: float
) -> np.ndarray:
    """History lengths, int64 [U]."""
    location = np.log(mean_interactions) - _LENGTH_SIGMA**2 / 2
    drawn = np.rint(rng.lognormal(location, _LENGTH_SIGMA, n_clients))
    return np.clip(drawn, _SHORTEST, n_items // 2).astype(np.int64)


def _choices(world: _World) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of clients: their lengths, and their distinct items in the order of choice, int32.

    Sampling without replacement by Gumbel top-k: the items with the largest log-odds plus
    Gumbel noise win, in that order.
    """
    n_clients, n_items = len(world.clients), len(world.log_popularity)
    log_popularity = world.log_popularity.astype(np.float32)
    rows = max(1, _CHUNK_KEYS // n_items)
    shapes = [(min(rows, n_clients - i), n_items) for i in range(0, n_clients, rows)]
    # One thread draws, a chunk ahead, so that draws keep their order.
    with ThreadPoolExecutor(1) as thread:
        noise = thread.submit(world.rng.standard_exponential, shapes[0], np.float32)
        for i, start in enumerate(range(0, n_clients, rows)):
            drawn = noise.result()
            if i + 1 < len(shapes):
                noise = thread.submit(world.rng.standard_exponential, shapes[i + 1], np.float32)
            keys = world.clients[start : start + rows] @ world.factors.T
            keys += log_popularity
            # The logarithm of an exponential draw is a negated Gumbel draw, in single precision.
            # A draw of exactly 0 makes its item win, as it should.
            with np.errstate(divide="ignore"):
                keys -= np.log(drawn, out=drawn)
            chosen = world.lengths[start : start + rows]
            yield chosen, _largest(keys, chosen)


def _largest(keys: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The positions of each row's `chosen` largest keys, the largest first, int32 [their sum]."""
    if keys.shape[1] >= _MANY_ITEMS:
        return np.concatenate([_above(row, int(n)) for row, n in zip(keys, chosen, strict=True)])
    longest = int(chosen.max())
    winners = np.argpartition(-keys, longest - 1, axis=1)[:, :longest]
    order = np.argsort(-np.take_along_axis(keys, winners, axis=1), axis=1)
    ranked = np.take_along_axis(winners, order, axis=1).astype(np.int32)
    return ranked[np.arange(longest) < chosen[:, None]]


def _above(keys: np.ndarray, n: int) -> np.ndarray:
    """`_largest` of one long row: of the few keys above a threshold that leaves enough."""
    some = keys[::_STRIDE]
    # Items are in random order, so this leaves about twice as many as are needed.
    place = min(2 * n // _STRIDE + 8, len(some))
    few = np.flatnonzero(keys >= np.partition(some, len(some) - place)[len(some) - place])
    if len(few) < n:
        few = np.argpartition(-keys, n - 1)[:n]
    return few[np.argsort(-keys[few])[:n]].astype(np.int32)


def _times(rng: np.random.Generator, offsets: np.ndarray) -> np.ndarray:
    """Seconds, int64 [nnz], rising within each client by an hour on average."""
    gaps = 1 + rng.exponential(_MEAN_GAP, offsets[-1]).astype(np.int64)
    elapsed = np.cumsum(gaps)
    before = np.concatenate([[0], elapsed])[offsets[:-1]]
    return _FIRST_SECOND + elapsed - np.repeat(before, np.diff(offsets))
