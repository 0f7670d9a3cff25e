"""Freed memory is kept: counted in page faults, not in time."""

import platform
import subprocess
import sys

import pytest

# Faults of ten blocks of 40 MiB that are filled and freed, one after another. Those that are
# larger than 32 MiB glibc always maps anew, unless it is told not to.
COUNT = """
import resource, sys
import numpy as np
from fedras_jax import heap

kept = sys.argv[1] == "keep" and heap.keep_pages()

def fill():
    for _ in range(10):
        np.ones(40 * 2**20, np.uint8)

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count(how):
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how],
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_is_kept_is_not_faulted_in_again():
    kept, faults = count("keep")
    assert kept
    # Otherwise a block has 20 large pages, or 10,240 small ones.
    assert faults < 20
    assert count("leave")[1] >= 200


def test_a_library_that_cannot_be_told_changes_nothing(monkeypatch):
    from fedras_jax import heap

    class Other:
        pass

    monkeypatch.setattr("ctypes.CDLL", lambda name: Other())
    assert heap.keep_pages() is False
