"""Public datasets by name, and where they are looked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from os import PathLike, fspath
from pathlib import Path

from fedras_jax.data.download import cache_dir, download
from fedras_jax.data.interactions import Interactions
from fedras_jax.data.readers import is_readable, read, read_folder
from fedras_jax.data.synthetic import PREFIX, synthetic_from_spec
from fedras_jax.data.tables import Columns
from fedras_jax.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be had by name.

    Attributes:
        name: what `load` calls it.
        url: the official archive; None for what the package brings along.
        md5: the archive's published MD5 sum, hexadecimal; None without a url.
    """

    name: str
    url: str | None = None
    md5: str | None = None


_MOVIELENS = "https://files.grouplens.org/datasets/movielens"

# The sums are GroupLens's own, published beside each archive as NAME.zip.md5.
CATALOGUE: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset("ml-latest-small-2016"),
        Dataset("ml-100k", f"{_MOVIELENS}/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"),
        Dataset("ml-1m", f"{_MOVIELENS}/ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906"),
        Dataset("ml-10m", f"{_MOVIELENS}/ml-10m.zip", "ce571fd55effeba0271552578f2648bd"),
        Dataset("ml-20m", f"{_MOVIELENS}/ml-20m.zip", "cd245b17a1ae2cc31bb14903e1204af3"),
    )
}


def datasets() -> tuple[str, ...]:
    """The names that `load` knows, `synthetic:...` aside."""
    return tuple(CATALOGUE)


def load(
    name_or_path: str | PathLike[str],
    *,
    data_dir: str | PathLike[str] | None = None,
    min_rating: float | None = None,
    k_core: int = 0,
    columns: Columns | None = None,
    seed: int = 0,
    download: bool = True,
) -> Interactions:
    """Loads a dataset by path or by name.

    An existing path is read (see `read`). A known name is looked for in `data_dir`, as
    `NAME.zip` and then as the folder `NAME`, then among what the package brings along, then in
    the cache (~/.cache/fedras_jax or $FEDRAS_JAX_CACHE), and is then downloaded into the cache.
    `synthetic:UxM` and `synthetic:UxMxN` draw U clients, M items and about N interactions each.

    Args:
        name_or_path: a file, folder or archive; one of `datasets()`; or a synthetic size.
        data_dir: a folder of datasets to look in before anything else.
        min_rating: the lowest rating that counts as an interaction; None keeps all.
        k_core: the least number of interactions of a user and of an item; 0 keeps all.
        columns: header names for a path to a table, see `read`.
        seed: of synthetic data; reading does not draw.
        download: whether the network may be used.

    Raises:
        DataError: nothing by that name or path, a dataset that is not here and cannot be
            downloaded, or malformed content.
    """
    text = fspath(name_or_path)
    if text.startswith(PREFIX):
        if columns:
            raise DataError(f"{text!r}: synthetic data has no header; leave columns out.")
        return _filtered(synthetic_from_spec(text, seed=seed), min_rating, k_core)
    if text and is_readable(Path(text)):
        return read(text, columns=columns, min_rating=min_rating, k_core=k_core)
    dataset = CATALOGUE.get(text)
    if dataset is None:
        raise DataError(
            f"{text!r} is neither an existing file or folder nor a known dataset; known are "
            f"{', '.join(CATALOGUE)} and {PREFIX}CLIENTSxITEMS."
        )
    folder = None if data_dir is None else Path(data_dir)
    if folder is not None and not folder.is_dir():
        raise DataError(f"data_dir: expected a folder, {folder} is none.")
    found = folder and next(
        (p for p in (folder / f"{text}.zip", folder / text) if p.exists()), None
    )
    if not found and dataset.url is None:
        return read_folder(
            bundled(text), columns=columns, min_rating=min_rating, k_core=k_core, name=text
        )
    path = found or fetch(dataset, cache_dir(), data_dir=folder, allowed=download)
    return read(path, columns=columns, min_rating=min_rating, k_core=k_core, name=text)


def bundled(name: str) -> Traversable:
    """The folder of a dataset that the package brings along."""
    return resources.files("fedras_jax.data") / "bundled" / name


def fetch(
    dataset: Dataset, cache: Path, *, data_dir: Path | None = None, allowed: bool = True
) -> Path:
    """The dataset's archive in the cache, downloaded and verified where it is not there yet.

    Args:
        dataset: one with a url and a sum.
        cache: the folder for archives.
        data_dir: where the caller looked before, for messages.
        allowed: whether the network may be used.

    Raises:
        DataError: not in the cache, and not to be had; says what to get and where to put it.
    """
    archive = cache / f"{dataset.name}.zip"
    if archive.exists():
        return archive
    if dataset.url is None or dataset.md5 is None:
        raise DataError(f"{dataset.name}: has no archive to download.")
    folder = "a folder that you name as data_dir" if data_dir is None else data_dir
    by_hand = f"Get {dataset.url} yourself and put it at {archive}, or in {folder}."
    if not allowed:
        raise DataError(f"{dataset.name}: not here and downloads are off. {by_hand}")
    try:
        download(dataset.url, archive, dataset.md5)
    except DataError as error:
        raise DataError(f"{dataset.name}: {error} {by_hand}") from error
    return archive


def _filtered(interactions: Interactions, min_rating: float | None, k_core: int) -> Interactions:
    """Filters what was drawn as `read` filters what it reads; unfiltered, items all stay."""
    if min_rating is None and k_core == 0:
        return interactions
    users, items = interactions.to_columns()
    return Interactions.from_columns(
        users,
        items,
        times=interactions.times,
        name=interactions.name,
        min_rating=min_rating,
        k_core=k_core,
    )
