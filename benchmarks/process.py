"""What a whole process costs: time to the first finished round, and memory.

    python -m benchmarks.process --dataset=ml-1m --data_dir=DATA_DIR

Starts `experiments.run` in fresh processes: the reference round without and with JAX's persistent
compilation cache (empty, then filled), and one round in which every client takes part.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

from benchmarks import harness

DATASET = flags.DEFINE_string("dataset", "ml-latest-small-2016", "As in Spec.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
CODEC = flags.DEFINE_string("codec", "actions", "As in Spec.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def one_round(cohort_size: int, cache: str | None = None) -> dict[str, Any]:
    """Summary of a one-round run in a process of its own, with its wall time and peak memory."""
    call = [sys.executable, "-m", "experiments.run", "--rounds=1", "--noprogress"]
    call += [f"--dataset={DATASET.value}", f"--codec={CODEC.value}", f"--cohort_size={cohort_size}"]
    call += [f"--data_dir={DATA_DIR.value}"] if DATA_DIR.value else []
    env = os.environ | (
        {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        if cache
        else {}
    )
    start = time.perf_counter()
    with subprocess.Popen(call, env=env, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        summary = json.loads(child.stdout.read())
        _, _, usage = os.wait4(child.pid, 0)
        child.returncode = 0
    summary["wall_s"] = time.perf_counter() - start
    summary["peak_gib"] = usage.ru_maxrss / 2**20
    return summary


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        runs = {
            "no cache": one_round(60),
            "cache, empty": one_round(60, cache),
            "cache, filled": one_round(60, cache),
        }
    for name, run in runs.items():
        figures[f"{name}: process start to exit, s"] = run["wall_s"]
        figures[f"{name}: `run` to first finished round, s"] = run["speed"]["startup_s"]
        figures[f"{name}: of which compilation, s"] = run["speed"]["compile_s"]
    digests = {run["state_digest"] for run in runs.values()}
    figures["same result with and without cache"] = str(len(digests) == 1)
    everyone = one_round(0)
    figures["full participation: peak resident memory, GiB (bar: < 2)"] = everyone["peak_gib"]
    harness.report(f"processes on {DATASET.value}, {CODEC.value}", figures, JSON.value)


if __name__ == "__main__":
    app.run(main)
