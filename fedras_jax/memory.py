"""What a group of runs takes, told before anything is compiled.

On a CPU everything is in the process's memory: the interpreter with its libraries, what XLA takes
to compile, and the arrays. On an accelerator the arrays are on the devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedras_jax import assembly
from fedras_jax.data import Split
from fedras_jax.programs import SEGMENT
from fedras_jax.spec import Spec
from fedras_jax.types import PyTree

# The interpreter with its libraries, and what XLA takes to compile an equation of a round's jaxpr:
# 0.135 to 0.151 MiB over rounds of 4,400 to 11,400 equations (four codecs and policies, x86-64,
# jaxlib 0.10.2). `benchmarks/sweep.py` compares estimates with what processes take.
PROCESS = 0.33 * 2**30
EQUATION = 0.147 * 2**20


class Estimate(NamedTuple):
    """Memory of a group, in bytes.

    Attributes:
      arrays: states, diagnostics, data and what is worked on, over all devices.
      bytes: of the process, on CPU with the arrays; elsewhere the larger of that without them and
        of the devices'.
    """

    arrays: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.bytes / 2**30:.2f} GiB, of which {self.arrays / 2**30:.2f} arrays"


def estimator(spec: Spec, split: Split, devices: int | None = None) -> Callable[[int], Estimate]:
    """How much memory groups of runs like a Spec take, as a function of their number.

    Args:
      spec, split: one of the runs, and its data.
      devices: that a group will have; all of this process when None.
    """
    _, algorithm, data = assembly.assemble(spec, split)
    state = jax.eval_shape(algorithm.init)
    traced, (_, info) = jax.make_jaxpr(algorithm.step, return_shape=True)(state, data)
    compiler = EQUATION * _equations(traced.jaxpr)
    given = assembly.arguments(spec, split.n_clients)
    state_b, info_b, given_b = nbytes(state), SEGMENT * nbytes(info), nbytes(given)
    shared = nbytes(data) + nbytes(split.candidates)
    n_devices = jax.device_count() if devices is None else devices
    on_cpu = jax.default_backend() == "cpu"

    def of_size(runs: int) -> Estimate:
        share = -(-runs // n_devices)  # a single run's clients share the devices, each has all else
        # A loop over runs reads one stack of states and writes another; a run works on a third.
        states = (2 * share + 1) * state_b if share > 1 else 2 * state_b
        on_device = states + share * (info_b + given_b) + info_b + shared
        # The host reads diagnostics, and copies states for checkpoints and results.
        host = runs * (info_b + 2 * state_b) + shared
        arrays = round(n_devices * on_device + host)
        # An accelerator's arrays are on its own memory, which is what then has to hold them.
        process = PROCESS + compiler + (arrays if on_cpu else host)
        return Estimate(arrays, round(max(process, arrays)))

    return of_size


def _equations(jaxpr: Any) -> int:
    """Equations of a jaxpr, and of those within it."""
    count = 0
    for equation in jaxpr.eqns:
        count += 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)  # of a closed one
                if hasattr(inner, "eqns"):
                    count += _equations(inner)
    return count


def nbytes(tree: PyTree) -> int:
    """Bytes of a tree's arrays, or of their shapes and types."""
    leaves: list[Any] = jax.tree.leaves(tree)
    return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves)
