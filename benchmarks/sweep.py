"""What sharing programs saves: a sweep in one process against a process a run; and its memory.

    python -m benchmarks.sweep

8 seeds x 4 learning rates, 100 rounds of 60 clients on ml-latest-small-2016: `experiments.sweep`
once, and `experiments.run` 32 times, two at a time, each from start to exit with nothing compiled
before. Then the peak resident memory of sweeps in processes of their own against what the plan
said, and how much of a run's time its results and checkpoints take.
"""

import concurrent.futures
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import harness
from fedras_jax import axes, results, sweeps
from fedras_jax.run import Options
from fedras_jax.spec import Spec

DATASET = flags.DEFINE_string("dataset", "ml-latest-small-2016", "As in Spec.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
CODEC = flags.DEFINE_string("codec", "actions", "As in Spec.")
PARTS = flags.DEFINE_list("parts", ["time", "memory", "writing"], "What to measure.")
RUNS = flags.DEFINE_list("runs", ["1", "8", "32"], "Sizes of groups whose memory is measured.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

SEEDS, RATES = range(8), (0.1, 0.25, 0.5, 1.0)


def call(binary: str, *extra: str) -> float:
    """Runs a binary in a process without any cache of programs; returns peak memory in bytes."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", f"experiments.{binary}", "--noprogress"]
    command.append("--compilation_cache=none")
    command += [f"--dataset={DATASET.value}", f"--codec={CODEC.value}", *extra]
    command += [f"--data_dir={DATA_DIR.value}"] if DATA_DIR.value else []
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {child.returncode}")
    return usage.ru_maxrss * 2**10


def race(folder: Path) -> dict[str, Any]:
    """Seconds of both ways, compilation included."""
    short = ("--rounds=100", "--eval_every=100", "--checkpoint_every=0")
    start = time.perf_counter()
    call(
        "sweep",
        *short,
        f"--axis=seed={list(SEEDS)}",
        f"--axis=client_lr={list(RATES)}",
        f"--workdir={folder}/sweep",
    )
    together = time.perf_counter() - start
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(2) as two:
        jobs = [
            two.submit(
                call,
                "run",
                *short,
                f"--seed={seed}",
                f"--client_lr={lr}",
                "--devices=1",
                f"--workdir={folder}/seed{seed}lr{lr}",
            )
            for seed in SEEDS
            for lr in RATES
        ]
        for job in jobs:
            job.result()
    apart = time.perf_counter() - start
    return {
        "32 runs in one sweep, s": together,
        "32 processes, two at a time, s": apart,
        "times faster": apart / together,
    }


def peak(folder: Path) -> dict[str, Any]:
    """Peak memory of groups of several sizes, measured and as planned."""
    figures: dict[str, Any] = {}
    for runs in map(int, RUNS.value):
        base = Spec(dataset=DATASET.value, codec=CODEC.value, rounds=50, eval_every=50)
        (group,) = sweeps.plan(
            axes.expand(base, {"seed": range(runs)}),
            folder / "nowhere",
            memory_gib=64,
            options=Options(data_dir=DATA_DIR.value),
            devices=len(os.sched_getaffinity(0)),
        ).groups
        found = call(
            "sweep",
            *("--rounds=50", "--eval_every=50", "--memory_gib=64"),
            f"--axis=seed={list(range(runs))}",
            f"--workdir={folder}/peak{runs}",
        )
        figures[f"{runs} runs: peak memory, GiB"] = found / 2**30
        planned = group.memory.bytes / found
        figures[f"{runs} runs: planned / measured"] = planned
    return figures


def writing(folder: Path) -> dict[str, Any]:
    """Share of a run's time that its results and checkpoints take, at the default interval."""
    from fedras_jax import checkpoint, record
    from fedras_jax.run import run

    spent, depth = 0.0, 0

    def timed(function):
        def wrapped(*args, **kwargs):
            nonlocal spent, depth
            start, depth = time.perf_counter(), depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                depth -= 1
                spent += 0 if depth else time.perf_counter() - start  # they call each other

        return wrapped

    for name in ("save", "flush", "finish", "close"):
        setattr(record.Record, name, timed(getattr(record.Record, name)))
    spec = Spec(dataset=DATASET.value, codec=CODEC.value, rounds=1000, eval_every=50)
    start = time.perf_counter()
    run(spec, workdir=folder / "written", data_dir=DATA_DIR.value, checkpoint_every=500)
    seconds = time.perf_counter() - start
    summary = results.read_summary(folder / "written")
    trained = seconds - summary["speed"]["compile_s"]
    return {
        "1000 rounds with results and checkpoints, s": seconds,
        "of which writing, s": spent,
        "share of the run": spent / seconds,
        "share of it without compilation": spent / trained,
        "checkpoints": len(checkpoint.rounds_in(folder / "written")),
    }


def bars(figures: dict[str, Any]) -> list[harness.Bar]:
    """Of those parts that were measured."""
    found = [
        harness.bar("sweep, times faster than processes", figures.get("times faster"), ">=", 3),
        harness.bar("writing, share of a run", figures.get("share of the run"), "<=", 0.03),
    ]
    for runs in RUNS.value:
        planned = figures.get(f"{runs} runs: planned / measured")
        name = f"memory planned over measured, {runs} runs"
        found.append(harness.bar(f"{name}, at least", planned, ">=", 0.75))
        found.append(harness.bar(f"{name}, at most", planned, "<=", 1.25))
    return found


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    figures: dict[str, Any] = {}
    parts = {"time": race, "memory": peak, "writing": writing}
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS.value:
            figures |= parts[part](Path(folder))
    harness.report(
        f"sweeps on {DATASET.value}, {CODEC.value}", figures, JSON.value, bars=bars(figures)
    )


if __name__ == "__main__":
    app.run(main)
