"""Binaries, loaded into the process of a test."""

import contextlib
import importlib
import sys

from absl.testing import flagsaver

# Flags that several binaries have in common stay.
from experiments import arms, distributed, spreading  # noqa: F401


@contextlib.contextmanager
def binary(name):
    """A binary with its flags, which are gone afterwards: others have flags of the same names."""
    module = f"experiments.{name}"
    there = module in sys.modules
    with flagsaver.flagsaver():
        try:
            yield importlib.import_module(module)
        finally:
            if not there:
                sys.modules.pop(module, None)
