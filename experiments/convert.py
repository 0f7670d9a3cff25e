"""Make a store, from a ratings file of any size or from nothing, in bounded memory.

    python -m experiments.convert --dataset=ratings.csv --store=stores/ratings --memory=2
    python -m experiments.convert --dataset=synthetic:1000000x100000x50 --store=stores/million

--dataset is a file (*.csv, *.tsv, *.parquet, *.dat, ...; text may be .gz or .zip), a folder of
parts of one, a known name, or a synthetic size. --min_rating, --k_core, --[no]validation and
--data_seed mean what they mean to a run, and are fixed in the store, on which `experiments.stream`
runs.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from absl import app
from absl import flags as absl_flags

from experiments import flags
from fedras_jax.data.catalogue import CATALOGUE, bundled, fetch
from fedras_jax.data.convert import convert
from fedras_jax.data.download import cache_dir
from fedras_jax.data.store import Store
from fedras_jax.data.synthetic import PREFIX, sizes_of, synthetic_store
from fedras_jax.errors import SpecError

STORE = absl_flags.DEFINE_string("store", None, "Folder that becomes the store; nothing is there.")
MEMORY = absl_flags.DEFINE_float("memory", 2.0, "GiB that rows and ids may take.")
# Of an experiment, those that a store is made by.
FLAGS = ("dataset", "dataset_arg", "min_rating", "k_core", "validation", "data_seed")

for _flag in (*FLAGS, "data_dir", "progress"):  # so that --help shows them
    absl_flags.declare_key_flag(_flag)


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.no_arguments(argv)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and clear up
        flags.refuse_all_but(*FLAGS, "data_dir", "progress")
        if STORE.value is None:
            raise SpecError("--store is needed: where the store goes, as in stores/ratings")
        dataset: Any = absl_flags.FLAGS["dataset"].value
        found = make(dataset, STORE.value)
    print(
        f"{found.path}: {found.n_clients:,} clients, {found.n_items:,} items, "
        f"{len(found.items):,} training interactions"
    )


def make(dataset: str, path: str) -> Store:
    """The store that the flags describe.

    Raises:
      DataError, SpecError: as in `convert` and `synthetic_store`; or flags that do not fit.
    """
    given: dict[str, Any] = {name: absl_flags.FLAGS[name].value for name in FLAGS}
    seed = given["data_seed"]
    validation = given["validation"] is not False
    with steps(flags.PROGRESS.value) as tell:
        if dataset.startswith(PREFIX):
            if given["min_rating"] is not None or given["k_core"] or given["dataset_arg"]:
                raise SpecError(
                    f"{dataset}: a synthetic store has neither ratings nor columns and keeps all "
                    "items: leave --min_rating, --k_core and --dataset_arg out"
                )
            n_clients, n_items, mean = sizes_of(dataset)
            more: dict[str, Any] = {} if mean is None else {"mean_interactions": mean}
            more |= {"seed": seed, "validation": validation, "tell": tell}
            return synthetic_store(path, n_clients, n_items, **more)
        with _file(dataset) as file:
            return convert(
                file,
                path,
                columns=flags.columns(),
                min_rating=given["min_rating"],
                k_core=given["k_core"],
                validation=validation,
                seed=seed,
                memory=MEMORY.value,
                tell=tell,
            )


def _file(dataset: str) -> contextlib.AbstractContextManager[Path]:
    """Where a dataset lies: at a path, in --data_dir, in the package, or in the cache."""
    folder = flags.DATA_DIR.value or ""
    if Path(dataset).exists() or CATALOGUE.get(dataset) is None:
        return contextlib.nullcontext(Path(dataset))
    for name in (f"{dataset}.zip", dataset) if folder else ():
        if (Path(folder) / name).exists():
            return contextlib.nullcontext(Path(folder) / name)
    if CATALOGUE[dataset].url is None:
        return resources.as_file(bundled(dataset))  # of a package in a zip, a copy meanwhile
    return contextlib.nullcontext(fetch(CATALOGUE[dataset], cache_dir()))


@contextlib.contextmanager
def steps(enabled: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """A function that shows a bar for each thing that is done; it shows nothing unless enabled.

    Raises:
      SpecError: enabled without tqdm installed.
    """
    if not enabled:
        yield lambda what, done, total: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as e:
        raise SpecError(
            "a progress bar needs tqdm: pip install 'fedras_jax[progress]', or pass --noprogress"
        ) from e
    bars: dict[str, tqdm] = {}

    def tell(what: str, done: int, total: int | None) -> None:
        if what not in bars:
            for other in bars.values():
                other.close()
            bars[what] = tqdm(desc=what, total=total, unit_scale=True, dynamic_ncols=True)
        bars[what].update(done - bars[what].n)

    try:
        yield tell
    finally:
        for shown in bars.values():
            shown.close()


if __name__ == "__main__":
    app.run(main)
