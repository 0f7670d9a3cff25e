"""A progress bar for a run: round, loss, quality, bytes."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fedras_jax.errors import SpecError
from fedras_jax.spec import Spec

SHOWN = (("loss", "loss"), ("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"))


class Progress(NamedTuple):
    """Rows of all rounds so far, as in `rounds.parquet`."""

    rows: list[dict[str, Any]]


@contextlib.contextmanager
def bar(spec: Spec, *, enabled: bool) -> Iterator[Callable[[Progress], None]]:
    """A function that shows how far a run has come; it shows nothing unless enabled.

    Raises:
      SpecError: enabled without tqdm installed.
    """
    if not enabled:
        yield lambda progress: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as e:
        raise SpecError(
            "a progress bar needs tqdm: pip install 'fedras_jax[progress]', or pass progress=False"
        ) from e
    with tqdm(total=spec.rounds, desc=spec.codec, unit="round", dynamic_ncols=True) as shown:
        latest: dict[str, float] = {}

        def show(progress: Progress) -> None:
            latest.update(progress.rows[-1])
            fields = {label: f"{latest[name]:.3f}" for name, label in SHOWN if name in latest}
            sent = latest["up_bytes"] / max(latest["clients"], 1)
            shown.set_postfix(fields | {"up": f"{sent:,.0f} B/client"}, refresh=False)
            shown.update(len(progress.rows) - shown.n)

        yield show
