"""The titles that MovieLens puts beside its ratings."""

from collections.abc import Callable

from fedras_jax.data.storage import FileSet, plain_name, sibling
from fedras_jax.data.tables import first_line, parse_text
from fedras_jax.errors import DataError

Titles = dict[int | str, str]


def read_titles(files: FileSet, ratings_name: str) -> Titles | None:
    """Titles by original item id, from the file that belongs beside a ratings file.

    `movies.csv` beside `ratings.csv`, `movies.dat` beside `ratings.dat`, `u.item` beside
    `u.data`; None where there is no such file or the ratings are called something else.

    Args:
        files: where the ratings lie.
        ratings_name: the ratings' name in `files`.

    Raises:
        DataError: the file is there and malformed.
    """
    beside = _BESIDE.get(plain_name(ratings_name))
    name = beside and sibling(files, ratings_name, beside[0])
    if not beside or not name:
        return None
    where = files.where(name)
    pairs = beside[1](files.read(name), where)
    if all(key.isdecimal() and str(int(key)) == key for key, _ in pairs):
        return {int(key): title for key, title in pairs}
    return dict(pairs)


def _comma_separated(data: bytes, where: str) -> list[tuple[str, str]]:
    header = first_line(data).removeprefix("\ufeff").split(",")
    if header[:2] != ["movieId", "title"]:
        raise DataError(
            f"{where}: expected the columns movieId,title first, found {','.join(header)}."
        )
    ids, titles = parse_text(data, where, ",", len(header), [0, 1], skip_rows=1, quoted=True)
    return list(zip(ids.to_pylist(), titles.to_pylist(), strict=True))


def _double_colon(data: bytes, where: str) -> list[tuple[str, str]]:
    """`id::title::genres`; a title may hold "::" itself."""
    rows = [line.split("::") for line in _decode(data).splitlines() if line]
    if bad := next((row for row in rows if len(row) < 3), None):
        raise DataError(f"{where}: expected id::title::genres, found {'::'.join(bad)[:80]!r}.")
    return [(row[0], "::".join(row[1:-1])) for row in rows]


def _bar_separated(data: bytes, where: str) -> list[tuple[str, str]]:
    """`id|title|date|...`."""
    rows = [line.split("|") for line in _decode(data).splitlines() if line]
    if bad := next((row for row in rows if len(row) < 3), None):
        raise DataError(f"{where}: expected id|title|..., found {'|'.join(bad)[:80]!r}.")
    return [(row[0], row[1]) for row in rows]


def _decode(data: bytes) -> str:
    """ml-100k and ml-1m are latin-1, ml-10m is UTF-8; accents in latin-1 are no valid UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


_Parser = Callable[[bytes, str], list[tuple[str, str]]]
_BESIDE: dict[str, tuple[str, _Parser]] = {
    "ratings.csv": ("movies.csv", _comma_separated),
    "ratings.dat": ("movies.dat", _double_colon),
    "u.data": ("u.item", _bar_separated),
}
