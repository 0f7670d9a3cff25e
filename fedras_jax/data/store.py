"""Interactions on disk: memory-mapped columns, for more clients than memory holds.

    STORE/meta.json       what the store is and how large its files are, written last
    STORE/offsets.npy     int64 [U+1], client u trains on `item[offsets[u]:offsets[u + 1]]`
    STORE/item.npy        int32 [nnz], training items, each client's distinct and ascending
    STORE/valid.npy       int32 [U], validation items, -1 for none
    STORE/test.npy        int32 [U], test items, -1 for none
    STORE/client_ids.npy  [U], the source's own user ids (int64 or text)
    STORE/item_ids.npy    [M], the source's own item ids

The columns are those of a `Split`. A store is written beside its place, in `STORE.partial`, and
moved there when it is whole: what is cut short is never taken for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from fedras_jax.data.places import LOCK, alone, can_write, room
from fedras_jax.data.split import (
    CANDIDATES,
    Split,
    draw_unseen,
    generator_of,
    items_at,
    padded,
    positions,
    training,
)
from fedras_jax.errors import DataError

FORMAT, VERSION = "fedras_jax.store", 2
_META = "meta.json"
_TYPES = {"offsets": "<i8", "item": "<i4", "valid": "<i4", "test": "<i4"}
_IDS = ("client_ids", "item_ids")
# Bytes a client of a store, its items aside.
CLIENT_BYTES = 48


@dataclass(frozen=True, eq=False)
class Store:
    """A store that has been opened.

    Attributes:
        path: its folder.
        name: the dataset's name.
        offsets: int64 [U+1], in memory.
        items, valid, test: the other columns, memory-mapped.
        client_ids, item_ids: the source's own ids, memory-mapped.
        made: how it was made: the filters and the split's settings; `timed`, whether held-out
            items are the last in time, or drawn with `data_seed` (None: not known).
        digest: SHA-256 of all that its columns hold, taken as they were written.
    """

    path: Path
    name: str
    offsets: np.ndarray
    items: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    client_ids: np.ndarray
    item_ids: np.ndarray
    made: Mapping[str, Any]
    digest: str

    @property
    def n_clients(self) -> int:
        """U, the number of clients."""
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        """M, the number of items."""
        return len(self.item_ids)

    def gather(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some clients' training items, one after another.

        Args:
            clients: [n] indices.

        Returns:
            int64 [n+1] offsets, and int32 items.

        Raises:
            DataError: items that are out of range or do not ascend: the file is damaged.
        """
        begins = self.offsets[clients]
        lengths = self.offsets[clients + 1] - begins
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        items = self.items[np.repeat(begins - offsets[:-1], lengths) + np.arange(offsets[-1])]
        firsts = np.zeros(len(items) + 1, bool)
        firsts[offsets[:-1]] = True
        rising = np.diff(items, prepend=-1) > 0
        if items.size and not (items.min() >= 0 and items.max() < self.n_items):
            raise DataError(f"{self.path}: item.npy is damaged: expected 0..{self.n_items - 1}.")
        if not (rising | firsts[:-1]).all():
            raise DataError(f"{self.path}: item.npy is damaged: a client's items do not ascend.")
        return offsets, items

    def seen(self, clients: np.ndarray) -> np.ndarray:
        """All interactions of some clients, held-out ones first, int32 [n, h]; -1 pads."""
        return padded(*self.gather(clients), self.valid[clients], self.test[clients])

    def candidates(self, clients: np.ndarray, n: int, seed: int) -> np.ndarray:
        """Items that some clients' test items are ranked against, as `leave_one_out` draws them.

        Args:
            clients: [k] indices.
            n: how many for each.
            seed: of the draws.

        Returns:
            int32 [k, n]; -1 pads, and fills the rows of clients without a test item.
        """
        drawn = np.full((len(clients), n), -1, np.int32)
        offsets, items = self.gather(clients)
        valid, test = self.valid[clients], self.test[clients]
        for i in np.flatnonzero(test >= 0).tolist():
            generator = generator_of(seed, int(clients[i]), CANDIDATES)
            own = items[offsets[i] : offsets[i + 1]]
            held_out = [item for item in (valid[i], test[i]) if item >= 0]
            row = draw_unseen(np.append(own, held_out), self.n_items, n, generator)
            drawn[i, : len(row)] = row
        return drawn

    def split(self, *, candidates: int = 0, seed: int = 0) -> Split:
        """All of it in memory, as `leave_one_out` gives it.

        Args:
            candidates: drawn items to rank a test item against; 0 for all items.
            seed: of the draws.
        """
        everyone = np.arange(self.n_clients)
        return Split(
            name=self.name,
            n_clients=self.n_clients,
            n_items=self.n_items,
            offsets=self.offsets,
            items=np.array(self.items),
            valid=np.array(self.valid),
            test=np.array(self.test),
            candidates=self.candidates(everyone, candidates, seed) if candidates else None,
            n_not_evaluated=int(np.count_nonzero(self.test < 0)),
        )


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether a folder claims to be a store; `open_store` says whether it is a whole one."""
    return (Path(path) / _META).is_file()


def is_of_store(names: Iterable[str]) -> bool:
    """Whether files have the names of those of a store."""
    return {_META, *(f"{column}.npy" for column in _TYPES)} <= set(names)


def open_store(path: str | os.PathLike[str]) -> Store:
    """Opens a store; of its items nothing is read yet.

    Raises:
        DataError: no store, one of another version, or files that are not those that were written.
    """
    path = Path(path)
    meta = _meta(path)
    columns = {name: _column(path, name, about) for name, about in meta["columns"].items()}
    offsets = np.array(columns["offsets"])
    nnz = len(columns["item"])
    if offsets[0] != 0 or offsets[-1] != nnz or np.any(np.diff(offsets) < 0):
        raise DataError(
            f"{path}: offsets.npy is damaged: expected offsets that rise from 0 to {nnz}."
        )
    n_items = len(columns["item_ids"])
    for name in ("valid", "test"):
        if not ((columns[name] >= -1) & (columns[name] < n_items)).all():
            raise DataError(f"{path}: {name}.npy is damaged: expected -1..{n_items - 1}.")
    return Store(
        path=path,
        name=meta["name"],
        offsets=offsets,
        items=columns["item"],
        valid=columns["valid"],
        test=columns["test"],
        client_ids=columns["client_ids"],
        item_ids=columns["item_ids"],
        made=meta["made"],
        digest=_digest(meta["columns"]),
    )


def _meta(path: Path) -> dict[str, Any]:
    """What `meta.json` says, if it can be believed."""
    if not path.exists():
        raise DataError(f"{path}: no such store.")
    if not is_store(path):
        raise DataError(
            f"{path}: expected a store, found no {_META}, which is written last: make it with "
            "python -m experiments.convert."
        )
    try:
        meta = json.loads((path / _META).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path / _META}: cannot be read ({error}); make the store again."
        ) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"{path / _META}: expected the format {FORMAT!r}; this is no store.")
    if meta.get("version") != VERSION:
        raise DataError(
            f"{path}: expected a store of version {VERSION}, found {meta.get('version')}; convert "
            "its source again, or use the release that made it."
        )
    if meta.get("digest") != _digest(meta):
        raise DataError(f"{path / _META}: is not as it was written; make the store again.")
    return meta


def _digest(meta: Mapping[str, Any]) -> str:
    """SHA-256 over what `meta.json` says besides it, sizes and digests of the columns among it."""
    rest = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _column(path: Path, name: str, about: Mapping[str, Any]) -> np.ndarray:
    """A column, memory-mapped."""
    file = path / f"{name}.npy"
    try:
        size = file.stat().st_size
        if size != about["bytes"]:
            raise DataError(
                f"{file}: expected {about['bytes']} bytes, found {size}: it was cut short or "
                "changed; make the store again."
            )
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: cannot be read ({error}); make the store again.") from error
    if list(found.shape) != about["shape"] or found.dtype.str != about["dtype"]:
        raise DataError(
            f"{file}: expected {about['dtype']} {about['shape']}, found {found.dtype.str} "
            f"{list(found.shape)}: it is another store's; make the store again."
        )
    return np.asarray(found)  # the map, without a subclass that makes slicing slow


class _Column:
    """A .npy file that grows: its header is written again when its length is known."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self.length = 0
        self._sha = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")
        self._write_header()
        self._header = self._file.tell()

    def _write_header(self) -> None:
        about = {
            "descr": npy.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.length,),
        }
        npy.write_array_header_1_0(self._file, about)  # leaves room for any length

    def append(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, self._dtype)
        values.tofile(self._file)
        self._sha.update(values.tobytes())
        self.length += len(values)

    def close(self, *, whole: bool) -> dict[str, Any]:
        if self._file.closed:
            return {}
        with self._file:
            if not whole:
                return {}
            self._file.seek(0)
            self._write_header()
            assert self._file.tell() == self._header
            self._file.flush()
            os.fsync(self._file.fileno())
            size = os.fstat(self._file.fileno()).st_size
        about = {"dtype": self._dtype.str, "shape": [self.length], "bytes": size}
        return about | {"sha256": self._sha.hexdigest()}


class Writer:
    """Writes a store, some clients at a time; from `writing`."""

    def __init__(self, folder: Path, *, timed: bool, validation: bool, seed: int) -> None:
        """Into a folder that exists; the settings are those of `leave_one_out`."""
        self._folder, self._timed = folder, timed
        self._validation, self._seed = validation, seed
        self._clients, self._end = 0, 0
        self._columns = {n: _Column(folder / f"{n}.npy", t) for n, t in _TYPES.items()}
        self._columns["offsets"].append(np.zeros(1, np.int64))

    def add(self, lengths: np.ndarray, items: np.ndarray) -> None:
        """The next clients, with all of their interactions.

        Args:
            lengths: [u], interactions of each.
            items: int [sum of lengths], distinct within a client, in time order.
        """
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        held_out = positions(
            offsets,
            timed=self._timed,
            validation=self._validation,
            seed=self._seed,
            first=self._clients,
        )
        test, valid = (items_at(items, at) for at in held_out)
        offsets, items = training(offsets, items, *held_out)
        self.add_split(offsets, items, valid, test)

    def add_split(
        self, offsets: np.ndarray, items: np.ndarray, valid: np.ndarray, test: np.ndarray
    ) -> None:
        """The next clients, as a `Split` has them."""
        self._columns["offsets"].append(self._end + offsets[1:])
        for name, values in (("item", items), ("valid", valid), ("test", test)):
            self._columns[name].append(values)
        self._clients += len(test)
        self._end += len(items)

    def finish(
        self, name: str, client_ids: np.ndarray, item_ids: np.ndarray, made: Mapping[str, Any]
    ) -> None:
        """All clients are there; the store is whole after this."""
        assert len(client_ids) == self._clients
        for column, ids in zip(_IDS, (client_ids, item_ids), strict=True):
            self._columns[column] = _Column(self._folder / f"{column}.npy", ids.dtype.str)
            self._columns[column].append(ids)
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "name": name,
            "clients": self._clients,
            "items": len(item_ids),
            "interactions": self._end,
            "made": {
                "timed": self._timed,
                "validation": self._validation,
                "data_seed": self._seed,
                **made,
            },
            "columns": {n: column.close(whole=True) for n, column in self._columns.items()},
        }
        part = self._folder / f"{_META}.part"
        with part.open("w") as file:
            json.dump(meta | {"digest": _digest(meta)}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._folder / _META)

    def close(self) -> None:
        """Gives files back that are still open."""
        for column in self._columns.values():
            column.close(whole=False)


@contextlib.contextmanager
def writing(
    path: str | os.PathLike[str],
    *,
    timed: bool = True,
    validation: bool = True,
    seed: int = 0,
    expected_bytes: int = 0,
) -> Iterator[Writer]:
    """A writer of the store at `path`, which is there when the block ends and not before.

    Args:
        path: a place where nothing is yet.
        timed, validation, seed: of the split: see `leave_one_out`.
        expected_bytes: about how large the store becomes, to be told at once if it does not fit.

    Raises:
        DataError: something is there already, the disk has no room, or it cannot be written.
    """
    path = Path(path)
    vacant(path)
    partial = path.with_name(path.name + ".partial")
    own = {f"{name}.npy" for name in (*_TYPES, *_IDS)} | {_META, f"{_META}.part"}
    with can_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        room(path.parent, expected_bytes)
    with alone(partial, lambda name: name in own), can_write(path):
        writer = Writer(partial, timed=timed, validation=validation, seed=seed)
        try:
            yield writer
        finally:
            writer.close()
        partial.rename(path)
    (path / LOCK).unlink(missing_ok=True)


def write_split(
    path: str | os.PathLike[str],
    split: Split,
    *,
    client_ids: np.ndarray | None = None,
    item_ids: np.ndarray | None = None,
) -> Store:
    """A store of a split that is in memory.

    Args:
        path: a place where nothing is yet.
        split: what to write; its candidates are not kept.
        client_ids, item_ids: the source's own; numbers from 0 when None.

    Raises:
        DataError: as in `writing`.
    """
    clients = np.arange(split.n_clients) if client_ids is None else client_ids
    items = np.arange(split.n_items) if item_ids is None else item_ids
    validation = bool((split.valid >= 0).any())
    with writing(path, validation=validation) as writer:
        writer.add_split(split.offsets, split.items, split.valid, split.test)
        writer.finish(split.name, clients, items, {"data_seed": None})
    return open_store(path)


def vacant(path: Path) -> None:
    """Whether nothing is at a place.

    Raises:
        DataError: something is.
    """
    if path.exists():
        what = "a store" if is_store(path) else "something else"
        raise DataError(f"{path}: already holds {what}; choose another place, or remove it first.")
