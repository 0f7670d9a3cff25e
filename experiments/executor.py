"""Runs the Specs of a grid, one after another, and remembers those that are done."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments import flags
from fedras_jax import results
from fedras_jax.spec import Spec


class Executor:
    """Runs a Spec, or loads what its folder holds.

    Attributes:
      ran: how many it has run.
    """

    def __init__(self, programs: Path, *, log_clients: bool = False) -> None:
        """Keeps compiled programs in a folder, for an arm's other seeds and for the next start."""
        self.ran, self._log_clients = 0, log_clients
        self._mesh = flags.start_devices()
        import jax

        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            jax.config.update("jax_compilation_cache_dir", str(programs))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)

    def __call__(self, spec: Spec, folder: Path) -> tuple[dict[str, Any], np.ndarray]:
        """Summary and final ranks."""
        stored = results.read_finished(folder, spec)
        if stored is not None and (not self._log_clients or (folder / "clients.parquet").exists()):
            return stored
        import jax

        from fedras_jax.run import run  # after the devices are set up

        self.ran += 1
        done = run(
            spec,
            workdir=folder,
            mesh=self._mesh,
            **flags.options_from_flags(progress=False, log_clients=self._log_clients),
        )
        jax.clear_caches()  # in memory: a grid has too many programs to keep
        return done.summary, done.ranks
