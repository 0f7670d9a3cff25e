"""Runs an arm's Specs side by side, one arm after another, and remembers those that are done."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from experiments import flags
from fedras_jax import provenance, results
from fedras_jax.errors import DivergedError, StoppedError
from fedras_jax.options import Options
from fedras_jax.programs import Kept
from fedras_jax.run import run_group
from fedras_jax.spec import Spec

T = TypeVar("T")
Outcome = tuple[dict[str, Any], np.ndarray]

# Runs at once: what 1, 2, 3, 4, 6 and 12 devices share evenly, and few enough to be lost together.
AT_ONCE = 12


class Executor:
    """Runs Specs, or loads what their folders hold.

    Attributes:
      ran: how many it has run.
      stop: whether this process was told to stop.
    """

    def __init__(self, *, log_clients: bool = False, loads: bool = True) -> None:
        """Nothing is run yet.

        Args:
          log_clients: write clients.parquet too.
          loads: whether data may be loaded; without it runs are taken as they are there.
        """
        self.ran, self._log_clients, self._loads = 0, log_clients, loads
        self._kept = Kept()
        flags.start_devices()
        self.stop = flags.stop_when_told() if loads else lambda: False

    def __call__(self, specs: Mapping[Path, Spec]) -> dict[Path, Outcome | DivergedError]:
        """Summary and final ranks of Specs that differ in numbers alone, by folder.

        Raises:
          ResultsError: as `stored`.
          StoppedError: told to stop; what was done has been saved.
        """
        done: dict[Path, Outcome | DivergedError] = {}
        for folder, spec in specs.items():
            stored = self.stored(folder, spec)
            if stored is not None:
                done[folder] = stored
        left = [(folder, spec) for folder, spec in specs.items() if folder not in done]
        for i in range(0, len(left), AT_ONCE):
            done |= self._run(dict(left[i : i + AT_ONCE]))
        return done

    def stored(self, folder: Path, spec: Spec) -> Outcome | DivergedError | None:
        """What a folder holds of a run, None where it has not ended.

        Raises:
          ResultsError: it cannot be read, or holds a run on other data.
        """
        data = self.data_of(spec) if folder.exists() else None
        if data is not None:
            results.require_data(folder, data)
        finished = results.read_finished(folder, spec)
        if finished is not None:
            logged = not self._log_clients or (folder / "clients.parquet").exists()
            return finished if logged else None
        diverged = results.read_diverged(folder)
        if diverged is None or diverged.round > spec.rounds:
            return None
        own = Spec.from_json(results.read_json(folder / "spec.json"))
        return DivergedError(diverged.message) if own.digest() == spec.digest() else None

    def data_of(self, spec: Spec) -> provenance.Data | None:
        """Digests of what a Spec is run on; None where no data may be loaded."""
        if not self._loads:
            return None
        return self._kept.data(spec, flags.DATA_DIR.value)

    def _run(self, specs: Mapping[Path, Spec]) -> dict[Path, Outcome | DivergedError]:
        # Resumable within an arm only where it was told to stop: an arm takes minutes, and what is
        # done is not run again.
        stop_if_told(self.stop)
        options = Options(
            **flags.options_from_flags(
                progress=False,
                log_clients=self._log_clients,
                checkpoint_every=0,
                checkpoint_last=False,
                keep_states=False,
                stop=self.stop,
            )
        )
        self.ran += len(specs)
        found = run_group(
            list(specs.values()), workdirs=list(specs), options=options, kept=self._kept
        )
        jax.clear_caches()  # in memory: a grid has too many programs to keep
        return {
            folder: one if isinstance(one, DivergedError) else (one.summary, one.ranks)
            for folder, one in zip(specs, found, strict=True)
        }


def stop_if_told(stop: Callable[[], bool], *, kept: bool = True) -> None:
    """End between two groups of runs, as `run` does between segments of rounds.

    Args:
      stop: whether this process was told to.
      kept: whether there is a folder in which the same command goes on.

    Raises:
      StoppedError: it was.
    """
    if stop():
        raise StoppedError(
            "stopped between runs, as asked: "
            + ("the same command goes on from there" if kept else "nothing kept")
        )


def all_of(found: Mapping[Any, T | DivergedError]) -> list[T]:
    """What all runs came to.

    Raises:
      DivergedError: one of them has diverged.
    """
    for one in found.values():
        if isinstance(one, DivergedError):
            raise one
    return [one for one in found.values() if not isinstance(one, DivergedError)]
