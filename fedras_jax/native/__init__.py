"""Second forms of what takes longest on CPU: plain loops over one client, compiled by numba.

Each function of `forms` does what the JAX form beside its call does, to rounding;
`tests/test_native.py` holds the two together. They are used where JAX's default backend is the CPU
and numba is installed (the extra `cpu`), unless `FEDRAS_JAX_NATIVE=0` or `use(False)` says no.
Accelerators, and whatever has no loop, run the JAX form.
"""

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from importlib import metadata

import jax

VARIABLE = "FEDRAS_JAX_NATIVE"

_wanted: ContextVar[bool | None] = ContextVar("wanted", default=None)


def on() -> bool:
    """Whether functions that are traced now are to call their loops.

    Raises:
      ValueError: the variable says neither yes nor no.
    """
    text = os.environ.get(VARIABLE, "1")
    if text not in ("0", "1"):
        raise ValueError(f"{VARIABLE}={text}: expected 0 or 1")
    told = _wanted.get()
    wanted = text == "1" if told is None else told
    return wanted and installed() and jax.default_backend() == "cpu"


def compiler() -> str:
    """What makes the loops, "" where there are none: both forms agree to rounding alone."""
    return f"numba {metadata.version('numba')}" if on() else ""


@functools.cache
def installed() -> bool:
    """Whether there is a compiler for them, that works beside the other packages."""
    try:
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def use(wanted: bool) -> Iterator[None]:
    """What is traced within calls the loops, where they can run, or the JAX form alone."""
    before = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(before)
