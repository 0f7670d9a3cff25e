"""What a whole process costs: time to the first finished round, and memory.

    python -m benchmarks.process

Starts `experiments.run` in fresh processes (through `benchmarks/first_round.py`, which tells where
its time went): the reference round without and with JAX's persistent compilation cache (empty, then
filled), and one round in which every client takes part. The limit of what imports can be is a
process that imports the library's dependencies and nothing else.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

from benchmarks import harness, machine

DATASET = flags.DEFINE_string("dataset", "ml-latest-small-2016", "As in Spec.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
CODEC = flags.DEFINE_string("codec", "actions", "As in Spec.")
EVERYONE = flags.DEFINE_string(
    "everyone_on", None, "Dataset of the round in which all take part; default: --dataset."
)
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


DEPENDENCIES = "jax, flax, optax, numpy, scipy, chex, absl, jaxtyping, pyarrow.parquet"


def one_round(dataset: str, cohort_size: int, cache: str | None = None) -> dict[str, Any]:
    """Summary of a one-round run in a process of its own, with its wall time and peak memory.

    Raises:
      RuntimeError: it failed.
    """
    call = [sys.executable, "-m", "benchmarks.first_round", "--rounds=1", "--noprogress"]
    call += [f"--dataset={dataset}", f"--codec={CODEC.value}", f"--cohort_size={cohort_size}"]
    call += [f"--data_dir={DATA_DIR.value}"] if DATA_DIR.value else []
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if cache is None:
        call.append("--compilation_cache=none")
    else:
        env |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    start = time.perf_counter()
    env["BENCH_BEGAN"] = repr(time.time())
    with subprocess.Popen(call, env=env, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        told = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(call)}: exit code {child.returncode}")
    summary = json.loads(told)
    summary["wall_s"] = time.perf_counter() - start
    summary["peak_gib"] = usage.ru_maxrss / 2**20
    return summary


def imports_of_dependencies() -> float:
    """Seconds of a process that imports them, the second time."""
    for _ in range(2):  # once for the disk's cache
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {DEPENDENCIES}"], check=True)
    return time.perf_counter() - start


def bars(runs: dict[str, dict[str, Any]], peak_gib: float, everyone: str) -> list[harness.Bar]:
    """Imports and data of every start, and memory."""
    two = machine.cpu_cores(2)
    bundled = harness.Need("ml-latest-small-2016", DATASET.value == "ml-latest-small-2016")
    found = []
    for name in ("cold", "warm"):
        seconds = sum(runs[name]["phases"].values())
        text = f"start-up, {name}: imports and data, s"
        found.append(harness.bar(text, seconds, "<=", 3, two, bundled))
    ml1m = harness.Need("ml-1m", everyone == "ml-1m")
    name = "peak resident memory, ML-1M, all clients in a round, GiB"
    return [*found, harness.bar(name, peak_gib, "<=", 2, ml1m)]


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    figures: dict[str, Any] = {}
    least = imports_of_dependencies()
    with tempfile.TemporaryDirectory() as cache:
        one_round(DATASET.value, 60, cache)
        runs = {
            "cold": one_round(DATASET.value, 60),
            "warm": one_round(DATASET.value, 60, cache),
        }
    for name, run in runs.items():
        phases, speed = run["phases"], run["speed"]
        from_start = phases["imports_s"] + speed["startup_s"]
        figures[f"{name}: process start to first finished round, s"] = from_start
        figures[f"{name}: of which imports, s"] = phases["imports_s"]
        figures[f"{name}: of which data, s"] = phases["data_s"]
        figures[f"{name}: of which compilation, s"] = speed["compile_s"]
        figures[f"{name}: `run` to first finished round, s"] = speed["startup_s"]
        figures[f"{name}: process start to exit, s"] = run["wall_s"]
    digests = {run["state_digest"] for run in runs.values()}
    figures["same result with and without cache"] = str(len(digests) == 1)
    figures["imports of the dependencies alone, a process, s"] = least
    figures["imports until `run`, over those"] = runs["warm"]["phases"]["imports_s"] / least
    figures["cold over warm"] = runs["cold"]["wall_s"] / runs["warm"]["wall_s"]
    everyone = EVERYONE.value or DATASET.value
    peak = one_round(everyone, 0)["peak_gib"]
    figures[f"full participation, {everyone}: peak resident memory, GiB"] = peak
    harness.report(
        f"processes on {DATASET.value}, {CODEC.value}",
        figures,
        JSON.value,
        bars=bars(runs, peak, everyone),
    )


if __name__ == "__main__":
    app.run(main)
