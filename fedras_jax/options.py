"""How runs are run and recorded, and where."""

import dataclasses
import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from fedras_jax.errors import SpecError


@dataclasses.dataclass(frozen=True)
class Options:
    """How runs are run and recorded; none of it changes what comes out.

    Attributes:
      data_dir: where downloaded or own datasets lie.
      devices: how many each process uses where no mesh is given; all of its own when None.
      spread_items: whether item tables are spread over the devices too, whose number must divide
        that of the items: for tables that no device can hold. One device has all rows anyway.
      chunk_size: clients run at once on a device; `cohort.round_chunk` when None.
      progress: show a progress bar (needs the extra `progress`).
      log_clients: write clients.parquet too, a row for each client in each round.
      tensorboard: write event files too (needs the extra `tensorboard`).
      checkpoint_every: rounds between checkpoints; 0: none.
      checkpoint_last: whether one is left of a finished run, so that more rounds extend it and its
        model can be used. If not, the others are removed as well.
      keep: checkpoints to keep.
      keep_states: whether results hold the runs' final states.
      stop: asked between segments of rounds whether to stop there.
      runs_at_once: runs of a group that are vmapped; by platform when None.
    """

    data_dir: str | os.PathLike | None = None
    devices: int | None = None
    spread_items: bool = False
    chunk_size: int | None = None
    progress: bool = False
    log_clients: bool = False
    tensorboard: bool = False
    checkpoint_every: int = 0
    checkpoint_last: bool = True
    keep: int = 2
    keep_states: bool = True
    stop: Callable[[], bool] = lambda: False
    runs_at_once: int | None = None

    def __post_init__(self):
        """Refuse what makes no sense.

        Raises:
          SpecError: a number out of range.
        """
        least = {"checkpoint_every": 0, "keep": 1, "runs_at_once": 1, "devices": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise SpecError(f"{name} must be at least {low}, not {value}")

    @classmethod
    def of(cls, given: Mapping[str, Any], taker: Callable[..., Any]) -> "Options":
        """Those that a function was given by name; the others have their defaults.

        Args:
          given: fields and values.
          taker: the function, whose own arguments may have been meant.

        Raises:
          SpecError: a name that does not exist, or a number out of range.
        """
        parameters = inspect.signature(taker).parameters.values()
        own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        known = [*own, *(field.name for field in dataclasses.fields(cls))]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                meant = f", did you mean {near[0]}?" if near else ":"
                raise SpecError(f"unknown option {name!r}{meant} there are {', '.join(known)}")
        return cls(**given)
