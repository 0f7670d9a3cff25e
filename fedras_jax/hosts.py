"""Several processes, one on each host, that run one experiment together.

All run the same program on the same inputs, each on its own devices: what is on the host is the
same everywhere, and what is on devices is shared or repeated over all of them. Only the first
process has a folder: it writes and reads for all. Whatever only one process does, or each by
itself, ends on all of them in the same way (`from_first`, `together`), so that nobody waits for
one that has given up.

With a single process everything here is what it would be without.
"""

import contextlib
import functools
import os
import pickle
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from fedras_jax.errors import FedrasError, LostError, SpecError
from fedras_jax.types import PyTree

T = TypeVar("T")

# Bytes that are sent at once.
_PIECE = 1 << 26
_AXIS = "hosts"
# What XLA's collectives and JAX's service say when somebody is gone.
_GONE = re.compile(
    r"\bgloo\b|connection (closed|reset|refused)|heartbeat|coordination service|UNAVAILABLE|"
    r"unhealthy|nccl.*(abort|remote|system error)",
    re.IGNORECASE,
)


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_s: int = 100,
    initialization_timeout_s: int = 300,
) -> None:
    """Join the other processes; before anything else is asked of JAX.

    What is None is found out by JAX, under SLURM, Open MPI, Kubernetes and on TPUs.

    Args:
      coordinator_address: HOST:PORT of the first process, where all can reach it.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      heartbeat_timeout_s: seconds after which a process that is silent counts as dead, and all
        others end.
      initialization_timeout_s: seconds in which all must be there.

    If not all are there in time, the process ends with a message and `os.EX_TEMPFAIL`: JAX would
    abort it.

    Raises:
      SpecError: numbers out of range, a port in use, or JAX finds no cluster and not everything is
        given.
    """
    _check(coordinator_address, num_processes, process_id)
    for name, seconds in (
        ("heartbeat_timeout_s", heartbeat_timeout_s),
        ("initialization_timeout_s", initialization_timeout_s),
    ):
        if seconds < 1:
            raise SpecError(f"{name} must be at least 1, not {seconds}")
    if coordinator_address is not None and process_id == 0:
        _require_free(coordinator_address)
    try:
        with _at_most(initialization_timeout_s, coordinator_address):
            jax.distributed.initialize(
                coordinator_address,
                num_processes,
                process_id,
                initialization_timeout=initialization_timeout_s + 60,
                heartbeat_timeout_seconds=heartbeat_timeout_s,
                # Those who end wait for the others no longer than for one that is silent.
                shutdown_timeout_seconds=heartbeat_timeout_s,
            )
    except ValueError as e:
        given = {
            "coordinator_address": coordinator_address,
            "num_processes": num_processes,
            "process_id": process_id,
        }
        missing = [name for name, value in given.items() if value is None]
        if missing and "defined" in str(e):
            raise SpecError(
                "JAX finds no cluster here (SLURM, Open MPI, Kubernetes, TPU), so "
                f"{' and '.join(missing)} must be given"
            ) from e
        raise


@contextlib.contextmanager
def _at_most(seconds: int, address: str | None) -> Iterator[None]:
    """End this process where something takes longer."""

    def end() -> None:
        where = "" if address is None else f" at {address}"
        print(
            f"error: not all processes have come together{where} within {seconds} s: is each of "
            "them running, with a process_id of its own, and can it reach that address? "
            "(initialization_timeout_s sets the time)",
            file=sys.stderr,
        )
        sys.stderr.flush()
        os._exit(os.EX_TEMPFAIL)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _require_free(address: str) -> None:
    """Refuse a port on this host that is in use; JAX would crash.

    Raises:
      SpecError: it is.
    """
    port = int(address.rsplit(":", 1)[1])
    try:
        with socket.create_server(("", port), family=socket.AF_INET):
            pass
    except (OSError, OverflowError) as e:
        raise SpecError(
            f"coordinator_address={address}: this process cannot listen on port {port} ({e}): "
            "choose another, for all processes"
        ) from e


def _check(address: str | None, n: int | None, i: int | None) -> None:
    """Refuse what cannot be meant.

    Raises:
      SpecError: an address without a port, or numbers out of range.
    """
    if address is not None and not re.fullmatch(r".+:[1-9]\d{0,4}", address):
        raise SpecError(f"coordinator_address={address}: expected HOST:PORT")
    if n is not None and n < 1:
        raise SpecError(f"num_processes must be at least 1, not {n}")
    if i is not None and (i < 0 or (n is not None and i >= n)):
        most = "" if n is None else f" and below num_processes={n}"
        raise SpecError(f"process_id must be at least 0{most}, not {i}")


def count() -> int:
    """Processes."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process writes and shows."""
    return jax.process_index() == 0


class _Outcome(NamedTuple):
    """What became of a process's work: its value, or why there is none."""

    value: Any
    error: Exception | None


def _tried(make: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(make(), None)
    except Exception as e:
        return _Outcome(None, e)


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, on all of them; the others make nothing.

    Args:
      make: gives something that can be pickled, with arrays of the host.

    Raises:
      Whatever it raises, on all of them.
    """
    if count() == 1:
        return make()
    done = _tried(make) if is_first() else _Outcome(None, None)
    told = pickle.loads(_from_first(_pickled(done)))
    error = done.error or told.error
    if error is not None:
        raise error
    return done.value if is_first() else told.value


def together(make: Callable[[], T]) -> T:
    """What every process makes for itself; once one has failed, all of them fail.

    Raises:
      Whatever it raises, where it does; `FedrasError` with its message on the others.
    """
    if count() == 1:
        return make()
    done = _tried(make)
    told = [pickle.loads(each) for each in _from_all(_pickled(_Outcome(None, done.error)))]
    if done.error is not None:
        raise done.error
    for i, other in enumerate(told):
        if other.error is not None:
            ours = isinstance(other.error, FedrasError)
            kind, why = (
                (type(other.error), other.error) if ours else (FedrasError, repr(other.error))
            )
            raise kind(f"process {i} of {count()} has stopped: {why}")
    return done.value


def any_of(flag: bool) -> bool:
    """Whether it is so on any process."""
    return flag if count() == 1 else any(map(bool, _gathered(np.asarray([flag], np.uint8))))


def require_same(what: Mapping[str, Any]) -> None:
    """Refuse to go on where processes differ.

    Args:
      what: name -> value, the same names on all.

    Raises:
      SpecError: on all, with the first difference.
    """
    if count() == 1:
        return
    told: list[dict[str, Any]] = [pickle.loads(each) for each in _from_all(_pickled(dict(what)))]
    for i, other in enumerate(told):
        for name in told[0]:
            if other[name] != told[0][name]:
                raise SpecError(
                    f"processes differ: {name} is {_short(told[0][name])} on process 0 and "
                    f"{_short(other[name])} on process {i}: start all of them with the same "
                    "command, on the same data and versions"
                )


def put(tree: PyTree, sharding: PyTree) -> PyTree:
    """Host arrays, the same on all processes, on devices.

    Each process moves only what its own devices hold.

    Args:
      tree: arrays.
      sharding: one for all of them, or a tree of as many; None: the default device.
    """
    if all(place.is_fully_addressable for place in jax.tree.leaves(sharding)):
        return jax.device_put(tree, sharding)

    def one(x: Any, place: Sharding) -> jax.Array:
        x = np.asarray(x)
        x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
        return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

    if isinstance(sharding, Sharding):
        return jax.tree.map(lambda x: one(x, sharding), tree)
    return jax.tree.map(one, tree, sharding)


def put_parts(n: int, read: Callable[[int, int], np.ndarray], sharding: NamedSharding) -> jax.Array:
    """An array [n] that is dealt to all devices, of which each process reads its own parts.

    Args:
      n: its length, a multiple of the number of devices.
      read: (start, end) -> that part.
      sharding: of the leading axis over all devices.
    """

    def part(index: Any) -> np.ndarray:
        start, end, _ = index[0].indices(n)
        return read(start, end)

    return jax.make_array_from_callback((n,), sharding, part)


def own(tree: PyTree) -> PyTree:
    """What is the same on all devices, as it is on a device of this process."""
    return jax.tree.map(lambda x: x if x.is_fully_addressable else x.addressable_data(0), tree)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Says it in a sentence when another process is gone.

    Raises:
      LostError: what a collective raises then.
    """
    try:
        yield
    except FedrasError:
        raise
    except Exception as e:
        if count() == 1 or not _GONE.search(str(e)):
            raise
        raise LostError(
            f"process {jax.process_index()} of {count()} has lost another one, which has died or "
            f"cannot be reached ({_line(e)}): the same command on all of them goes on from the "
            "last checkpoint"
        ) from e


def started() -> bool:
    """Whether this process has been told of others."""
    return jax.distributed.is_initialized()


def leave(code: int) -> None:
    """End this process at once where others may be gone, for whom JAX would wait; else return."""
    if started():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _pickled(value: Any) -> bytes:
    try:
        told = pickle.dumps(value)
        if isinstance(value, _Outcome) and value.error is not None:
            pickle.loads(told)  # some exceptions can be written, and not be read
        return told
    except Exception as e:
        if isinstance(value, _Outcome) and value.error is not None:  # some exceptions cannot be
            return pickle.dumps(_Outcome(None, FedrasError(repr(value.error))))
        raise TypeError(f"what processes share must be picklable: {e}") from e


@functools.cache
def _hosts() -> NamedSharding:
    """An entry of the leading axis for each process, on the first of its devices."""
    firsts: dict[int, jax.Device] = {}
    for device in jax.devices():
        firsts.setdefault(device.process_index, device)
    mesh = Mesh(np.array([firsts[i] for i in sorted(firsts)]), (_AXIS,))
    return NamedSharding(mesh, PartitionSpec(_AXIS))


@functools.cache
def _on_all(fold: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    whole = NamedSharding(_hosts().mesh, PartitionSpec())
    return jax.jit(fold, out_shardings=whole)


def _itself(x: jax.Array) -> jax.Array:
    return x


def _sum(x: jax.Array) -> jax.Array:
    return x.sum(0, dtype=jnp.uint8)


def _stacked(x: np.ndarray) -> jax.Array:
    shape = (count(), *x.shape)
    return jax.make_array_from_process_local_data(_hosts(), x[None], shape)


def _gathered(x: np.ndarray) -> np.ndarray:
    """Every process's x, which have one shape, with a leading axis of processes."""
    return np.asarray(_on_all(_itself)(_stacked(x)))


def _lengths(data: bytes) -> list[int]:
    eight = np.frombuffer(len(data).to_bytes(8, "little"), np.uint8)
    return [int.from_bytes(each.tobytes(), "little") for each in _gathered(eight)]


def _room(n: int) -> int:
    """A size for n bytes, out of few, because each is compiled."""
    return min(_PIECE, 1 << max(n - 1, 255).bit_length())


def _padded(data: bytes, size: int) -> np.ndarray:
    padded = np.zeros(size, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return padded


def _from_all(data: bytes) -> list[bytes]:
    """Every process's bytes."""
    lengths = _lengths(data)
    size = 1 << max(max(lengths) - 1, 255).bit_length()
    found = _gathered(_padded(data, size))
    return [each[:n].tobytes() for each, n in zip(found, lengths, strict=True)]


def _from_first(data: bytes) -> bytes:
    """The first process's bytes."""
    n = _lengths(data)[0]
    size = _room(n)
    found = bytearray()
    for at in range(0, n, size):
        piece = _padded(data[at : at + size] if is_first() else b"", size)
        found += np.asarray(_on_all(_sum)(_stacked(piece))).tobytes()
    return bytes(found[:n])


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().split("\n")), "")[:200]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
