"""A progress bar for a run, or for runs that share a program: round, loss, quality, bytes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from fedras_jax.errors import SpecError

SHOWN = (("loss", "loss"), ("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
      round: rounds that are done.
      row: the last round, as in `rounds.parquet`.
    """

    round: int
    row: Mapping[str, float]


def bar(
    name: str, rounds: int, *, start: int = 0, enabled: bool
) -> contextlib.AbstractContextManager[Callable[[Progress], None]]:
    """A function that shows how far a run has come; it shows nothing unless enabled.

    Args:
      name: of what runs.
      rounds: to be done in all.
      start: rounds that are done already.
      enabled: whether anything is shown.

    Raises:
      SpecError: enabled without tqdm installed.
    """
    if not enabled:
        return contextlib.nullcontext(lambda progress: None)
    try:
        from tqdm.auto import tqdm
    except ImportError as e:
        raise SpecError(
            "a progress bar needs tqdm: pip install 'fedras_jax[progress]', or pass progress=False"
        ) from e
    return _shown(tqdm(total=rounds, initial=start, desc=name, unit="round", dynamic_ncols=True))


@contextlib.contextmanager
def _shown(made: Any) -> Iterator[Callable[[Progress], None]]:
    with made as shown:
        latest: dict[str, float] = {}

        def show(progress: Progress) -> None:
            latest.update(progress.row)
            fields = {label: f"{latest[name]:.3f}" for name, label in SHOWN if name in latest}
            sent = latest["up_bytes"] / max(latest["clients"], 1)
            shown.set_postfix(fields | {"up": f"{sent:,.0f} B/client"}, refresh=False)
            shown.update(progress.round - shown.n)

        yield show
