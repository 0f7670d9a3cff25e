"""Where a run stands, on disk: saved now and then, found again, never half there.

    WORKDIR/checkpoints/ROUND/   Orbax's own format: the state, the account of bytes and time, and
                                 what they belong to

Orbax writes beside its place and renames, so a run that is killed while it saves leaves the
checkpoint before. Each holds a digest of its arrays, because a disk may lose what was renamed.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedras_jax import hosts
from fedras_jax.errors import FedrasError, ResultsError
from fedras_jax.spec import Spec
from fedras_jax.types import PyTree

VERSION = 4
FOLDER = "checkpoints"
_LOG = logging.getLogger(__name__)
_ORBAX = f"{os.sep}orbax{os.sep}checkpoint{os.sep}"


class Saved(NamedTuple):
    """A checkpoint.

    Attributes:
      round: rounds that were finished.
      tree: arrays on the host.
    """

    round: int
    tree: PyTree


def digest(tree: PyTree) -> str:
    """SHA-256 over the bytes of every array in a tree."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)  # no copy
    return sha.hexdigest()


def rounds_in(workdir: str | os.PathLike) -> list[int]:
    """Rounds of which a run's folder holds checkpoints, ascending; they may be torn."""
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def restore(workdir: str | os.PathLike, spec: Spec, template: PyTree) -> Saved | None:
    """The latest checkpoint of a run that can be read.

    A torn one is set aside, with a warning, for the one before it.

    Args:
      workdir: the run's folder.
      spec: what must have been run.
      template: arrays, or their shapes and types, in the structure that was saved.

    Returns:
      None where there is no checkpoint.

    Raises:
      ResultsError: checkpoints of another experiment, of another version or of later rounds than
        the Spec's; or none of them can be read.
    """
    folder = Path(workdir) / FOLDER
    steps = rounds_in(workdir)
    if not steps:
        return None
    if steps[-1] > spec.rounds:
        raise ResultsError(
            f"{folder} is at round {steps[-1]}, beyond rounds={spec.rounds}: ask for more rounds, "
            "or choose another --workdir"
        )
    shapes = jax.tree.map(lambda x: np.zeros(np.shape(x), x.dtype), template)
    torn: dict[int, str] = {}
    found = None
    with _manager(folder) as (manager, ocp):
        for step in reversed(steps):
            try:
                about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
                _check(folder, spec, about.about)
                args = ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes))
                tree = manager.restore(step, args=args).arrays
                if digest(tree) != about.about["digest"]:
                    raise ValueError("its arrays are not those that were saved")
                found = Saved(step, tree)
                break
            except (ResultsError, MemoryError, PermissionError):
                raise
            except Exception as e:  # whatever a torn file makes of Orbax
                reason = str(e).strip().split("\n")[0][:200]
                torn[step] = reason
    if found is None:
        reasons = "; ".join(f"round {step}: {reason}" for step, reason in torn.items())
        raise ResultsError(
            f"no checkpoint in {folder} can be read ({reasons}): remove that folder to start again"
        )
    for step, reason in torn.items():
        _LOG.warning("checkpoint %s/%d is torn, and set aside: %s", folder, step, reason)
        aside = folder / f"torn-{step}"
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
        (folder / str(step)).rename(aside)
    return found


class Checkpoints:
    """Saves a run now and then, in the background, and keeps the last few."""

    def __init__(self, workdir: str | os.PathLike, spec: Spec, keep: int = 2) -> None:
        """In a run's folder; nothing is made there before the first is saved."""
        self._folder = Path(workdir) / FOLDER
        self._spec, self._keep = spec, keep
        self._stack = contextlib.ExitStack()
        self._orbax: Any = None

    def save(self, round_: int, tree: PyTree) -> None:
        """Save arrays after a round; returns before they are on disk.

        Raises:
          ResultsError: this or the save before it cannot be written.
        """
        if self._orbax is not None:
            with self._writing():
                self._orbax[0].wait_until_finished()  # so that its copies of the last save are gone
        # Copies, because the next rounds will write where these arrays are.
        tree = jax.tree.map(lambda x: np.array(x, copy=True), tree)
        about = {"version": VERSION, "spec": self._spec.to_json(), "digest": digest(tree)}
        with self._writing():
            if self._orbax is None:
                self._orbax = self._stack.enter_context(_manager(self._folder, self._keep))
            manager, ocp = self._orbax
            if round_ in manager.all_steps():
                return  # the same, by another way
            args = ocp.args.Composite(
                arrays=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(about)
            )
            manager.save(round_, args=args)

    def remove(self) -> None:
        """Remove all of the run's checkpoints."""
        self.close()
        if self._folder.exists():
            # At once: a run that is killed meanwhile leaves no half of a checkpoint.
            gone = self._folder.with_name(f"{FOLDER}.{os.getpid()}.part")
            self._folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def close(self) -> None:
        """Wait for what is being written.

        Raises:
          ResultsError: it could not be.
        """
        with self._writing():
            self._stack.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # Orbax and TensorStore raise what they like
            reason = str(e).strip().split("\n")[0][:300]
            raise ResultsError(
                f"{self._folder} cannot be written ({reason}): earlier checkpoints are whole"
            ) from e


@contextlib.contextmanager
def _manager(folder: Path, keep: int | None = None) -> Iterator[tuple[Any, Any]]:
    """Orbax's manager and its module, which takes a third of a second to import."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(_worth_telling)
    # The first of several processes saves and restores for all, and waits for none of them.
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    if keep is not None:
        folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=False,
        cleanup_tmp_directories=keep is not None,
        **({} if hosts.count() == 1 else {"multiprocessing_options": alone}),
    )
    manager = ocp.CheckpointManager(folder.absolute(), options=options)
    try:
        yield manager, ocp
        manager.wait_until_finished()
    finally:
        manager.close()


def _worth_telling(record: logging.LogRecord) -> bool:
    """Not what Orbax tells of every file, through a logger that it shares with others."""
    return record.levelno >= logging.ERROR or _ORBAX not in record.pathname


def _check(folder: Path, spec: Spec, about: dict[str, Any]) -> None:
    if about.get("version") != VERSION:
        raise ResultsError(
            f"{folder} holds checkpoints of version {about.get('version')}, this is version "
            f"{VERSION}: finish the run with the version that began it"
        )
    try:
        other = Spec.from_json(about["spec"])
    except (FedrasError, TypeError) as e:
        raise ResultsError(f"{folder} holds checkpoints of an unknown Spec: {e}") from e
    spec.require_same(
        other,
        f"{folder} holds checkpoints of another experiment",
        "choose another --workdir, nothing has been overwritten",
    )
