"""Large ratings files, a chunk of rows at a time: what `readers` reads whole."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fedras_jax.data import ncf
from fedras_jax.data.columns import as_ids, is_dated
from fedras_jax.data.readers import find_ratings
from fedras_jax.data.storage import Folder, plain_name, readable
from fedras_jax.data.tables import (
    ROLES,
    Columns,
    choose_columns,
    first_line,
    header,
    ratings_and_times,
    require_no_names,
)
from fedras_jax.errors import DataError

_HEADED = {".csv": ",", ".tsv": "\t", ".inter": "\t"}
_BARE = {".dat": "::", ".data": "\t"}
_KINDS = (".parquet", *_HEADED, *_BARE)
# Bytes of text that are parsed at once: of rows of 30 bytes with ids as text, and their numbers,
# about 20 times as much is in memory.
_TEXT_BYTES, _TEXT_FACTOR = 1 << 24, 20
_ROW_BYTES = 200
# A first line is shorter than this.
_LINE = 1 << 16


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some rows of a source, in the file's order.

    Attributes:
        where: the file and rows, for messages.
        users, items: ids, int64 or text; of a text file always text.
        is_text: whether they come from a text file, where text may mean integers.
        ratings, times: finite numbers, or None where the source has none or none are asked for.
        dated: whether times are dates there, not numbers.
    """

    where: str
    users: pa.Array
    items: pa.Array
    is_text: bool
    ratings: np.ndarray | None
    times: np.ndarray | None
    dated: bool

    @property
    def kinds(self) -> tuple[bool, bool, bool]:
        """Whether there are ratings, are times, and whether these are dates."""
        return self.ratings is not None, self.times is not None, self.dated


@dataclass(frozen=True)
class Source:
    """One or more files with the same columns.

    Attributes:
        name: the dataset's name.
        files: in the order in which they are read.
        columns: header names of the roles, where they differ from the guesses; None ignores one.
        rated: whether ratings are asked for.
    """

    name: str
    files: tuple[Path, ...]
    columns: Columns
    rated: bool

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def chunks(self, memory: int) -> Iterator[Chunk]:
        """All rows, in chunks that take so many bytes to read and to check.

        Raises:
            DataError: a file that cannot be read, or whose columns or values do not fit.
        """
        kinds: tuple[bool, bool, bool] | None = None
        for file in self.files:
            row = 1
            kind = _kind(file)
            if kind == ".parquet":
                tables = _parquet(file, self, memory)
            else:
                tables = _text(file, kind, self, memory)
            for parts in tables:
                where = str(file) if row == 1 else f"{file} from row {row} on"
                chunk = _checked(parts, where, kind != ".parquet")
                kinds = kinds or chunk.kinds
                if chunk.kinds[:2] != kinds[:2]:
                    raise DataError(f"{where}: expected the same columns as in {self.files[0]}.")
                if chunk.kinds != kinds:
                    raise DataError(
                        f"{where}: expected times that are all seconds or all ISO 8601, found both."
                    )
                row += len(chunk.users)
                yield chunk
        if kinds is None:
            raise DataError(f"{self.name}: expected interactions, found a header and no rows.")


def source(
    path: str | os.PathLike[str],
    *,
    columns: Columns | None = None,
    name: str | None = None,
    rated: bool = True,
) -> Source:
    """What lies at a path: a ratings file, a folder with one, or a folder of parts of one.

    Files are `*.parquet`, `*.csv`, `*.tsv`, `*.inter`, `*.dat` or `*.data` as in `read`; text may
    be `.gz`, or `.zip` with one file in it. A folder that holds several files of one kind is a
    table in parts, which are read in the order of their names.

    Args:
        path: a file or a folder.
        columns: the header names of "user", "item", "rating" and "time"; None ignores a column.
        name: the dataset's name; by default the file's or folder's.
        rated: whether ratings are asked for; they are not looked at otherwise.

    Raises:
        DataError: nothing there, or nothing of these kinds.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder.")
    files = _parts(path) if path.is_dir() else (path,)
    for file in files:
        if _kind(file) in _BARE:
            require_no_names(columns, str(file))
    called = name or (path.name if path.is_dir() else plain_name(path.name))
    return Source(called, files, dict(columns or {}), rated)


def _parts(folder: Path) -> tuple[Path, ...]:
    names = [n for n in Folder(folder).names() if plain_name(n).endswith(_KINDS)]
    try:
        return (folder / find_ratings(Folder(folder)),)
    except DataError:
        if len({Path(plain_name(name)).suffix for name in names}) != 1:
            raise
    return tuple(folder / name for name in names)


def _kind(file: Path) -> str:
    plain = plain_name(file.name)
    if ncf.prefix_of(plain) is not None:
        raise DataError(
            f"{file}: brings its own split, which a store cannot keep; use it in memory, as a "
            "dataset."
        )
    kind = Path(plain).suffix
    if file.suffix == ".zip" and kind not in _KINDS:
        with readable(str(file)), zipfile.ZipFile(file) as archive:
            kind = Path(_member(file, archive)).suffix
    if kind not in _KINDS or (kind == ".parquet" and file.suffix != kind):
        raise DataError(
            f"{file}: expected one of *{', *'.join(_KINDS)}; found a file of another kind."
        )
    return kind


def _member(file: Path, archive: zipfile.ZipFile) -> str:
    """The one ratings file in an archive."""
    names = [n for n in archive.namelist() if not n.endswith("/") and "__MACOSX" not in n]
    usual = [n for n in names if Path(n).name.startswith(("ratings.", "u.data"))]
    found = usual or [n for n in names if Path(n).suffix in _KINDS]
    if len(found) != 1:
        raise DataError(
            f"{file}: expected one ratings file inside, found {', '.join(found) or 'none'}; "
            "unpack it and name the one you mean."
        )
    return found[0]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A file's bytes, decompressed."""
    with contextlib.ExitStack() as stack:
        if file.suffix == ".gz":
            yield stack.enter_context(gzip.open(file, "rb"))
        elif file.suffix == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(file))
            yield stack.enter_context(archive.open(_member(file, archive)))
        else:
            yield stack.enter_context(file.open("rb"))


class _Tabbed(io.RawIOBase):
    """Text whose columns are separated by "::", as if by tabs: Arrow splits at one character."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._left = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        new = self._raw.read(size)
        data, self._left = self._left + new, b""
        if new.endswith(b":") and not data.endswith(b"::"):
            data, self._left = data[:-1], b":"  # the other half may follow
            if not data:
                return self.read(size)
        return data.replace(b"::", b"\t")


def _text(file: Path, kind: str, found: Source, memory: int) -> Iterator[dict[str, pa.Array]]:
    """Chunks of a delimited file, by role, as text."""
    headed = kind in _HEADED
    delimiter = _HEADED.get(kind) or _BARE[kind]
    with readable(str(file)):
        with _opened(file) as raw:
            start = raw.read(_LINE)
        if not start.strip():
            raise DataError(f"{file}: expected interactions, found an empty file.")
        if headed:
            there = header(start, str(file), delimiter)
            n_columns = len(there)
        else:
            there = list(ROLES)
            n_columns = first_line(start).count(delimiter) + 1
            if n_columns != len(ROLES):
                raise DataError(
                    f"{file}: expected 4 columns ({', '.join(ROLES)}), found {n_columns} in the "
                    f"first line {first_line(start)[:80]!r}."
                )
        chosen = choose_columns(there, found.columns, str(file), rated=found.rated)
        names = [str(i) for i in range(n_columns)]
        with _opened(file) as raw:
            yield from _batches(
                file,
                n_columns,
                list(chosen),
                pa.PythonFile(_Tabbed(raw) if delimiter == "::" else raw, "r"),
                pa_csv.ReadOptions(
                    column_names=names,
                    skip_rows=int(headed),
                    use_threads=False,
                    block_size=int(np.clip(memory // _TEXT_FACTOR, 1 << 16, _TEXT_BYTES)),
                ),
                pa_csv.ParseOptions(
                    delimiter="\t" if delimiter == "::" else delimiter,
                    quote_char='"' if headed else False,
                ),
                pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.large_string()),
                    include_columns=[names[i] for i in chosen.values()],
                    strings_can_be_null=False,
                ),
            )


def _batches(
    file: Path, n_columns: int, roles: list[str], *how: Any
) -> Iterator[dict[str, pa.Array]]:
    """What Arrow reads, by role."""
    try:
        with pa_csv.open_csv(*how) as reader:
            for batch in reader:
                if batch.num_rows:
                    yield dict(zip(roles, batch.columns, strict=True))
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{file}: expected {n_columns} columns in every row ({error}); the file may be cut "
            "short."
        ) from error


def _parquet(file: Path, found: Source, memory: int) -> Iterator[dict[str, pa.Array]]:
    """Chunks of a Parquet file, by role; its row groups are read in parts."""
    try:
        with pq.ParquetFile(file, buffer_size=1 << 20) as table:
            there = table.schema_arrow.names
            chosen = choose_columns(there, found.columns, str(file), rated=found.rated)
            wanted = [there[i] for i in chosen.values()]
            for batch in table.iter_batches(max(memory // _ROW_BYTES, 1000), columns=wanted):
                if batch.num_rows:
                    yield {role: batch.column(there[i]) for role, i in chosen.items()}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: expected a Parquet file ({error}).") from error


def _checked(parts: Mapping[str, pa.Array], where: str, is_text: bool) -> Chunk:
    ratings, times = ratings_and_times(parts, where)
    return Chunk(
        where=where,
        users=as_ids(parts["user"], "user", where),
        items=as_ids(parts["item"], "item", where),
        is_text=is_text,
        ratings=ratings,
        times=times,
        dated=times is not None and is_dated(parts["time"]),
    )
