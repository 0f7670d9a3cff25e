"""Clients evaluated a second: the held-out item among sampled candidates, and among all items.

    python -m benchmarks.evaluation --dataset=ml-1m --data_dir=DATA_DIR

Beside a loop over clients in NumPy, a matrix product with the table and a count each.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import harness
from fedras_jax import cohort
from fedras_jax.assembly import assemble, held_out, ranking, split_of
from fedras_jax.data import Split
from fedras_jax.spec import Spec
from fedras_jax.types import Array, FedState

DATASET = flags.DEFINE_string("dataset", "ml-latest-small-2016", "As in Spec.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
DIM = flags.DEFINE_integer("dim", 64, "Embedding width.")
LOOP_CLIENTS = flags.DEFINE_integer("loop_clients", 200, "Clients in the loop.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns each; the median counts.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

CANDIDATES = {"99 candidates": 99, "all items": 0}


def in_numpy(split: Split, state: FedState, clients: int) -> Callable[[], np.ndarray]:
    """Ranks of the first clients' test items, one client at a time."""
    candidates = split.candidates
    table, vectors = np.asarray(state.public), np.asarray(state.clients)

    def sampled(who):
        assert candidates is not None
        rows = table[np.concatenate([split.test[who : who + 1], candidates[who]])]
        score = rows @ vectors[who]
        return 1 + np.sum((score[1:] >= score[0]) & (candidates[who] >= 0))

    def among_all(who):
        score = table @ vectors[who]
        seen = split.items[split.offsets[who] : split.offsets[who + 1]]
        target = split.test[who]
        ahead = score >= score[target]
        ahead[seen] = ahead[target] = False
        ahead[split.valid[who] if split.valid[who] >= 0 else target] = False
        return 1 + np.sum(ahead)

    rank = among_all if candidates is None else sampled
    return lambda: np.array([rank(who) if split.test[who] >= 0 else 0 for who in range(clients)])


def on_device(rank: Callable[[FedState, Array], Any], state: FedState, target: Array) -> Any:
    """Ranks of all clients."""
    return jax.block_until_ready(rank(state, target))


def work(split: Split) -> harness.Work:
    """The least that all clients take."""
    d = DIM.value
    if split.candidates is not None:
        rows = split.n_clients * (1 + split.candidates.shape[1])
        return harness.Work(
            "candidates; flops: 2 an entry of every candidate's row; bytes: 4, read, over a "
            "working set of the table",
            flops=2.0 * rows * d,
            bytes=4.0 * rows * d,
            working_set=4.0 * split.n_items * d,
        )
    chunks = -(-split.n_clients // cohort.default_chunk())
    return harness.Work(
        "all items; flops: 2 an entry of the table and a client; bytes: 4 an entry of the table "
        "for every chunk of clients, and 8 a score (written, read), over a working set of the "
        "table",
        flops=2.0 * split.n_clients * split.n_items * d,
        bytes=4.0 * chunks * split.n_items * d + 8.0 * split.n_clients * split.n_items,
        working_set=4.0 * split.n_items * d,
    )


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores(keep_pages=True)
    runs: dict[str, Callable[[], Any]] = {}
    works, figures = {}, {}
    clients: dict[str, int] = {}
    for name, n in CANDIDATES.items():
        spec = Spec(dataset=DATASET.value, dim=DIM.value, candidates=n, evaluate_on="test")
        split = split_of(spec, data_dir=DATA_DIR.value)
        model, algorithm, _ = assemble(spec, split)
        state = jax.jit(algorithm.init)()
        rank = jax.jit(ranking(split, model))
        target = jnp.asarray(held_out(spec, split))
        few = min(LOOP_CLIENTS.value, split.n_clients)
        runs[name] = functools.partial(on_device, rank, state, target)
        loop = runs[f"{name}, numpy loop"] = in_numpy(split, state, few)
        same = np.asarray(runs[name]())[:few] == loop()
        figures[f"{name}: share of ranks equal to numpy's"] = float(same.mean())
        clients |= {name: split.n_clients, f"{name}, numpy loop": few}
        works[name] = work(split)
    seconds = harness.race(runs, TURNS.value)
    speed = {name: clients[name] / s for name, s in seconds.items()}
    figures |= {f"{name}, clients/s": s for name, s in speed.items()}
    for name in CANDIDATES:
        figures[f"{name}, over the numpy loop"] = speed[name] / speed[f"{name}, numpy loop"]
    harness.report(
        f"evaluation on {DATASET.value}, D={DIM.value}",
        figures,
        JSON.value,
        rooflines=[harness.roofline(name, seconds[name], works[name]) for name in CANDIDATES],
    )


if __name__ == "__main__":
    app.run(main)
