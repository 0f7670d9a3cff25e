"""Reads a dataset from a file, a folder or an archive, in whichever format it is."""

from __future__ import annotations

from importlib.resources.abc import Traversable
from os import PathLike
from pathlib import Path, PurePosixPath

from fedras_jax.data import ncf
from fedras_jax.data.interactions import Interactions
from fedras_jax.data.storage import Archive, FileSet, Folder, plain_name
from fedras_jax.data.store import is_of_store
from fedras_jax.data.tables import (
    Columns,
    Events,
    bare_events,
    headed_events,
    parquet_events,
    require_no_names,
)
from fedras_jax.data.titles import read_titles
from fedras_jax.errors import DataError

FORMATS = (
    "u.data, *.dat (user::item::rating::time), *.csv, *.tsv, *.parquet, *.inter, or "
    "X.train.rating with X.test.rating and X.test.negative; each plain, .gz or .zip"
)
# What a folder or an archive's ratings are called; further tables beside them do not count.
_RATINGS = ("u.data", "ratings.dat", "ratings.csv", "ratings.tsv", "ratings.parquet")
_TABLES = (".csv", ".tsv", ".parquet", ".dat", ".data")


def read(
    path: str | PathLike[str],
    *,
    columns: Columns | None = None,
    min_rating: float | None = None,
    k_core: int = 0,
    name: str | None = None,
) -> Interactions:
    """Reads interactions, choosing the format by the file's name.

    - `u.data`, `*.data`: tab separated user, item, rating, time, no header;
    - `*.dat`: the same, separated by `::`;
    - `*.csv`, `*.tsv`, `*.parquet`: named columns. Without `columns`, user, item, rating and
      time are looked for under the names in `fedras_jax.data.tables.GUESSES` (`user_id`,
      `userId`, `item`, `movieId`, `rating`, `timestamp`, ...); rating and time may be missing;
    - `*.inter`: RecBole's, tab separated with a typed header (`user_id:token`);
    - the NCF triple (`fedras_jax.data.ncf`), given any of its files or their common prefix. It
      brings its own split, which filters would break: they are refused.

    Ratings are read for `min_rating` alone: without it they may be blank or anything else; with it
    a row whose rating is not known is refused. Times are seconds, or dates in UTC: ISO 8601 text
    (`2020-01-01`, `2020-01-01 10:00:00`), or Parquet's own.

    Each may be plain, `.gz` or `.zip`; a folder or an archive is searched for its ratings.
    Titles in `movies.csv`, `movies.dat` or `u.item` beside the ratings are read too.

    Args:
        path: a file, a folder, an archive, or an NCF prefix.
        columns: the header names of "user", "item", "rating" and "time", where they differ
            from the guesses; None ignores a column, as in `{"time": None}`.
        min_rating: the lowest rating that counts as an interaction; None keeps all.
        k_core: the least number of interactions of a user and of an item; 0 keeps all.
        name: the dataset's name; by default the file's or folder's.

    Raises:
        DataError: nothing there, an unknown or ambiguous format, or malformed content.
    """
    path = Path(path)
    files, file = _open(path)
    return _read_file(
        files,
        file or find_ratings(files),
        columns=columns,
        min_rating=min_rating,
        k_core=k_core,
        name=name or (path.name if path.is_dir() else plain_name(path.name)),
    )


def read_folder(
    folder: Traversable,
    *,
    columns: Columns | None,
    min_rating: float | None,
    k_core: int,
    name: str,
) -> Interactions:
    """`read` for a folder that may lie inside an installed package."""
    files = Folder(folder)
    return _read_file(
        files,
        find_ratings(files),
        columns=columns,
        min_rating=min_rating,
        k_core=k_core,
        name=name,
    )


def is_readable(path: Path) -> bool:
    """Whether there is anything at a path, an NCF prefix included."""
    return path.exists() or _prefixed(path) is not None


def find_ratings(files: FileSet) -> str:
    """The one ratings file of a folder or archive.

    A file with a ratings file's usual name wins over other tables; of an NCF triple the first
    file stands for all.

    Raises:
        DataError: none, or several, or the files of a store.
    """
    names = files.names()
    usual: dict[tuple[str, str], str] = {}
    for name in names:
        plain = plain_name(name)
        if plain in _RATINGS or plain.endswith(".inter") or ncf.prefix_of(plain) is not None:
            # Keyed so that the files of one triple count once.
            prefix = ncf.prefix_of(plain)
            folder = str(PurePosixPath(name).parent)
            usual.setdefault((folder, name if prefix is None else prefix), name)
    found = list(usual.values()) or [n for n in names if plain_name(n).endswith(_TABLES)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{files}: expected one ratings file, found {', '.join(found)}; name the one you mean."
        )
    if is_of_store(names):
        raise DataError(
            f"{files}: this is a store: experiments.stream (in Python fedras_jax.stream) runs on "
            "it, nothing else does."
        )
    raise DataError(
        f"{files}: expected a ratings file ({FORMATS}), found {', '.join(names) or 'no files'}."
    )


def _open(path: Path) -> tuple[FileSet, str | None]:
    """Where the files lie, and the one that is meant (None: it is to be found)."""
    if path.is_dir():
        return Folder(path), None
    if path.is_file():
        is_part = ncf.prefix_of(plain_name(path.name)) is not None
        if path.suffix == ".zip" and not is_part:
            return Archive(path), None
        return Folder(path.parent), path.name
    part = _prefixed(path)
    if part is None:
        raise DataError(f"{path}: no such file or folder.")
    return Folder(path.parent), part


def _prefixed(path: Path) -> str | None:
    """A file of the NCF triple whose names start with the path's."""
    if not path.parent.is_dir():
        return None
    names = Folder(path.parent).names()
    return next((n for n in names if ncf.prefix_of(plain_name(n)) == path.name), None)


def _read_file(
    files: FileSet,
    file: str,
    *,
    columns: Columns | None,
    min_rating: float | None,
    k_core: int,
    name: str,
) -> Interactions:
    where = files.where(file)
    prefix = ncf.prefix_of(plain_name(file))
    headless = prefix is not None or plain_name(file).endswith((".data", ".dat"))
    if headless:
        require_no_names(columns, where)
    if prefix is not None:
        if min_rating is not None or k_core:
            raise DataError(
                f"{where}: brings its own split, which filters would break; leave min_rating "
                "and k_core out."
            )
        return ncf.read_triple(files, file, prefix, name, columns)
    events = _read_events(files, file, columns, rated=min_rating is not None)
    return Interactions.from_columns(
        events.users,
        events.items,
        events.ratings,
        events.times,
        name=name,
        min_rating=min_rating,
        k_core=k_core,
        titles=read_titles(files, file),
    )


def _read_events(files: FileSet, file: str, columns: Columns | None, *, rated: bool) -> Events:
    plain, where = plain_name(file), files.where(file)
    if not plain.endswith((*_TABLES, ".inter")):
        raise DataError(f"{where}: expected {FORMATS}; found a file of another kind.")
    data = files.read(file)
    if plain.endswith(".parquet"):
        return parquet_events(data, where, columns, rated=rated)
    if plain.endswith(".csv"):
        return headed_events(data, where, ",", columns, rated=rated)
    if plain.endswith((".tsv", ".inter")):
        return headed_events(data, where, "\t", columns, rated=rated)
    delimiter = "::" if plain.endswith(".dat") else "\t"
    return bare_events(data, where, delimiter, columns, rated=rated)
