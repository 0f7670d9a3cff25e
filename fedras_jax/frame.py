"""What frames a run, in memory as streamed: one experiment on all processes, folders and records,
and what a summary says of clients and machine."""

import functools
import logging
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from fedras_jax import assembly, evaluate, examples, hosts, native, provenance, record, results
from fedras_jax.data import Split
from fedras_jax.errors import SpecError
from fedras_jax.options import Options
from fedras_jax.spec import Spec
from fedras_jax.types import Algorithm

_LOG = logging.getLogger(__name__)
# Of the metrics that tables show, HR@10 and NDCG@10.
_K = 10


def one_experiment(specs: Sequence[Spec], size: int, options: Options, **more: Any) -> None:
    """Whether all processes are about to run the same, and may.

    Args:
      specs, size, options: as in `run.run_group`.
      more: what else must be the same.

    Raises:
      SpecError: they differ, or there is more than one run.
    """
    if options.spread_items and max(size, len(specs)) > 1:
        raise SpecError(
            f"spread_items is for one run at a time, not for {max(size, len(specs))} in a group, "
            "where each device has whole tables: use experiments.run"
        )
    if hosts.count() == 1:
        return
    if max(size, len(specs)) > 1:
        raise SpecError(
            f"{max(size, len(specs))} runs in a group, but several processes run one together: "
            "give each machine its own part of a sweep (--shard)"
        )
    steps = (
        "checkpoint_every",
        "checkpoint_last",
        "chunk_size",
        "devices",
        "keep_states",
        "spread_items",
    )
    hosts.require_same(
        {
            **specs[0].to_json(),
            **{name: getattr(options, name) for name in steps},
            **more,
            "fedras_jax's version": metadata.version("fedras_jax"),
            "jax's version": jax.__version__,
            "the compiler of loops": native.compiler(),
        }
    )
    if options.spread_items:
        raise SpecError("spread_items is for the devices of one process, and there are several")


def claim(
    specs: Sequence[Spec],
    workdirs: Sequence[str | os.PathLike | None],
    data: Sequence[provenance.Data],
) -> list[Path | None]:
    """The runs' folders, which only the first process has, once all have the same data.

    Raises:
      SpecError: they have not.
      ResultsError: as `results.claim`.
    """
    for own in data:
        hosts.require_same({f"the digest of the {name}": digest for name, digest in own.items()})

    def each() -> None:
        for folder, spec, own in zip(workdirs, specs, data, strict=True):
            if folder is not None:
                results.claim(folder, spec, own)

    hosts.from_first(each)
    mine = hosts.is_first()
    return [Path(folder) if folder is not None and mine else None for folder in workdirs]


def record_of(
    spec: Spec, algorithm: Algorithm, n_clients: int, folder: Path | None, options: Options
) -> record.Record:
    """The record of a run that has not begun, as the options have it."""
    return record.Record(
        spec,
        algorithm,
        n_clients,
        folder,
        log_clients=options.log_clients,
        tensorboard=options.tensorboard,
        keep=options.keep,
        keep_last=options.checkpoint_last,
    )


def warn_of_few(spec: Spec, split: Split) -> None:
    """Say once if held-out items are ranked against so few that most are among the first anyway."""
    against = assembly.n_candidates(spec, split)[assembly.held_out(spec, split) >= 0]
    if against.min() < 2 * _K and hosts.is_first():
        _warn_once(
            f"{split.name}: held-out items are ranked against {against.mean():.1f} items on "
            f"average, {against.min()} at least: HR@{_K} and NDCG@{_K} are high whatever is learnt"
        )


@functools.cache
def _warn_once(message: str) -> None:
    _LOG.warning(message)


def about_clients(spec: Spec, split: Split, ranks: np.ndarray) -> dict[str, Any]:
    """How many clients there are, and how they train and are evaluated, as a summary has it.

    Args:
      spec, split: what was run, and on what.
      ranks: i32[U], final ranks; empty where it has diverged before there were any.
    """
    evaluated = np.flatnonzero(ranks != evaluate.NOT_EVALUATED)
    against = assembly.n_candidates(spec, split)[evaluated]
    return {
        "total": split.n_clients,
        "not_evaluated": ranks.size - evaluated.size,
        "candidates_mean": float(against.mean()) if against.size else None,
        "candidates_least": int(against.min()) if against.size else None,
        "short_of_negatives": short_clients(spec, split),
    }


def short_clients(spec: Spec, split: Split) -> int:
    """Clients that have fewer unseen items than negatives are asked for."""
    history = np.diff(split.offsets)
    asked = history * (1 + spec.negatives)
    return int((examples.count(history, split.n_items, spec.negatives) < asked).sum())


def environment(mesh: Mesh | None) -> dict[str, Any]:
    """What a run ran on, as its summary has it."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "loops": native.compiler(),
        "device": jax.devices()[0].device_kind,
        "devices": 1 if mesh is None else mesh.devices.size,
        "processes": hosts.count(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
    }
