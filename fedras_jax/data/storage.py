"""Where bytes lie: a folder or a zip archive, each file plain, gzipped or zipped on its own.

Both present the same face, so that finding the ratings, the titles beside them or the parts of
a split is written once. Files are read whole: the largest ratings file in the catalogue is
about half a gigabyte of text.
"""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Protocol

from fedras_jax.errors import DataError

_COMPRESSED = (".gz", ".zip")


class FileSet(Protocol):
    """Named files that lie together."""

    def names(self) -> list[str]:
        """Every file's name in here, sorted."""
        ...

    def where(self, name: str) -> str:
        """How messages call a file."""
        ...

    def read(self, name: str) -> bytes:
        """A file's bytes, decompressed; DataError where it cannot be read or is empty."""
        ...


def plain_name(name: str) -> str:
    """A file's name without its folder and without `.gz` or `.zip`."""
    base = PurePosixPath(name).name
    return base[: -len(PurePosixPath(base).suffix)] if base.endswith(_COMPRESSED) else base


class Folder:
    """The files right in a folder; one level, so that a home folder is not searched by mistake.

    Args:
        root: the folder, on disk or inside an installed package.
    """

    def __init__(self, root: Traversable) -> None:
        self._root = root

    def __str__(self) -> str:
        return str(self._root)

    def names(self) -> list[str]:
        with readable(str(self._root)):
            names = (entry.name for entry in self._root.iterdir() if entry.is_file())
            return sorted(name for name in names if not name.startswith("."))

    def where(self, name: str) -> str:
        return str(self._root.joinpath(name))

    def read(self, name: str) -> bytes:
        with readable(self.where(name)):
            return _decompress(name, self._root.joinpath(name).read_bytes(), self.where(name))


class Archive:
    """The members of a zip archive, at any depth, by their full names.

    Args:
        path: the archive.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        with readable(str(self._path)), zipfile.ZipFile(self._path) as archive:
            return _members(archive)

    def where(self, name: str) -> str:
        return f"{self._path} ({name})"

    def read(self, name: str) -> bytes:
        with readable(self.where(name)), zipfile.ZipFile(self._path) as archive:
            return _decompress(name, archive.read(name), self.where(name))


def sibling(files: FileSet, name: str, wanted: str) -> str | None:
    """The file called `wanted`, plain before compressed, in the same folder as `name`."""
    folder = PurePosixPath(name).parent
    for suffix in ("", *_COMPRESSED):
        candidate = str(folder / (wanted + suffix))
        if candidate in files.names():
            return candidate
    return None


def _members(archive: zipfile.ZipFile) -> list[str]:
    """File members, without folders and what macOS adds."""
    return sorted(
        name
        for name in archive.namelist()
        if not name.endswith("/")
        and not name.startswith("__MACOSX/")
        and not PurePosixPath(name).name.startswith(".")
    )


def _decompress(name: str, data: bytes, where: str) -> bytes:
    """Undoes the compression that the name tells."""
    if name.endswith(".gz"):
        data = gzip.decompress(data)
    elif name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive)
            wanted = [m for m in members if PurePosixPath(m).name == plain_name(name)] or members
            if len(wanted) != 1:
                raise DataError(
                    f"{where}: expected one file called {plain_name(name)} inside, found "
                    f"{', '.join(members) or 'none'}."
                )
            data = archive.read(wanted[0])
    if not data:
        raise DataError(f"{where}: expected interactions, found an empty file.")
    return data


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turns every way in which reading and decompressing fail into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file or folder.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise DataError(
            f"{where}: the compressed file is damaged or cut short ({error}); get it again."
        ) from error
    except (OSError, RuntimeError, NotImplementedError) as error:
        # RuntimeError: an encrypted member; NotImplementedError: an unknown compression.
        raise DataError(f"{where}: cannot be read ({error}).") from error
