"""A ratings file becomes a store, in bounded memory.

    python -m benchmarks.conversion --rows=100000000 --users=1000000 --items=100000

Writes a file of that many ratings, users and items in random order (items and half of the rows'
users by Zipf's law, the others evenly; ids, stars and seconds are numbers), converts it, and prints
rows per second and by how much the process's anonymous memory grew at most. What is allowed is
--memory; libraries may take .05 GiB on top. The files lie in --folder, 25 bytes a row for csv and
as many again while it runs, and are deleted.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from absl import app, flags

from benchmarks import harness, memory
from fedras_jax.data.convert import convert

ROWS = flags.DEFINE_integer("rows", 1_000_000, "Ratings, repeats included.", lower_bound=1)
USERS = flags.DEFINE_integer("users", 10_000, "Users, at most.", lower_bound=1)
ITEMS = flags.DEFINE_integer("items", 5_000, "Items, at most.", lower_bound=1)
FORM = flags.DEFINE_enum("form", "csv", ["csv", "parquet"], "What the file is.")
MEMORY = flags.DEFINE_float("memory", 1.0, "GiB that rows and ids may take.")
FOLDER = flags.DEFINE_string("folder", None, "Where files lie meanwhile; default: the system's.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

CHUNK = 2_000_000  # rows that are drawn at once
LIBRARIES = 0.05  # GiB beside what is allowed, as docs/streaming.md says


def ratings(seed: int = 0) -> Iterator[pa.RecordBatch]:
    """The rows, some at a time."""
    r = np.random.default_rng(seed)
    shuffled = [r.permutation(n) for n in (USERS.value, ITEMS.value)]
    for first in range(0, ROWS.value, CHUNK):
        n = min(CHUNK, ROWS.value - first)
        # Log-uniform places: the density falls as one over the place.
        user, item = (
            ids[np.exp(r.random(n) * np.log(len(ids))).astype(int) - 1] for ids in shuffled
        )
        user = np.where(r.random(n) < 0.5, r.integers(0, USERS.value, n), user)
        yield pa.RecordBatch.from_arrays(
            [user, item, r.integers(1, 6, n), first + np.arange(n)],
            ["user", "item", "rating", "timestamp"],
        )


def write(path: Path) -> None:
    """The file of all rows."""
    chunks = ratings()
    first = next(chunks)
    open_writer = pa.csv.CSVWriter if FORM.value == "csv" else pa.parquet.ParquetWriter
    with open_writer(path, first.schema) as writer:
        writer.write(first)
        for chunk in chunks:
            writer.write(chunk)


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
        source = Path(folder) / f"ratings.{FORM.value}"
        write(source)
        pa.default_memory_pool().release_unused()
        before = memory.anonymous()
        with memory.peak() as highest:
            started = time.perf_counter()
            store = convert(source, Path(folder) / "store", memory=MEMORY.value)
            seconds = time.perf_counter() - started
        figures = {
            "file, GB": source.stat().st_size / 1e9,
            "conversion, s": seconds,
            "rows/s": ROWS.value / seconds,
            "users kept": store.n_clients,
            "items kept": store.n_items,
            "training interactions kept": len(store.items),
            "allowed, GiB": MEMORY.value,
        }
    grown = (highest[0] - before) / 2**30
    size = (ROWS.value, FORM.value, MEMORY.value)
    whole = harness.Need("100,000,000 rows of csv, 1 GiB", size == (10**8, "csv", 1.0))
    limit = MEMORY.value + LIBRARIES
    bars = [harness.bar("conversion: growth of anonymous memory, GiB", grown, "<=", limit, whole)]
    figures["growth of anonymous memory, GiB"] = grown
    harness.report(f"{ROWS.value:,} rows of {FORM.value}", figures, JSON.value, bars=bars)


if __name__ == "__main__":
    app.run(main)
