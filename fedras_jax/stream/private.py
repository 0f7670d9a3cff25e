"""What clients keep to themselves between their rounds: on the device, on the host or on disk.

A row is a client's: its private parameters, its codec's state, and the round whose public table it
holds. Wherever rows lie, a segment takes those of its clients and puts them back.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Sharding

from fedras_jax import hosts
from fedras_jax.errors import ResultsError
from fedras_jax.types import Array, PyTree

FOLDER = "private"
# Rows of the first state that are drawn at once.
BLOCK = 1 << 16


class Rows(Protocol):
    """All clients' rows."""

    def take(self, clients: np.ndarray, slots: int, part: str | None = None) -> PyTree:
        """Rows of distinct clients i64[n], on the device in the first of `slots` places.

        Of all that a row has; or of one part of it.
        """
        ...

    def put(self, clients: np.ndarray, rows: PyTree) -> None:
        """Their rows after a segment, in the same places."""
        ...

    def all(self) -> PyTree:
        """Every row, on the host."""
        ...


class OnDevice:
    """Rows that stay on a device, the first one."""

    def __init__(self, rows: PyTree, sharding: Sharding | None) -> None:
        """Of host arrays with leading axis U; what is taken has the sharding."""
        self._home = jax.local_devices()[0]
        self._rows = jax.device_put(rows, self._home)
        self._sharding = sharding
        self._take = jax.jit(lambda rows, at: jax.tree.map(lambda x: x[at], rows))
        self._put = jax.jit(
            lambda rows, at, new: jax.tree.map(
                lambda x, y: x.at[at].set(y, mode="drop"), rows, new
            ),
            donate_argnums=0,
        )

    def _at(self, clients: np.ndarray, slots: int) -> Array:
        n = jax.tree.leaves(self._rows)[0].shape[0]
        padded = np.full(slots, n, np.int32)
        padded[: len(clients)] = clients
        return jax.device_put(padded, self._home)

    def take(self, clients: np.ndarray, slots: int, part: str | None = None) -> PyTree:
        rows = self._rows if part is None else self._rows[part]
        return hosts.put(self._take(rows, self._at(clients, slots)), self._sharding)

    def put(self, clients: np.ndarray, rows: PyTree) -> None:
        slots = jax.tree.leaves(rows)[0].shape[0]
        rows = jax.device_put(hosts.own(rows), self._home)
        self._rows = self._put(self._rows, self._at(clients, slots), rows)

    def all(self) -> PyTree:
        return jax.tree.map(np.asarray, self._rows)


class OnHost:
    """Rows in arrays of the host, which may be mapped from files."""

    def __init__(self, rows: PyTree, sharding: Sharding | None) -> None:
        """Of host arrays with leading axis U, which are written to."""
        self._rows, self._sharding = rows, sharding

    def take(self, clients: np.ndarray, slots: int, part: str | None = None) -> PyTree:
        def some(x: np.ndarray) -> np.ndarray:
            found = np.zeros((slots, *x.shape[1:]), x.dtype)
            found[: len(clients)] = x[clients]
            return found

        rows = self._rows if part is None else self._rows[part]
        return hosts.put(jax.tree.map(some, rows), self._sharding)

    def put(self, clients: np.ndarray, rows: PyTree) -> None:
        def write(x: np.ndarray, new: Array) -> None:
            x[clients] = np.asarray(new)[: len(clients)]

        jax.tree.map(write, self._rows, rows)

    def all(self) -> PyTree:
        return self._rows


def keep(
    where: str,
    n_clients: int,
    block: Callable[[int], PyTree],
    *,
    sharding: Sharding | None = None,
    folder: Path | None = None,
) -> Rows:
    """All clients' first rows.

    Args:
      where: 'device', 'host' or 'disk'.
      n_clients: U.
      block: first client -> rows of the next `BLOCK` clients, on the host; those beyond U are
        dropped.
      sharding: of what is on the device.
      folder: for 'disk', the run's: rows lie in its folder `private`, an .npy file each array.

    Raises:
      ResultsError: the disk has no room.
    """
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((n_clients, *x.shape[1:]), x.dtype), block(0)
    )
    if where == "disk":
        assert folder is not None
        rows = _mapped(folder / FOLDER, shapes)
    else:
        if folder is not None:  # of an earlier call with less memory
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
        rows = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
    for first in range(0, n_clients, BLOCK):
        n = min(BLOCK, n_clients - first)

        def write(x, y, first=first, n=n):
            x[first : first + n] = y[:n]

        jax.tree.map(write, rows, block(first))
    return OnDevice(rows, sharding) if where == "device" else OnHost(rows, sharding)


def _mapped(folder: Path, shapes: PyTree) -> PyTree:
    """Arrays in files whose place on the disk is taken: a full disk would kill the process."""

    def make(path, about):
        name = jax.tree_util.keystr(path, simple=True, separator="_")
        file = folder / f"{name}.npy"
        array = np.lib.format.open_memmap(file, mode="w+", dtype=about.dtype, shape=about.shape)
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        return array

    try:
        folder.mkdir(parents=True, exist_ok=True)
        return jax.tree_util.tree_map_with_path(make, shapes)
    except OSError as e:
        shutil.rmtree(folder, ignore_errors=True)  # it would keep the room that it got
        raise ResultsError(
            f"{folder} cannot hold the clients' private state ({e.strerror or e}): make room, "
            "choose another --workdir, or allow more --memory"
        ) from e
