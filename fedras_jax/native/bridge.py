"""Loops that numba compiles, as operations of a JAX program on CPU.

XLA:CPU runs a program as many small kernels, each over whole padded arrays. A plain loop over what
is there does the same in one pass, and where such a loop pays, a function has it as a second form
(`fedras_jax.native`). JAX's foreign function interface calls it: here its C structures are read,
and an operand becomes an array for each client.

Under `vmap` a loop runs once for each entry; what all entries share comes as an axis of one and is
not copied.

Source of the layout: `xla/ffi/api/c_api.h`, version 0.x, in the folder `jax.ffi.include_dir()`.
"""

import ctypes
import functools
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

PREFIX = "fedras_jax."
_REGISTERING = threading.Lock()

# A loop: sums may be taken in vectors, and nothing is checked before a division, which would keep
# the loop from becoming vectors. NaN and infinity keep their meaning: a run that diverges is to be
# seen as one. Rows are best gone through entry by entry: assigning slices takes longer.
loop = numba.njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")

# The same in the order that is written; a product and a sum may become one operation. What says
# nothing of it is compiled like whoever calls it first.
exact = numba.njit(fastmath={"contract"}, error_model="numpy")

# Part of the loop that calls it, from the start: a call would keep that from becoming vectors.
within = numba.njit(inline="always")

# Byte offsets of `XLA_FFI_CallFrame`, of an `XLA_FFI_Buffer` and of what asks for a version.
_EXTENSION, _API, _STAGE, _ARGS, _RETS = 8, 16, 32, 72, 112
_DATA, _RANK, _DIMS = 24, 32, 40
_EXTENSION_TYPE, _METADATA, _OF_METADATA = 8, 1, 24
_API_MINOR, _MAJOR, _MINOR = 36, 24, 28
_EXECUTE = 3


@intrinsic
def _pointer(typing, address):
    """An address as a pointer, for `numba.carray`."""
    del typing
    return types.voidptr(address), lambda context, builder, sign, args: builder.inttoptr(
        args[0], context.get_value_type(types.voidptr)
    )


@numba.njit
def _word(address):
    return numba.carray(_pointer(address), (1,), np.int64)[0]


@numba.njit
def _half(address):
    return numba.carray(_pointer(address), (1,), np.int32)


@numba.njit
def operand(frame, i):
    """The address of the i-th operand's buffer."""
    return _word(_word(frame + _ARGS) + 8 * i)


@numba.njit
def result(frame, i):
    """The address of the i-th result's buffer."""
    return _word(_word(frame + _RETS) + 8 * i)


@numba.njit
def entries(buffer, ndim):
    """How many entries the axes have that `vmap` has put before the loop's own `ndim`."""
    n = 1
    for axis in range(_word(buffer + _RANK) - ndim):
        n *= _word(_word(buffer + _DIMS) + 8 * axis)
    return n


@numba.njit
def _start(buffer, like, ndim, at):
    """Where entry `at` of the mapped axes begins, in elements; axes of one are shared.

    `like` is the buffer of a result, which has all mapped axes in full.
    """
    lead = _word(buffer + _RANK) - ndim
    dims, full = _word(buffer + _DIMS), _word(like + _DIMS)
    size = 1
    for axis in range(lead, lead + ndim):
        size *= _word(dims + 8 * axis)
    if lead == 1:  # the usual case, without divisions
        return at * size if _word(dims) > 1 else 0
    start = 0
    for back in range(lead):
        axis = lead - 1 - back
        n, n_full = _word(dims + 8 * axis), _word(full + 8 * axis)
        if n > 1:
            start += (at % n_full) * size
        size *= n
        at //= n_full
    return start


def reader(dtype: Any, ndim: int) -> Callable:
    """A function that gives an entry of a buffer: (buffer, buffer of a result, entry) -> array.

    Args:
      dtype: of its elements.
      ndim: axes of one entry; 0 gives an array of one element.
    """
    width = np.dtype(dtype).itemsize

    @numba.njit
    def nothing(buffer, like, at):
        address = _word(buffer + _DATA) + width * _start(buffer, like, 0, at)
        return numba.carray(_pointer(address), (1,), dtype)

    @numba.njit
    def vector(buffer, like, at):
        address = _word(buffer + _DATA) + width * _start(buffer, like, 1, at)
        last = _word(buffer + _DIMS) + 8 * (_word(buffer + _RANK) - 1)
        return numba.carray(_pointer(address), (_word(last),), dtype)

    @numba.njit
    def matrix(buffer, like, at):
        address = _word(buffer + _DATA) + width * _start(buffer, like, 2, at)
        last = _word(buffer + _DIMS) + 8 * (_word(buffer + _RANK) - 1)
        return numba.carray(_pointer(address), (_word(last - 8), _word(last)), dtype)

    @numba.njit
    def cube(buffer, like, at):
        address = _word(buffer + _DATA) + width * _start(buffer, like, 3, at)
        last = _word(buffer + _DIMS) + 8 * (_word(buffer + _RANK) - 1)
        return numba.carray(
            _pointer(address), (_word(last - 16), _word(last - 8), _word(last)), dtype
        )

    return (nothing, vector, matrix, cube)[ndim]


f32_0, f32_1, f32_2, f32_3 = (reader(np.float32, n) for n in range(4))
i32_0, i32_1, i32_2 = (reader(np.int32, n) for n in range(3))
u32_0, u32_1, u32_2, u32_3 = (reader(np.uint32, n) for n in range(4))
bool_0, bool_1 = (reader(np.bool_, n) for n in range(2))


@numba.njit
def asked(frame):
    """Whether a call is to be executed; if not it asks which version the loop is made for."""
    extension = _word(frame + _EXTENSION)
    if extension != 0 and _half(extension + _EXTENSION_TYPE)[0] == _METADATA:
        metadata = _word(extension + _OF_METADATA)
        # Layouts of one major version only grow; of another one XLA is to refuse the loop.
        _half(metadata + _MAJOR)[0] = 0
        _half(metadata + _MINOR)[0] = _half(_word(frame + _API) + _API_MINOR)[0]
        return False
    return _half(frame + _STAGE)[0] == _EXECUTE


@functools.cache
def _folder() -> Path | None:
    """Where compiled loops are kept; None where it can't be written to, and nothing is kept.

    In `NUMBA_CACHE_DIR` if that is set, else in `~/.cache/fedras_jax` (under `XDG_CACHE_HOME`
    where that is set). By all the sources: numba alone would look at a loop's own file, and not at
    those of what it calls.
    """
    processor = llvmlite.binding.get_host_cpu_name(), numba.__version__, llvmlite.__version__
    # On a shared disk each kind of processor has a folder, as their indices know nothing of others.
    digest = hashlib.sha256(" ".join(processor).encode())
    digest.update(llvmlite.binding.get_host_cpu_features().flatten().encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    settings: Any = numba.config
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fedras_jax"
    try:
        base = Path(settings.CACHE_DIR or usual).expanduser()
        folder = base / f"loops-{digest.hexdigest()[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody's home
        return None
    return folder if os.access(folder, os.W_OK) else None


def target(name: str) -> Callable[[Callable], Any]:
    """Decorator: make `run(frame)` known to XLA by a name.

    A target returns 0, and only acts on what is `asked`. It is compiled for good, and later
    processes read it from a folder (`_folder`): it must be a module's function and close over
    nothing. It must not raise: XLA would not hear of it.
    """

    def register(run):
        with _REGISTERING:  # numba's setting is everyone's
            folder, usual = _folder(), numba.config.CACHE_DIR
            numba.config.CACHE_DIR = str(folder or "")
            try:
                compiled = numba.cfunc(types.int64(types.int64), cache=folder is not None)(run)
            finally:
                numba.config.CACHE_DIR = usual
        function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(int(compiled.address or 0))
        jax.ffi.register_ffi_target(PREFIX + name, jax.ffi.pycapsule(function), platform="cpu")
        return compiled

    return register
