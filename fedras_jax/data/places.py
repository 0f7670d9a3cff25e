"""Places on disk to write to: room for it, nobody else there, and errors that name them."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from fedras_jax.errors import DataError

LOCK = "lock"


@contextlib.contextmanager
def can_write(path: Path) -> Iterator[None]:
    """Turns failures to write into a DataError that names the store."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); nothing of it is left."
        ) from error


@contextlib.contextmanager
def alone(folder: Path, own: Callable[[str], bool]) -> Iterator[Path]:
    """A folder in which this process works alone, and which is gone in the end, unless renamed.

    What one that was killed has left in it is removed at first.

    Args:
        folder: where.
        own: whether a file of this name may have been left.

    Raises:
        DataError: another process works there, something else lies there, or nothing can.
    """
    with contextlib.ExitStack() as stack:
        with can_write(folder):
            if folder.exists() and not folder.is_dir():
                raise DataError(f"{folder}: is in the way; move it.")
            folder.mkdir(exist_ok=True)
            there = [path for path in folder.iterdir() if path.name != LOCK]
            if not all(own(path.name) for path in there):
                raise DataError(f"{folder}: is in the way and holds no unfinished work; move it.")
            lock = stack.enter_context((folder / LOCK).open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(
                    f"{folder}: another process is writing there; wait for it, or choose another "
                    "place."
                ) from None
            for path in there:
                path.unlink(missing_ok=True)
        made = folder.stat().st_ino
        try:
            yield folder
        finally:
            if folder.exists() and folder.stat().st_ino == made:
                shutil.rmtree(folder, ignore_errors=True)


def room(folder: Path, size: int) -> None:
    """Whether so many bytes fit on a folder's disk.

    Raises:
        DataError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(
            f"{folder}: about {size / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are "
            "free; make room or choose another disk."
        )
