"""Learning curves as TensorBoard event files, without TensorFlow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedras_jax.errors import SpecError

FOLDER = "tensorboard"


class Board:
    """Writes every figure of every round, against the number of the round.

    Without a folder it writes nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        """In a run's folder.

        Raises:
          SpecError: tensorboardX is not installed.
        """
        self._folder, self._writer = folder, None
        if folder is None:
            return
        try:
            import tensorboardX
        except ImportError as e:
            raise SpecError(
                "event files need tensorboardX: pip install 'fedras_jax[tensorboard]', or leave "
                "tensorboard off"
            ) from e
        self._new = tensorboardX.SummaryWriter

    def resume(self, round_: int) -> None:
        """Go on after a round: what earlier event files hold of later ones is no longer shown."""
        if self._folder is not None:
            self._writer = self._new(str(self._folder / FOLDER), purge_step=round_ + 1)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rounds."""
        if self._writer is None:
            return
        for row in rows:
            for name, value in row.items():
                if name != "round":
                    self._writer.add_scalar(name, value, row["round"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
