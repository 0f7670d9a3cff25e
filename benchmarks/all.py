"""Run the benchmarks, one process each, keep what they found, and count the bars met and missed.

    python -m benchmarks.all --data_dir=DATA_DIR --outdir=results/bench

Writes a JSON file a benchmark, all of it as `figures.json`, and as Markdown tables `figures.md`.
Exits with 1 where a bar is missed or a benchmark fails. Nothing else should run on the machine
meanwhile. ML-1M is used where --data_dir holds it, and the bundled dataset otherwise; bars whose
hardware or data is absent are listed as not measured. --more adds those that take longer.
"""

import os
import sys
from pathlib import Path

from absl import app, flags

from benchmarks import machine, suite

DATASET = flags.DEFINE_string("dataset", None, "For those that train; default: see above.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
OUTDIR = flags.DEFINE_string("outdir", "results/bench", "Where figures go.")
MORE = flags.DEFINE_bool("more", False, "Also those that take longer.")
ONLY = flags.DEFINE_list("only", [], "These benchmarks alone.")

BUNDLED = "ml-latest-small-2016"


def calls(dataset: str, data_dir: str | None) -> dict[str, list[str]]:
    """Benchmark -> its flags, the quickest first.

    Args:
      dataset: of those that train.
      data_dir: where it lies.
    """
    there = [f"--data_dir={data_dir}"] if data_dir else []
    data = [f"--dataset={dataset}", *there]
    few = ["--turns=3"]
    reference = dataset if dataset == "ml-1m" else "synthetic:6040x3706x165"
    found = {
        "padding": there,
        "sampling": [*data, *few],
        "evaluation": [*data, *few],
        "kmeans1d": few,
        "kmeans": few,
        "round": data,
        "codecs": few,
        "process": [f"--dataset={BUNDLED}", f"--everyone_on={dataset}", *there],
        "scaling": few,
    }
    more = {
        "policies": data,
        "distortion": data,
        "sweep": data,
        "results": [],
        "spread": few,
        "hosts": [],
        "million": ["--clients=1000000", "--items=100000", f"--reference={reference}", *there],
        "conversion": ["--rows=100000000", "--users=1000000", "--items=100000"],
    }
    if ONLY.value:
        return {name: args for name, args in (found | more).items() if name in ONLY.value}
    return found | more if MORE.value else found


def main(argv: list[str]) -> None:
    del argv
    dataset = DATASET.value
    if dataset is None:
        dataset = "ml-1m" if machine.dataset("ml-1m", DATA_DIR.value).there else BUNDLED
    commands = {
        name: [sys.executable, "-m", f"benchmarks.{name}", *args]
        for name, args in calls(dataset, DATA_DIR.value).items()
    }
    unknown = set(ONLY.value) - commands.keys()
    if unknown:
        sys.exit(f"--only: no benchmark is called {', '.join(sorted(unknown))}")
    busy = os.getloadavg()[0] > machine.cores() / 2
    if busy:
        print(f"other work is running here (load {os.getloadavg()[0]:.1f}): these are no figures")
    whole = not (ONLY.value or MORE.value)
    if whole:
        print("some bars are of benchmarks that take longer: --more", flush=True)
    sys.exit(suite.run(commands, Path(OUTDIR.value), busy=busy, whole=whole))


if __name__ == "__main__":
    app.run(main)
