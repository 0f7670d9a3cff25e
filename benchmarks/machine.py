"""What this machine is, and how fast it computes and moves bytes: measured, not looked up.

Peaks are those of all cores, or of the one GPU that JAX uses: the best of several tries, because
other work can only make a machine slower.
"""

import functools
import importlib
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedras_jax.data import load
from fedras_jax.errors import DataError, SpecError

TRIES = 7
# Smaller working sets would measure the call; larger ones are no cache's any more.
SMALLEST, LARGEST = 2**19, 2**28


class Need(NamedTuple):
    """What a bar is defined for, in words, and whether it is there."""

    what: str
    there: bool


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def on_gpu() -> bool:
    """Whether JAX computes on a GPU here."""
    return jax.default_backend() == "gpu"


def cpu_cores(n: int) -> Need:
    """So many cores, no fewer and no more, and no accelerator."""
    return Need(f"{n} CPU cores", jax.default_backend() == "cpu" and cores() == n)


def gpu(kind: str) -> Need:
    """A GPU of this kind: what its bars are defined for."""
    return Need(f"an {kind}", on_gpu() and kind in jax.devices()[0].device_kind)


def dataset(name: str, data_dir: str | None) -> Need:
    """A dataset that is here, without any download."""
    try:
        load(name, data_dir=data_dir, download=False)
    except DataError:
        return Need(name, False)
    return Need(name, True)


def optional(module: str) -> Any:
    """A module of the extra `bench`.

    Raises:
      SpecError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise SpecError(f"this benchmark needs {module}: pip install 'fedras_jax[bench]'") from e


def line() -> str:
    """The machine that figures were measured on, in a line."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind}, jax {metadata.version('jax')}"
    return f"{_cpu()}, {cores()} cores, jax {metadata.version('jax')}"


def describe() -> dict[str, Any]:
    """The machine for a report: processors, memory, versions."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else _cpu(),
        "devices": jax.device_count(),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax": metadata.version("jax"),
        "jaxlib": metadata.version("jaxlib"),
        "numpy": metadata.version("numpy"),
    }


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@functools.cache
def flops() -> float:
    """Float32 operations a second in the product of two large matrices; an addition is one too."""
    if on_gpu():
        n = 8192
        a = jnp.ones((n, n))
        product = jax.jit(functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST))
        return 2 * n**3 / _best(lambda: jax.block_until_ready(product(a, a)))
    n = 1536
    square, out = np.ones((n, n), np.float32), np.empty((n, n), np.float32)
    return 2 * n**3 / _best(lambda: np.matmul(square, square, out=out))


def bandwidth(working_set: float) -> float:
    """Bytes a second, read and written, in place, over so many bytes a core.

    From half a MiB to 256 MiB, by the next power of two; a GPU has its memory's, whatever the
    working set.
    """
    size = float(min(max(working_set, SMALLEST), LARGEST))
    return _bandwidth(LARGEST if on_gpu() else 2 ** int(np.ceil(np.log2(size))))


@functools.cache
def _bandwidth(size: int) -> float:
    n = size // 8
    if on_gpu():
        x, y = jnp.ones(4 * n), jnp.ones(4 * n)
        add = jax.jit(lambda x, y: 0.5 * x + y)
        return 3 * x.nbytes / _best(lambda: jax.block_until_ready(add(x, y)))
    repeats = max(1, 2**28 // size)
    arrays = [(np.ones(n, np.float32), np.ones(n, np.float32)) for _ in range(cores())]
    triad = _compiled()[0]
    seconds = _on_every_core(lambda i: triad(*arrays[i], repeats))
    return cores() * repeats * 3 * 4 * n / seconds


@functools.cache
def integer_ops() -> float:
    """32-bit integer operations a second: multiplications, shifts and exclusive ors, in registers
    and the nearest cache."""
    n, repeats = 4096, 4096
    if on_gpu():
        x = jnp.ones(2**24, jnp.uint32)
        mix = jax.jit(lambda x: jax.lax.fori_loop(0, 256, lambda _, x: _mixed(x), x))
        return 256 * 3 * x.size / _best(lambda: jax.block_until_ready(mix(x)))
    arrays = [np.ones(n, np.uint32) for _ in range(cores())]
    mix = _compiled()[1]
    return cores() * repeats * 12 * n / _on_every_core(lambda i: mix(arrays[i], repeats))


def _mixed(x: Any) -> Any:
    return (x ^ (x >> 15)) * jnp.uint32(0x85EBCA77)


@functools.cache
def _compiled() -> tuple[Any, Any]:
    """A triad x = x / 2 + y, 12 bytes an entry, and 12 integer operations an entry; in loops."""
    njit = optional("numba").njit(nogil=True, fastmath=True)
    half, factor, by = np.float32(0.5), np.uint32(0x85EBCA77), np.uint32(15)

    @njit
    def triad(x, y, repeats):
        for _ in range(repeats):
            for i in range(x.shape[0]):
                x[i] = half * x[i] + y[i]

    @njit
    def mix(x, repeats):
        for _ in range(repeats):
            for i in range(x.shape[0]):
                v = x[i]
                for _ in range(4):
                    v = np.uint32(np.uint32(v ^ np.uint32(v >> by)) * factor)
                x[i] = v

    return triad, mix


def _on_every_core(work: Callable[[int], Any]) -> float:
    with ThreadPoolExecutor(cores()) as pool:
        return _best(lambda: list(pool.map(work, range(cores()))))


def _best(work: Callable[[], Any]) -> float:
    """Least seconds of several tries, after a warm-up."""
    work()
    found = []
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)
