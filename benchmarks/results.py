"""What it takes to read many runs: one table, SQL, and the report.

    python -m benchmarks.results --runs=2000 --report_runs=1000

Writes runs with files of the real shapes and random numbers to a temporary folder (about 1 GB at
the defaults), then reads them. 'Cold' is without the index files that `results.load` leaves, 'warm'
is with them; the files themselves are in the operating system's cache.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import harness, machine
from fedras_jax import metrics, network, page, results
from fedras_jax.spec import Spec

RUNS = flags.DEFINE_integer("runs", 2000, "Runs to read, five seeds an arm.")
REPORT_RUNS = flags.DEFINE_integer("report_runs", 1000, "Runs of the report.")
ROUNDS = flags.DEFINE_integer("rounds", 500, "Rounds of a run, evaluated fifty times.")
CLIENTS = flags.DEFINE_integer("clients", 6040, "Clients of a run.")
LOGGED = flags.DEFINE_integer("logged", 20, "Every so many-th run has a log of its clients, too.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

SEEDS = 5
COHORT = 60

DIAGNOSTICS = (
    *("arrived", "failed", "staleness", "loss", "examples", "short_of_negatives", "n_actions"),
    *("distortion", "up_bytes", "down_bytes", "published_bytes", "row_bytes", "seconds"),
)
QUERIES = {
    "runs": 'select codec, "codec_args.k" as k, client_lr, avg("ndcg@10") as ndcg, count(*) as n '
    "from runs group by all order by ndcg desc",
    "rounds": "select codec, round, avg(loss) as loss, sum(up_bytes) as up "
    "from rounds join runs using (folder) group by all order by round",
    "ranks": "select folder, avg((rank <= 10)::int) as hr from ranks group by all",
}


def specs(n: int) -> Iterator[Spec]:
    """So many Specs, five seeds an arm; the first arm is dense."""
    base = Spec(rounds=ROUNDS.value, eval_every=ROUNDS.value // 50, profile="mobile")
    arm = 0
    while n > 0:
        spec = base.replace(codec="dense")
        if arm:
            spec = base.replace(
                codec=("actions", "directional")[arm % 2],
                codec_args={"k": 2 ** (1 + arm // 2 % 6)},
                client_lr=0.05 * (1 + arm // 12),
            )
        for seed in range(min(SEEDS, n)):
            yield spec.replace(seed=seed)
        n -= SEEDS
        arm += 1


def write(folder: Path, spec: Spec, logged: bool) -> None:
    """A finished run with random figures."""
    rng = np.random.default_rng(int(spec.digest(), 16))
    n = spec.rounds
    results.claim(folder, spec, {})
    columns: dict[str, Any] = {"round": np.arange(1, n + 1), "clients": np.full(n, COHORT)}
    columns |= {name: rng.random(n) for name in DIAGNOSTICS}
    columns["clock_s"] = np.cumsum(columns["seconds"])
    columns |= {f"{phase}_s": rng.random(n) / 5 for phase in network.PHASES}
    ranks = rng.geometric(0.12, CLIENTS.value).clip(max=100).astype(np.int32)
    found = metrics.summarise(ranks)
    evaluated = columns["round"] % spec.eval_every == 0
    for name, value in found.items():
        columns[name] = [value * r / n if e else None for r, e in enumerate(evaluated, 1)]
    results.write_table(folder / "rounds.parquet", columns)
    client = np.arange(CLIENTS.value, dtype=np.int32)
    counts = {"drawn": client % 7, "counted": client % 7}
    results.write_table(folder / "ranks.parquet", {"client": client, "rank": ranks, **counts})
    if logged:
        rows = n * COHORT
        log: dict[str, Any] = {"round": np.repeat(columns["round"], COHORT).astype(np.int32)}
        log |= {"client": rng.integers(CLIENTS.value, size=rows).astype(np.int32)}
        log |= {"n_actions": rng.integers(1, 17, rows)}
        log |= {name: rng.random(rows) for name in ("up_bytes", "down_bytes", "seconds")}
        results.write_table(folder / "clients.parquet", log)
    payload = {"up_bytes_mean": 900.0 * spec.seed + 700, "down_bytes_mean": 9e5}
    clock = {"seconds": float(columns["clock_s"][-1])}
    summary = {
        "spec": spec.to_json(),
        "metrics": found,
        "payload": payload | {"up_reduction": 0.9, "total_reduction": 0.5},
        "clock": clock | {f"{p}_s": float(columns[f"{p}_s"].sum()) for p in network.PHASES},
        "clients": {"total": CLIENTS.value, "not_evaluated": 0},
        "speed": {"clients_per_s": 1e4, "compile_s": 1.0},
        "env": {"device": "cpu", "python": "3.11"},
    }
    results.write_json(folder / "summary.json", summary)


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forget(root: Path) -> None:
    """Remove the index files."""
    for path in root.glob("*-index.parquet"):
        path.unlink()


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    figures: dict[str, Any] = {}
    bars: list[harness.Bar] = []
    sizes = (RUNS.value, REPORT_RUNS.value, ROUNDS.value, CLIENTS.value, LOGGED.value)
    usual = (
        machine.cpu_cores(2),
        harness.Need("the default sizes", sizes == (2000, 1000, 500, 6040, 20)),
    )
    with tempfile.TemporaryDirectory() as here:
        root, part = Path(here) / "all", Path(here) / "part"
        for i, spec in enumerate(specs(RUNS.value)):
            write(root / "runs" / f"{spec.digest()}", spec, i % LOGGED.value == 0)
        for i, spec in enumerate(specs(REPORT_RUNS.value)):
            write(part / "runs" / f"{spec.digest()}", spec, i % LOGGED.value == 0)
        n = f"{RUNS.value} runs"
        figures[f"load of {n}, cold, s"] = timed(lambda: results.load(root))
        figures[f"load of {n}, warm, s"] = timed(lambda: results.load(root))
        forget(root)
        for name, sql in QUERIES.items():
            ask = partial(results.query, root, sql)
            figures[f"query of {name} of {n}, cold, s"] = timed(ask)
            warm = [timed(ask) for _ in range(5)]
            figures[f"query of {name} of {n}, warm, s"] = float(np.median(warm))
            bars.append(harness.bar(f"query of {name}, warm, s", np.median(warm), "<=", 1, *usual))
        output = Path(here) / "report.html"
        n = f"{REPORT_RUNS.value} runs"
        for state in ("cold", "warm"):
            seconds = timed(lambda: page.write(output, page.collect(part)))
            figures[f"report of {n}, {state}, s"] = seconds
            bars.append(harness.bar(f"report, {state}, s", seconds, "<=", 30, *usual))
        size = figures[f"report of {n}, MB"] = output.stat().st_size / 1e6
        bars.append(harness.bar("report, MB", size, "<=", 10, *usual))
    title = f"results, {ROUNDS.value} rounds, {CLIENTS.value} clients"
    harness.report(title, figures, JSON.value, bars=bars)


if __name__ == "__main__":
    app.run(main)
