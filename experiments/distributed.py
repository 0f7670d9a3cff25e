"""Flags of binaries that several processes may run together, one on each host (docs/hosts.md)."""

import os
import sys

from absl import flags as absl_flags

from experiments import flags
from fedras_jax import hosts
from fedras_jax.errors import SpecError

DISTRIBUTED = absl_flags.DEFINE_bool(
    "distributed", False, "Run together with the same command on other hosts."
)
# Named as the arguments of `jax.distributed.initialize`.
ADDRESS = absl_flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of the first process; under SLURM, Open MPI or Kubernetes JAX finds it.",
)
PROCESSES = absl_flags.DEFINE_integer("num_processes", None, "How many processes there are.")
PROCESS = absl_flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
HEARTBEAT = absl_flags.DEFINE_integer(
    "heartbeat_timeout_s", 100, "Seconds of silence after which a process counts as dead."
)
START = absl_flags.DEFINE_integer(
    "initialization_timeout_s", 300, "Seconds in which all processes must be there."
)
_NEEDS = (ADDRESS, PROCESSES, PROCESS)


def start() -> None:
    """Join the other processes, where the flags ask for it; before anything is asked of JAX.

    Raises:
      SpecError: flags that do not fit together.
    """
    if not DISTRIBUTED.value:
        given = [flag.name for flag in _NEEDS if flag.value is not None]
        if given:
            raise SpecError(f"--{given[0]} needs --distributed")
        return
    flags.quiet()
    _keep_stdout()
    hosts.start(
        ADDRESS.value,
        PROCESSES.value,
        PROCESS.value,
        heartbeat_timeout_s=HEARTBEAT.value,
        initialization_timeout_s=START.value,
    )


def _keep_stdout() -> None:
    """Leave stdout to Python: the collectives' library prints to it how it gets on."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(own, "w", buffering=1)
