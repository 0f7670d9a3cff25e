"""Interactions drawn from a model: any size, heavy-tailed popularity, tastes to be learned."""

import os
import re
from collections.abc import Callable, Iterator
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
# Groups of items that share latent factors: what a client costs apart from its choices.
_GROUPS = 1 << 10
# Proposals, keys or odds of groups at a time: bounds the working memory, at about 100 bytes each.
_CHUNK = 1 << 20
# A client makes so many times its length plus `_MORE` proposals, and twice as many where those are
# too few; where that would take as long as keys of all items, keys are drawn instead.
_PROPOSALS, _MORE, _KEYS_A_PROPOSAL = 2, 4, 4
# Bits of chances in fixed point: with the row or group in the 16 above, one table serves all.
_FRACTION = 48
_GOLDEN, _MIX = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
# Numbers of a client's stream from here on belong to keys, those below to proposals.
_FIRST_KEY = 1 << 63
# Of what has been chosen before the keys: above any of them, and exact when ranks are taken off.
_AHEAD = 1e15
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
    score being the product of u's and the item's latent factors with standard deviation 2. Up to
    1,024 items each have factors of their own; more are dealt at random to 1,024 groups of the
    same size, give or take one, and the items of a group share its factors. The number of choices
    is lognormal (σ = 1), clipped to [3, n_items / 2], so the realised mean lies off
    `mean_interactions` where that is near either end.

    A client takes time in proportion to its choices and the groups; or to all items, where it
    chooses so many, or so few have a chance, that most draws would repeat earlier ones.

    Memory beyond the result is bounded: about 100 MiB, and 100 bytes an item. The same arguments
    give the same interactions, whatever the chunks.

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
    """What clients choose from, and how they do: G groups of W items, or of W - 1 and a gap."""

    name: str
    rng: np.random.Generator
    lengths: np.ndarray  # int64 [U]
    clients: np.ndarray  # float32 [U, dim]
    streams: np.ndarray  # uint64 [U], the clients' seeds
    factors: np.ndarray  # [dim, G]
    items: np.ndarray  # int32 [G, W], -1 for a gap
    log_popularity: np.ndarray  # [G, W], -inf for a gap
    log_total: np.ndarray  # [G], of the popularity in a group
    table: np.ndarray  # uint64 [G W], `_table` of the items in groups


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
    n_groups = min(n_items, _GROUPS)
    gaps = -n_items % n_groups
    items = np.append(rng.permutation(n_items), np.full(gaps, -1)).astype(np.int32)
    # Logarithms throughout: a steep power law underflows.
    log_popularity = -popularity_exponent * np.log(1.0 + rng.permutation(n_items))
    log_popularity = np.append(log_popularity, np.full(gaps, -np.inf)).reshape(-1, n_groups).T
    most = log_popularity.max(1)
    return _World(
        name=name,
        rng=rng,
        lengths=_lengths(rng, n_clients, n_items, mean_interactions),
        clients=rng.standard_normal((n_clients, dim), np.float32),
        streams=rng.integers(1 << 64, size=n_clients, dtype=np.uint64),
        factors=rng.standard_normal((dim, n_groups)) * (_TASTE / dim**0.5),
        items=items.reshape(-1, n_groups).T.copy(),
        log_popularity=log_popularity.copy(),
        log_total=most + np.log(np.exp(log_popularity - most[:, None]).sum(1)),
        table=_table(log_popularity),
    )


def _lengths(
    rng: np.random.Generator, n_clients: int, n_items: int, mean_interactions: float
) -> np.ndarray:
    """History lengths, int64 [U]."""
    location = np.log(mean_interactions) - _LENGTH_SIGMA**2 / 2
    drawn = np.rint(rng.lognormal(location, _LENGTH_SIGMA, n_clients))
    return np.clip(drawn, _SHORTEST, n_items // 2).astype(np.int64)


def _choices(world: _World) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of clients: their lengths, and their distinct items in the order of choice, int32."""
    everyone = np.arange(len(world.clients))
    for who in _pieces(everyone, _cost(world, _PROPOSALS * (world.lengths + _MORE))):
        yield world.lengths[who], _chosen(world, who, _PROPOSALS, 0)


def _chosen(world: _World, who: np.ndarray, times: int, before: int) -> np.ndarray:
    """Items of clients `who` in the order of choice, int32 [sum of their lengths].

    Proposals are independent, each item's chance in proportion to its odds; the first of them that
    differ are draws without replacement. A client's proposals are always the same, so one with too
    few that differ starts anew with more. Where these would take too long its further choices are
    made by keys, which is the same law: what is left is chosen with odds that do not depend on how
    the choices before it were made.

    Args:
        times: proposals of a client, as a multiple of its length plus `_MORE`.
        before: the multiple that has been too few, 0 for none.
    """
    lengths = world.lengths[who]
    starts = np.cumsum(lengths) - lengths
    chosen = np.empty(lengths.sum(), np.int32)

    def put(rows: np.ndarray, items: np.ndarray) -> None:
        chosen[np.repeat(starts[rows], lengths[rows]) + _counted(lengths[rows])] = items

    proposals = times * (lengths + _MORE)
    long = proposals * _KEYS_A_PROPOSAL > world.items.size
    for rows in _pieces(np.flatnonzero(long), np.full(long.sum(), world.items.size)):
        put(rows, _by_keys(world, who[rows], before * (lengths[rows] + _MORE)))
    lacking = []
    short = np.flatnonzero(~long)
    for rows in _pieces(short, _cost(world, proposals[short])):
        row, place = _proposed(world, who[rows], proposals[rows])
        found = np.bincount(row, minlength=len(rows))
        enough = found >= lengths[rows]
        kept = enough[row] & (_counted(found) < lengths[rows][row])
        put(rows[enough], world.items.ravel()[place[kept]])
        lacking.append(rows[~enough])
    again = np.concatenate([short[:0], *lacking])
    if len(again):
        put(again, _chosen(world, who[again], 2 * times, times))
    return chosen


def _proposed(
    world: _World, who: np.ndarray, proposals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The first so many proposals of clients `who`, without those that repeat an earlier one.

    Returns:
        The row in `who` and the place in `world.items` of each, in order.
    """
    n_groups, width = world.items.shape
    row = np.repeat(np.arange(len(who)), proposals)
    numbers = 2 * _counted(proposals).astype(np.uint64)
    streams = world.streams[who][row]
    groups = _table(_log_odds(world, who)).searchsorted(_sought(row, streams, numbers), "right")
    groups -= row * n_groups
    numbers += np.uint64(1)
    place = world.table.searchsorted(_sought(groups, streams, numbers), "right")
    # Sorted by row, place and number, the first of each row and place is the one to keep.
    n = np.uint64(len(row))
    keys = (row * (n_groups * width) + place).astype(np.uint64) * n
    keys += np.arange(len(row), dtype=np.uint64)
    keys.sort()
    pairs, at = np.divmod(keys, n)
    first = np.zeros(len(row), bool)
    first[at[np.flatnonzero(np.diff(pairs, prepend=~np.uint64(0)))]] = True
    return row[first], place[first]


def _by_keys(world: _World, who: np.ndarray, proposals: np.ndarray) -> np.ndarray:
    """The choices of clients `who`: what differs among their proposals, and then by keys, int32.

    Gumbel top-k: the items with the largest log-odds plus Gumbel noise win, in that order.
    """
    lengths = world.lengths[who]
    numbers = np.arange(_FIRST_KEY, _FIRST_KEY + world.items.size, dtype=np.uint64)
    uniform = (_bits(world.streams[who][:, None], numbers) >> np.uint64(12)) + 0.5
    keys = -np.log(-np.log(uniform * 2.0**-52))
    keys += np.repeat(_log_odds(world, who) - world.log_total, world.items.shape[1], axis=1)
    keys += world.log_popularity.ravel()
    if proposals.any():
        row, place = _proposed(world, who, proposals)
        # Ahead of all keys, in order.
        keys[row, place] = _AHEAD - _counted(np.bincount(row, minlength=len(who)))
    longest = int(lengths.max())
    np.negative(keys, out=keys)
    winners = np.argpartition(keys, longest - 1, axis=1)[:, :longest]
    order = np.argsort(np.take_along_axis(keys, winners, axis=1), axis=1)
    ranked = np.take_along_axis(winners, order, axis=1)
    return world.items.ravel()[ranked[np.arange(longest) < lengths[:, None]]]


def _log_odds(world: _World, who: np.ndarray) -> np.ndarray:
    """Of the groups, for clients `who`: [clients, G].

    Not by BLAS, whose rounding varies with the shape, and whose threads lose time on a few factors.
    """
    scores = np.einsum("ud,dg->ug", world.clients[who].astype(float), world.factors)
    return scores + world.log_total


def _table(log_odds: np.ndarray) -> np.ndarray:
    """The cumulative chances of rows of odds, [rows, n], one row after the other: uint64 [rows n].

    An entry is where it ends in fixed point, the row in front, so that `_sought` finds it.
    """
    up_to = np.exp(log_odds - log_odds.max(1, keepdims=True))
    np.cumsum(up_to, axis=1, out=up_to)
    up_to /= up_to[:, -1:].copy()
    up_to *= 1 << _FRACTION
    table = up_to.astype(np.uint64)
    table += np.arange(len(table), dtype=np.uint64)[:, None] << np.uint64(_FRACTION)
    return table.ravel()


def _sought(rows: np.ndarray, streams: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """What to look for in a `_table`: a chance behind each row."""
    chances = _bits(streams, numbers) >> np.uint64(64 - _FRACTION)
    return chances | rows.astype(np.uint64) << np.uint64(_FRACTION)


def _bits(streams: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """64 random bits for each number of a stream: SplitMix64 (Steele, Lea & Flood 2014)."""
    bits = streams + (numbers + np.uint64(1)) * np.uint64(_GOLDEN)
    for shift, factor in _MIX:
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return bits


def _counted(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... for each count, one after the other: int64 [sum]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _cost(world: _World, proposals: np.ndarray) -> np.ndarray:
    """Of clients in a chunk; at least so many that rows fit in front of fractions."""
    return np.maximum(proposals, max(len(world.items), _CHUNK >> (64 - _FRACTION - 1)))


def _pieces(rows: np.ndarray, cost: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts rows into pieces that cost about `_CHUNK`, and no more than that and one of them."""
    if len(rows):
        chunk = np.cumsum(cost) // _CHUNK
        yield from np.split(rows, 1 + np.flatnonzero(np.diff(chunk)))


def _times(rng: np.random.Generator, offsets: np.ndarray) -> np.ndarray:
    """Seconds, int64 [nnz], rising within each client by an hour on average."""
    gaps = 1 + rng.exponential(_MEAN_GAP, offsets[-1]).astype(np.int64)
    elapsed = np.cumsum(gaps)
    before = np.concatenate([[0], elapsed])[offsets[:-1]]
    return _FIRST_SECOND + elapsed - np.repeat(before, np.diff(offsets))
