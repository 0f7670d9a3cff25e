"""Kills runs at random moments, starts them again, and compares how they end.

    python -m benchmarks.kills --kills=100

Each run is killed with SIGKILL at a moment drawn uniformly from the time that a whole run takes,
its start and its end included, and one in two a second time, as it goes on; then it may end. Runs
that were faster than their moment are not counted, and others take their place. Metrics, payload,
clock, state digest and every row of every table must be those of a run that was left alone. Exits
with 1 if any differs.
"""

import concurrent.futures
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from absl import app, flags

KILLS = flags.DEFINE_integer("kills", 100, "Runs to kill, once or twice.")
SEED = flags.DEFINE_integer("moments", 0, "Seed of the moments.")
AT_ONCE = flags.DEFINE_integer("at_once", 2, "Runs at once.")

STATE = flags.DEFINE_enum(
    "state", "full", ["full", "dense"], "Everything that a state may hold, or the least, faster."
)

# Everything that a state may hold, and a checkpoint every few rounds.
RUN = (
    *("--dataset=synthetic:120x160x16", "--dim=16", "--cohort_size=12", "--candidates=30"),
    *("--rounds=240", "--eval_every=20", "--checkpoint_every=10", "--log_clients"),
    *("--codec=directional", "--codec_arg=k=8", "--feedback_rows=8"),
    *("--profile=mobile", "--profile_arg=failure=0.1"),
    *("--arrival=buffered", "--arrival_arg=in_flight=24"),
    *("--downlink=directional", "--downlink_arg=k=8", "--downlink_trend=0.1"),
    *("--server_optimizer=adam", "--server_lr=0.01", "--devices=1", "--noprogress"),
)
DENSE = (
    *("--dataset=synthetic:60x90x12", "--dim=8", "--cohort_size=10", "--candidates=20"),
    *("--rounds=400", "--eval_every=50", "--checkpoint_every=5", "--log_clients"),
    *("--codec=dense", "--devices=1", "--noprogress"),
)
COMPARED = ("metrics", "payload", "clock", "clients", "state_digest")
TABLES = ("rounds", "clients", "ranks")


def start(folder: Path, programs: str, run: Sequence[str] = RUN) -> subprocess.Popen:
    """The run, in a process of its own."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": programs,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *run, f"--workdir={folder}"],
        env=os.environ | cache,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, programs: str, run: Sequence[str] = RUN) -> None:
    """Run to the end.

    Raises:
      RuntimeError: it ends otherwise.
    """
    with start(folder, programs, run) as child:
        _, told = child.communicate()
    if child.returncode:
        raise RuntimeError(f"exit code {child.returncode}: {told.strip()[-500:]}")


def kill_once(folder: Path, programs: str, after: float, run: Sequence[str] = RUN) -> str | None:
    """Kill a run so many seconds after its start; how far it was, None if it was faster.

    Raises:
      RuntimeError: it ended by itself with an error.
    """
    with start(folder, programs, run) as child:
        try:
            child.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.communicate()
    if child.returncode == 0:
        return None
    if child.returncode != -signal.SIGKILL:
        raise RuntimeError(f"exit code {child.returncode} before it was killed")
    steps = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdecimal()]
    return f"round {max(steps)}" if steps else "no checkpoint"


def differences(folder: Path, other: Path) -> list[str]:
    """What two runs left that is not the same."""
    mine, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, other))
    found = [entry for entry in COMPARED if mine[entry] != theirs[entry]]
    for name in TABLES:
        tables = [pq.read_table(f / f"{name}.parquet") for f in (folder, other)]
        found += [] if tables[0].equals(tables[1]) else [name]
    return found


def main(argv: list[str]) -> None:
    del argv
    moments = random.Random(SEED.value)
    run = {"full": RUN, "dense": DENSE}[STATE.value]
    with tempfile.TemporaryDirectory() as root:
        programs = f"{root}/programs"
        whole = Path(root) / "whole"
        finish(whole, programs, run)
        shutil.rmtree(whole)
        began = time.perf_counter()  # again, with compiled programs
        finish(whole, programs, run)
        seconds = time.perf_counter() - began
        print(f"a whole run takes {seconds:.1f} s; killing {KILLS.value}", flush=True)

        draw = threading.Lock()

        def moment() -> float:
            # Side by side they take longer, so that moments cover them to the end.
            with draw:
                return moments.uniform(0, 1.5 * seconds)

        def trial(i: int) -> tuple[int, list[str], list[str]]:
            folder = Path(root) / f"run{i}"
            try:
                reached = None
                while reached is None:
                    shutil.rmtree(folder, ignore_errors=True)
                    reached = kill_once(folder, programs, moment(), run)
                again = kill_once(folder, programs, moment(), run) if i % 2 else None
                finish(folder, programs, run)
                return i, [reached, *([again] if again else [])], differences(folder, whole)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        bad = kills = 0
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE.value) as pool:
            jobs = [pool.submit(trial, i) for i in range(KILLS.value)]
            for job in concurrent.futures.as_completed(jobs):
                i, reached, found = job.result()
                bad, kills = bad + bool(found), kills + len(reached)
                told = f"differs in {', '.join(found)}" if found else "ends the same"
                print(f"run {i}, killed at {' and '.join(reached)}: {told}", flush=True)
    print(
        f"{KILLS.value - bad} of {KILLS.value} runs ended as if nothing had happened; {kills} kills"
    )
    sys.exit(bad > 0)


if __name__ == "__main__":
    app.run(main)
