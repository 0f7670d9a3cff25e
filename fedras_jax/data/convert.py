"""From a ratings file of any size to a store, in bounded memory.

    1 count       a pass over the file: the ids of users and items, and the rows of each user
    2 partition   another one: rows go to temporary files, each for a range of users that fits
    3 thin out    repeats of a pair go, then what is not in the k-core, partition by partition
    4 write       held-out items come out, and each partition is appended to the store

The same rows count, in the same order, as when `read` and `leave_one_out` have all of them in
memory. What stays in memory throughout is the ids, and a few numbers for each user and item.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fedras_jax.data import store
from fedras_jax.data.columns import index_ids, integers_if_canonical
from fedras_jax.data.filters import drop_repeats
from fedras_jax.data.places import alone
from fedras_jax.data.sources import Chunk, Source, source
from fedras_jax.data.tables import Columns
from fedras_jax.errors import DataError

# Shares of the memory that is allowed: for the rows that are read at once, for those that are
# sorted at once, and for ids.
_READING, _SORTING, _IDS = 0.2, 0.6, 0.6
# Bytes of a row while repeats are sought: itself, an order, its pair, and the pairs' order.
_SORTED_BYTES = 160
# Ids with their counts are there twice while new ones are merged, and sorted.
_COPIES = 4
# Files that are open at once, at most.
_PARTITIONS = 500

# (what is done, how many of it, of how many or None)
Tell = Callable[[str, int, int | None], None]


def convert(
    path: str | os.PathLike[str],
    into: str | os.PathLike[str],
    *,
    columns: Columns | None = None,
    name: str | None = None,
    min_rating: float | None = None,
    k_core: int = 0,
    validation: bool = True,
    seed: int = 0,
    memory: float = 1.0,
    tell: Tell = lambda what, done, total: None,
) -> store.Store:
    """Converts a ratings file to a store that holds the split which `leave_one_out` gives of it.

    Args:
        path: a file, or a folder of parts: see `sources.source`.
        into: where the store goes; nothing may be there. Temporary files of 16 bytes a row lie
            beside it meanwhile.
        columns, name, min_rating, k_core: as in `read`.
        validation, seed: as in `leave_one_out`.
        memory: GiB that rows and ids may take.
        tell: called now and then with what is done.

    Raises:
        DataError: the source is malformed, filters leave nothing, memory does not suffice, or the
            store cannot be written.
    """
    found = source(path, columns=columns, name=name, rated=min_rating is not None)
    into = Path(into)
    if not 0 < memory < math.inf or k_core < 0 or seed < 0:
        raise DataError(
            f"{found.name}: expected memory above 0 and finite, k_core and seed of 0 or more; "
            f"found {memory}, {k_core} and {seed}."
        )
    allowed = int(memory * 2**30)
    store.vacant(into)  # said before an hour of reading
    seen = _count(found, min_rating, allowed, tell)
    n_users, n_items = len(seen.users.ids), len(seen.items.ids)
    with (
        store.writing(
            into,
            timed=seen.time is not None,
            validation=validation,
            seed=seed,
            expected_bytes=20 * seen.rows + store.CLIENT_BYTES * n_users,
        ) as writer,
        _temporary(into) as folder,
    ):
        parts = _partition(found, seen, min_rating, allowed, folder, tell)
        for i, part in enumerate(parts):
            _drop_repeats(part, seen)
            tell("repeats", i + 1, len(parts))
        users, items = _core(parts, n_users, n_items, k_core, found.name, tell)
        number = np.cumsum(items) - 1
        for i, part in enumerate(parts):
            user, item = part.pairs(users, items)
            lengths = np.bincount(user - part.first, minlength=part.end - part.first)
            writer.add(lengths[users[part.first : part.end]], number[item])
            tell("write", i + 1, len(parts))
        made = {"min_rating": min_rating, "k_core": k_core}
        writer.finish(found.name, seen.users.ids[users], seen.items.ids[items], made)
    return store.open_store(into)


class _Ids:
    """Distinct ids as they come, ascending, with the rows of each.

    Attributes:
        ids: int64 or text. Text that means integers is kept as such until some of it does not.
        counts: int64, rows of each.
    """

    def __init__(self, what: str) -> None:
        """Of 'user' or 'item', none yet."""
        self._what = what
        self.ids: np.ndarray = np.zeros(0, np.int64)
        self.counts = np.zeros(0, np.int64)
        self._integers = True

    def typed(self, chunk: Chunk) -> pa.Array:
        """A chunk's ids in the type that all have, as far as is known."""
        column: pa.Array = getattr(chunk, f"{self._what}s")
        if chunk.is_text and self._integers:
            column = integers_if_canonical(column)
        if pa.types.is_integer(column.type) == self._integers:
            return column
        if not self._integers or (len(self.ids) and not chunk.is_text):
            raise DataError(
                f"{chunk.where}: expected {self._what} ids of one type, found text in some files "
                "and integers in others."
            )
        # Only the usual spelling has become integers, so that it can be had back.
        self._integers = False
        texts = self.ids.astype(np.str_)
        order = np.argsort(texts)
        self.ids, self.counts = texts[order], self.counts[order]
        return column

    def add(self, chunk: Chunk, kept: np.ndarray) -> None:
        """Take in the kept rows of a chunk."""
        ids, index = index_ids(self.typed(chunk))
        counts = np.bincount(index[kept], minlength=len(ids))
        ids, counts = ids[counts > 0], counts[counts > 0]
        merged = np.union1d(self.ids, ids) if len(self.ids) else ids
        total = np.zeros(len(merged), np.int64)
        total[np.searchsorted(merged, self.ids)] += self.counts
        total[np.searchsorted(merged, ids)] += counts
        self.ids, self.counts = merged, total

    def index(self, chunk: Chunk, kept: np.ndarray) -> np.ndarray:
        """The numbers of a chunk's ids in its kept rows, int32."""
        ids, index = index_ids(self.typed(chunk).filter(pa.array(kept)))
        return np.searchsorted(self.ids, ids)[index].astype(np.int32)

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.counts.nbytes


class _Seen(NamedTuple):
    """What the first pass has found: ids, rows that count, and the type of their times, or None."""

    users: _Ids
    items: _Ids
    rows: int
    time: str | None


def _count(found: Source, min_rating: float | None, allowed: int, tell: Tell) -> _Seen:
    users, items = _Ids("user"), _Ids("item")
    rows, total, time = 0, 0, None
    low, high = np.inf, -np.inf
    for chunk in found.chunks(int(allowed * _READING)):
        kept = _kept(chunk, min_rating)
        users.add(chunk, kept)
        items.add(chunk, kept)
        needed = _COPIES * (users.nbytes + items.nbytes)
        if needed > allowed * _IDS:
            raise DataError(
                f"{chunk.where}: the ids of {len(users.ids):,} users and {len(items.ids):,} items "
                f"so far need {needed / _IDS / 2**30:.3g} GiB, and memory is "
                f"{allowed / 2**30:.3g} GiB; allow more."
            )
        if chunk.ratings is not None:
            low, high = min(low, chunk.ratings.min()), max(high, chunk.ratings.max())
        if chunk.times is not None:
            time = "<f8" if "<f8" in (time, chunk.times.dtype.str) else "<i8"
        total, rows = total + len(kept), rows + int(kept.sum())
        tell("count", total, None)
    if not rows:
        raise DataError(
            f"{found.name}: min_rating={min_rating} removed all {total} interactions; the ratings "
            f"run from {low} to {high}, lower it."
        )
    return _Seen(users, items, rows, time)


def _kept(chunk: Chunk, min_rating: float | None) -> np.ndarray:
    if min_rating is None:
        return np.ones(len(chunk.users), bool)
    if chunk.ratings is None:
        raise DataError(
            f"{chunk.where}: min_rating={min_rating} needs ratings and the source has none; leave "
            "min_rating out."
        )
    return chunk.ratings >= min_rating


@dataclass(frozen=True)
class _Part:
    """The rows of users `first` to `end`, in a file."""

    file: Path
    first: int
    end: int

    def pairs(self, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Its distinct pairs by user, then time; those of which both are still there."""
        user, item = np.fromfile(self.file, "<i4").reshape(2, -1)
        alive = users[user] & items[item]
        return user[alive], item[alive]


@contextlib.contextmanager
def _temporary(into: Path) -> Iterator[Path]:
    with alone(into.with_name(f"{into.name}.rows"), str.isdecimal) as folder:
        yield folder


def _row(time: str | None) -> np.dtype:
    return np.dtype([("user", "<i4"), ("item", "<i4"), *([("time", time)] if time else [])])


def _partition(
    found: Source, seen: _Seen, min_rating: float | None, allowed: int, folder: Path, tell: Tell
) -> list[_Part]:
    """All rows, each in the file of its user's range, in the order in which they come."""
    bounds = _bounds(seen, allowed, found.name)
    spans = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    parts = [_Part(folder / str(i), *span) for i, span in enumerate(spans)]
    done = 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(part.file.open("wb")) for part in parts]
        for chunk in found.chunks(int(allowed * _READING)):
            kept = _kept(chunk, min_rating)
            rows = np.empty(int(kept.sum()), _row(seen.time))
            rows["user"] = seen.users.index(chunk, kept)
            rows["item"] = seen.items.index(chunk, kept)
            if chunk.times is not None:
                rows["time"] = chunk.times[kept]
            part = np.searchsorted(bounds, rows["user"], side="right") - 1
            rows = rows[np.argsort(part, kind="stable")]
            ends = np.cumsum(np.bincount(part, minlength=len(parts)))
            for file, some in zip(files, np.split(rows, ends[:-1]), strict=True):
                some.tofile(file)
            done += len(rows)
            tell("partition", done, seen.rows)
    return parts


def _bounds(seen: _Seen, allowed: int, name: str) -> np.ndarray:
    """Ranges of users whose rows can be sorted at once: int64, from 0 to U."""
    ends = np.cumsum(seen.users.counts)
    most = max(int(allowed * _SORTING) // _SORTED_BYTES, 1)
    least = max(int(seen.users.counts.max()), -(-int(ends[-1]) // (_PARTITIONS // 2)))
    if most < least:
        raise DataError(
            f"{name}: {least:,} rows must be sorted at once, which needs "
            f"{least * _SORTED_BYTES / _SORTING / 2**30:.3g} GiB, and memory is "
            f"{allowed / 2**30:.3g} GiB; allow more."
        )
    bounds = [0]
    while bounds[-1] < len(ends):
        before = ends[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(int(np.searchsorted(ends, before + most, side="right")))
    return np.array(bounds)


def _drop_repeats(part: _Part, seen: _Seen) -> None:
    """In a partition's file, put its distinct pairs by user, then time, in place of its rows."""
    rows = np.fromfile(part.file, _row(seen.time))
    times = None if seen.time is None else rows["time"]
    user, item, _ = drop_repeats(
        rows["user"].astype(np.int64), rows["item"].astype(np.int64), times
    )
    np.concatenate([user, item]).astype("<i4").tofile(part.file)


def _core(
    parts: list[_Part], n_users: int, n_items: int, k: int, name: str, tell: Tell
) -> tuple[np.ndarray, np.ndarray]:
    """Which users and items are in the k-core, bool [U] and bool [M]."""
    users, items = np.ones(n_users, bool), np.ones(n_items, bool)
    while k > 1:
        of_users, of_items = np.zeros(n_users, np.int64), np.zeros(n_items, np.int64)
        for part in parts:
            user, item = part.pairs(users, items)
            of_users += np.bincount(user, minlength=n_users)
            of_items += np.bincount(item, minlength=n_items)
        done = int((~users).sum() + (~items).sum())
        tell("k-core", done, None)
        if not of_users.any():
            raise DataError(
                f"{name}: k_core={k} removed all interactions; no users and items have that many "
                "among themselves, lower it."
            )
        before = (users, items)
        users, items = of_users >= k, of_items >= k
        if all(np.array_equal(*both) for both in zip(before, (users, items), strict=True)):
            break
    return users, items
