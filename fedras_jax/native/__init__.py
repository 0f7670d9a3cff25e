"""Second forms of what takes longest on CPU: plain loops over one client, compiled by numba.

Each function of `forms` does what the JAX form beside its call does, to rounding;
`tests/test_native.py` holds the two together. They are used where programs are made for CPU and
numba is installed (the extra `cpu`), unless `FEDRAS_JAX_NATIVE=0` is set or within `use(False)`.
Accelerators, and whatever has no loop, run the JAX form.
"""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator
from importlib import metadata

import jax

VARIABLE = "FEDRAS_JAX_NATIVE"

_wanted: list[bool] = []


def on() -> bool:
    """Whether functions that are traced now are to call their loops.

    Raises:
      ValueError: the variable says neither yes nor no.
    """
    text = os.environ.get(VARIABLE, "1")
    if text not in ("0", "1"):
        raise ValueError(f"{VARIABLE}={text}: expected 0 or 1")
    wanted = _wanted[-1] if _wanted else text == "1"
    return wanted and installed() and jax.default_backend() == "cpu"


def compiler() -> str:
    """What makes the loops, "" where there are none: both forms agree to rounding alone."""
    return f"numba {metadata.version('numba')}" if on() else ""


@functools.cache
def installed() -> bool:
    """Whether there is a compiler for them."""
    return importlib.util.find_spec("numba") is not None


@contextlib.contextmanager
def use(wanted: bool) -> Iterator[None]:
    """What is traced within calls the loops, where they can run, or the JAX form alone."""
    _wanted.append(wanted)
    try:
        yield
    finally:
        _wanted.pop()
