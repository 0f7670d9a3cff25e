"""Slots that rounds compute for every real example: what static widths and chunks cost.

    python -m benchmarks.padding --data_dir=DATA_DIR

Counted on the host, for many cohorts, exactly as `cohort.fold_clients` deals clients to devices
and fills chunks. The baseline is one width for all clients, that of the longest history.
"""

from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import contestants, harness, machine
from fedras_jax import cohort
from fedras_jax.assembly import split_of
from fedras_jax.spec import Spec

DATASETS = flags.DEFINE_list(
    "datasets", ["ml-1m", "ml-100k", "ml-latest-small-2016"], "Those that are here are counted."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
COHORT = flags.DEFINE_integer("cohort_size", 60, "Clients a round.")
DIM = flags.DEFINE_integer("dim", 64, "D: narrower rows go through in larger chunks.")
COHORTS = flags.DEFINE_integer("cohorts", 200, "Random cohorts.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def waste(lengths: np.ndarray, widths: tuple[int, ...]) -> float:
    """Slots an example, over random cohorts of all clients' lengths."""
    draws = np.random.default_rng(0)
    computed = real = 0
    for _ in range(COHORTS.value):
        some = draws.choice(lengths, min(COHORT.value, len(lengths)), replace=False)
        chunk = cohort.round_chunk(widths, DIM.value)
        computed += contestants.slots(some, widths, chunk, jax.device_count())
        real += int(some.sum())
    return computed / real


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    figures: dict[str, Any] = {}
    bars = []
    for name in DATASETS.value:
        here = machine.dataset(name, DATA_DIR.value)
        found = None
        if here.there:
            spec = Spec(dataset=name)
            length = contestants.lengths(spec, split_of(spec, data_dir=DATA_DIR.value))
            widths = cohort.plan_widths(length)
            found = waste(length, widths)
            one_width = waste(length, widths[-1:])
            figures[f"{name}: widths"] = ", ".join(map(str, widths))
            figures[f"{name}: slots an example"] = found
            figures[f"{name}: with one width"] = one_width
            figures[f"{name}: of the slots with one width"] = found / one_width
        text = f"padding, {name}, slots an example"
        usual = harness.Need("60 clients, D=64", (COHORT.value, DIM.value) == (60, 64))
        bars.append(harness.bar(text, found, "<=", 1.35, machine.cpu_cores(2), here, usual))
    title = f"padding, cohorts of {COHORT.value}, limit 1"
    harness.report(title, figures, JSON.value, bars=bars)


if __name__ == "__main__":
    app.run(main)
