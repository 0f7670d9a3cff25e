"""What a group of runs takes, told before anything is compiled.

On a CPU everything is in the process's memory: the interpreter with its libraries, what XLA takes
to compile, and the arrays. On an accelerator the arrays are on the devices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedras_jax import assembly
from fedras_jax.data import Split
from fedras_jax.run import SEGMENT, Options
from fedras_jax.spec import Spec

# Measured with `benchmarks/sweep.py`: the interpreter and its libraries, and the most that XLA has
# taken to compile the round of a codec.
PROCESS = 0.3 * 2**30
COMPILER = 1.2 * 2**30


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


def estimator(
    spec: Spec, split: Split, options: Options, devices: int | None = None
) -> Callable[[int], Estimate]:
    """How much memory groups of runs like a Spec take, as a function of their number."""
    _, algorithm, data = assembly.assemble(spec, split)
    state = jax.eval_shape(algorithm.init)
    info = jax.eval_shape(algorithm.step, state, data)[1]
    given = assembly.arguments(spec, split.n_clients)
    state_b, info_b, given_b = _bytes(state), SEGMENT * _bytes(info), _bytes(given)
    shared = _bytes(data) + _bytes(split.candidates)
    n_devices = jax.device_count() if devices is None else devices
    on_cpu = jax.default_backend() == "cpu"

    def of_size(runs: int) -> Estimate:
        used = n_devices if runs > 1 else 1
        share = -(-runs // used)
        # A loop over runs reads one stack of states and writes another; a run works on a third.
        states = (2 * share + 1) * state_b if share > 1 else 2 * state_b
        on_device = states + share * (info_b + given_b) + info_b + shared
        # The host reads diagnostics, and copies states for checkpoints and results.
        host = runs * (info_b + 2 * state_b) + shared
        arrays = round(used * on_device + host)
        # An accelerator's arrays are on its own memory, which is what then has to hold them.
        process = PROCESS + COMPILER + (arrays if on_cpu else host)
        return Estimate(arrays, round(max(process, arrays)))

    return of_size


def _bytes(tree: object) -> int:
    return sum(
        int(np.prod(jnp.shape(x))) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree)
    )
