"""Several processes that run one experiment: whether they agree, and how they end.

    python -m benchmarks.hosts

Each layout of processes and devices runs the same experiment, and its item table is compared with
that of the first. Then two processes are started for each signal: as soon as there is a checkpoint
one of them gets it, and it is timed when the other has ended, and with which code.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import harness
from fedras_jax import checkpoint, record
from fedras_jax.assembly import assemble, split_of
from fedras_jax.spec import Spec

LAYOUTS = flags.DEFINE_list(
    "layouts", ["1x1", "1x2", "2x1", "1x4", "2x2", "2x2", "3x1"], "Processes x devices of each."
)
SIGNALS = flags.DEFINE_list("signals", ["SIGKILL", "SIGSTOP", "SIGTERM"], "To send.")
ROUNDS = flags.DEFINE_integer("rounds", 60, "Rounds of a layout.")
HEARTBEAT_S = flags.DEFINE_integer("heartbeat_timeout_s", 10, "As in `experiments.run`.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

# The end of those that a signal has left standing.
PATIENCE_S = 120


def start(spec: Spec, processes: int, devices: int, folder: Path) -> list[subprocess.Popen]:
    """The processes of one run, of which the first has the folder."""
    call = [sys.executable, "-m", "experiments.run", "--noprogress", f"--devices={devices}"]
    call += [f"--dataset={spec.dataset}", f"--codec={spec.codec}", f"--dim={spec.dim}"]
    call += [f"--rounds={spec.rounds}", f"--eval_every={spec.eval_every}", "--checkpoint_every=25"]
    call += [f"--workdir={folder}"]
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        call += ["--distributed", f"--coordinator_address=127.0.0.1:{port}"]
        call += [f"--num_processes={processes}", f"--heartbeat_timeout_s={HEARTBEAT_S.value}"]
    each = [[f"--process_id={i}"] if processes > 1 else [] for i in range(processes)]
    return [
        subprocess.Popen([*call, *own], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for own in each
    ]


def table_of(spec: Spec, processes: int, devices: int, folder: Path) -> np.ndarray:
    """The item table that a layout ends with.

    Raises:
      RuntimeError: a process failed.
    """
    codes = [child.wait() for child in start(spec, processes, devices, folder)]
    if any(codes):
        raise RuntimeError(f"{processes} x {devices}: exit codes {codes}")
    split = split_of(spec)
    saved = record.last(folder, spec, assemble(spec, split)[1], split.n_clients)
    assert saved is not None
    return np.asarray(saved.tree["state"].items)


def after(spec: Spec, name: str, hit: int, folder: Path) -> tuple[float, int]:
    """Seconds from a signal to one of two processes until the other ended, and its code."""
    pair = start(spec, 2, 1, folder)
    try:
        while not checkpoint.rounds_in(folder):
            if any(child.poll() is not None for child in pair):
                raise RuntimeError("a process ended before its signal")
            time.sleep(0.05)
        began = time.perf_counter()
        os.kill(pair[hit].pid, signal.Signals[name])
        code = pair[1 - hit].wait(PATIENCE_S)
        return time.perf_counter() - began, code
    finally:
        for child in pair:
            child.kill()
            child.wait()


def layouts(names: Sequence[str], place: Path) -> dict[str, Any]:
    """The largest difference of every layout's table from the first one's."""
    spec = Spec(dim=16, codec="dense", rounds=ROUNDS.value, eval_every=ROUNDS.value)
    figures: dict[str, Any] = {}
    tables: list[np.ndarray] = []
    for i, name in enumerate(names):
        processes, devices = map(int, name.split("x"))
        tables.append(table_of(spec, processes, devices, place / str(i)))
        if i:
            differs = float(np.abs(tables[-1] - tables[0]).max())
            same = [names[j] for j in range(i) if np.array_equal(tables[j], tables[-1])]
            figures[f"{name}: largest difference from {names[0]}"] = differs
            figures[f"{name}: the same bits as"] = ", ".join(same) or "none before it"
    return figures


def main(argv: list[str]) -> None:
    del argv
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        figures |= layouts(LAYOUTS.value, Path(place))
        spec = Spec(dim=16, codec="dense", rounds=100_000, eval_every=100_000)
        for name in SIGNALS.value:
            for hit, whom in enumerate(("first", "second")):
                seconds, code = after(spec, name, hit, Path(place) / f"{name}{hit}")
                figures[f"{name} to the {whom}: seconds"] = seconds
                figures[f"{name} to the {whom}: code of the other"] = code
    harness.report("several processes on one machine", figures, JSON.value)


if __name__ == "__main__":
    app.run(main)
