"""A pass over a million clients whose interactions lie on disk.

    python -m benchmarks.million --clients=1000000 --items=100000 --store=/tmp/million \
        --reference=ml-1m --data_dir=DATA_DIR

Makes a synthetic store (kept where --store says, and used again), lets every client take part once
in streamed rounds, with each of --codecs, and prints clients per second, rows per client, and the
peak of the process's anonymous memory during the pass. A client's work grows with its rows (its
examples), so its speed is set against whole rounds in memory in rows per second: those of
--reference, by default a synthetic population of the size of MovieLens 1M. The bar is half of that,
and 8 GiB.
"""

import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import harness, machine, memory
from fedras_jax import cohort
from fedras_jax.assembly import assemble, split_of
from fedras_jax.data.store import is_store, open_store
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec
from fedras_jax.stream import Streamed, stream

CLIENTS = flags.DEFINE_integer("clients", 20_000, "U.")
ITEMS = flags.DEFINE_integer("items", 10_000, "M.")
MEAN = flags.DEFINE_integer("mean", 50, "Interactions of a client, on average.")
DIM = flags.DEFINE_integer("dim", 32, "D.")
COHORT = flags.DEFINE_integer("cohort_size", 10_000, "Clients a round.")
CODECS = flags.DEFINE_list("codecs", ["dense", "actions", "directional"], "One after another.")
CODEC_ARG = flags.DEFINE_integer("k", 16, "Actions, for codecs that have them.")
MEMORY = flags.DEFINE_float("memory", 4.0, "GiB that arrays may take.")
PRIVATE = flags.DEFINE_string("private_on", None, "As in experiments.stream.")
EVALUATE = flags.DEFINE_integer("evaluate_clients", 10_000, "Clients to evaluate; 0: all.")
STORE = flags.DEFINE_string("store", None, "Where the store lies, or goes; default: a passing one.")
REFERENCE = flags.DEFINE_string("reference", "synthetic:6040x3706x165", "As in Spec.dataset.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
REFERENCE_COHORT = flags.DEFINE_integer("reference_cohort", 600, "Clients a round of it.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def made(path: str) -> float:
    """Make the store unless it is there; seconds."""
    if is_store(path):
        return 0.0
    size = f"synthetic:{CLIENTS.value}x{ITEMS.value}x{MEAN.value}"
    started = time.perf_counter()
    call = ["experiments.convert", f"--dataset={size}", f"--store={path}"]
    subprocess.run([sys.executable, "-m", *call], check=True, stdout=sys.stderr)
    return time.perf_counter() - started


def one_pass(path: str, codec: str, mesh: Any) -> Streamed:
    """Every client once."""
    n = open_store(path).n_clients
    size = min(COHORT.value, n)
    rounds = -(-n // size)
    spec = Spec(
        dataset=path,
        dim=DIM.value,
        rounds=rounds,
        eval_every=rounds,
        sampler="rotation",
        sampler_args={"size": size},
        codec=codec,
        codec_args=codec_args(codec),
    )
    return stream(
        spec,
        memory=MEMORY.value,
        mesh=mesh,
        private_on=PRIVATE.value,
        evaluate_clients=min(EVALUATE.value, n),
        workdir=tempfile.mkdtemp() if PRIVATE.value == "disk" else None,
        progress=True,
        tell=lambda line: print(line, file=sys.stderr),
    )


def codec_args(codec: str) -> dict[str, int]:
    return {"k": CODEC_ARG.value} if codec in ("actions", "directional") else {}


def reference(codec: str, mesh: Any) -> tuple[float, float]:
    """Clients a second of whole rounds in memory, and rows of a client."""
    spec = Spec(
        dataset=REFERENCE.value,
        dim=DIM.value,
        cohort_size=REFERENCE_COHORT.value,
        candidates=0,
        codec=codec,
        codec_args=codec_args(codec),
    )
    _, algorithm, data = assemble(spec, split_of(spec, data_dir=DATA_DIR.value), mesh=mesh)
    advance = jax.jit(lambda s, d: simulate(algorithm, s, d, 10), donate_argnums=0)
    state = jax.jit(algorithm.init)()
    state, info = jax.block_until_ready(advance(state, data))
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        state, info = jax.block_until_ready(advance(state, data))
        seconds.append(time.perf_counter() - started)
    examples = np.asarray(info.n_examples)
    return examples.size / float(np.median(seconds)), float(examples.mean())


def compared(path: str, codec: str, mesh: Any) -> tuple[dict[str, Any], list[harness.Bar]]:
    """Figures of a codec, and its bars."""
    with memory.peak() as highest:
        done = one_pass(path, codec, mesh)
    speed, trained = done.summary["speed"], sum(row["clients"] for row in done.rounds)
    rows = sum(row["examples"] for row in done.rounds) / trained
    clients_s, rows_s = speed["clients_per_s"], speed["clients_per_s"] * rows
    there_s, there_rows = reference(codec, mesh)
    figures = {
        "client updates": trained,
        "pass, s (segments' reading included)": trained / clients_s,
        "compilation, s": speed["compile_s"],
        f"evaluation of {EVALUATE.value} clients, s": speed["evaluate_s"],
        "clients/s": clients_s,
        "rows a client": rows,
        "rows/s": rows_s,
        f"{REFERENCE.value}: clients/s": there_s,
        f"{REFERENCE.value}: rows a client": there_rows,
        f"{REFERENCE.value}: rows/s": there_s * there_rows,
        "rows/s over those in memory": rows_s / (there_s * there_rows),
        "peak anonymous memory, GiB": highest[0] / 2**30,
        "of which arrays were allowed, GiB": done.plan.allowed / 2**30,
        "private state on": done.plan.private,
        "rounds in a segment": done.plan.rounds,
    }
    size = (CLIENTS.value, ITEMS.value, MEAN.value, DIM.value)
    needs = (
        harness.Need("1,000,000 clients x 100,000 items, D=32", size == (10**6, 10**5, 50, 32)),
        machine.cpu_cores(2),
    )
    what = f"one pass, {codec}"
    ratio = "rows/s over those in memory"
    bars = [
        harness.bar(f"{what}: {ratio}", figures[ratio], ">=", 0.5, *needs),
        harness.bar(f"{what}: peak anonymous memory, GiB", highest[0] / 2**30, "<=", 8, *needs),
    ]
    return {f"{codec}: {name}": figure for name, figure in figures.items()}, bars


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    mesh = cohort.client_mesh() if jax.device_count() > 1 else None
    bars: list[harness.Bar] = []
    with tempfile.TemporaryDirectory() as folder:
        path = STORE.value or os.path.join(folder, "store")
        figures: dict[str, Any] = {"store made in, s": made(path) or "was there"}
        for codec in CODECS.value:
            found, judged = compared(path, codec, mesh)
            figures |= found
            bars += judged
    title = f"one pass over {CLIENTS.value:,} clients, D={DIM.value}, {COHORT.value} a round"
    harness.report(title, figures, JSON.value, bars=bars)


if __name__ == "__main__":
    app.run(main)
