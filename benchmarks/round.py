"""Clients per second of whole rounds, against loops over clients and the machine's limit.

    python -m benchmarks.round --dataset=ml-1m --data_dir=DATA_DIR

Measures the reference round (sampling, negatives, local training, codec, reduction, server step)
for every codec asked for, everything but compilation. Side by side with it:
  * a loop that dispatches a jitted minibatch of one client at a time, as a simulator written in
    the usual style does, and one that dispatches a jitted client at a time;
  * whole dense rounds as loops compiled by numba, one thread a core, on the same examples, which
    are drawn beforehand (`benchmarks/compiled.py`): near the limit. Its clients' deltas are held
    to the library's first.
On a GPU also a round in which every client takes part.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import compiled, contestants, harness, machine
from fedras_jax import native
from fedras_jax.assembly import split_of
from fedras_jax.spec import Spec

DATASET = flags.DEFINE_string("dataset", "ml-latest-small-2016", "As in Spec.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
COHORT = flags.DEFINE_integer("cohort_size", 60, "Clients a round; 0: all.")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds in a turn.")
DIM = flags.DEFINE_integer("dim", 64, "Embedding width.")
K = flags.DEFINE_integer("k", 16, "Actions.")
CODECS = flags.DEFINE_list("codecs", ["dense", "actions", "directional"], "Codecs to time.")
CHUNK = flags.DEFINE_integer("chunk", None, "Clients at once on a device; default: as in runs.")
LOOPS = flags.DEFINE_bool("loops", True, "Also time the loops over clients.")
PLAIN = flags.DEFINE_bool(
    "plain", False, "Also time rounds without compiled loops; compiling takes minutes."
)
TURNS = flags.DEFINE_integer("turns", 5, "Turns each; the median counts.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

BARS = {"dense": 15_000, "actions": 7_000, "directional": 12_000}
OF_COMPILED = 0.4
ON_H200 = ("actions", "directional"), 500_000
LOOP_CLIENTS = 60
COMPILED, BY_CLIENT, BY_MINIBATCH = "compiled loop (numba)", "client loop", "minibatch loop"


def arm(spec: Spec, codec: str) -> Spec:
    """The Spec with a codec, of K actions where it has any."""
    args = {"k": K.value} if codec in ("actions", "directional") else {}
    return spec.replace(codec=codec, codec_args=args)


def without_loops(spec: Spec, split: Any) -> Callable[[], Any]:
    """Whole rounds in the JAX form alone."""
    with native.use(False):
        run = contestants.whole_rounds(
            spec, split, ROUNDS.value, chunk=CHUNK.value, mesh=contestants.mesh()
        )

    def turn():
        with native.use(False):  # where it is traced
            return run()

    return turn


def everyone(spec: Spec, split: Any) -> dict[str, float]:
    """Clients a second of rounds in which all take part, by codec."""
    all_of_them = spec.replace(cohort_size=0)
    turns = {
        codec: contestants.whole_rounds(arm(all_of_them, codec), split, 2) for codec in CODECS.value
    }
    seconds = harness.race(turns, TURNS.value)
    return {codec: 2 * split.n_clients / s for codec, s in seconds.items()}


def bars(speed: dict[str, float], full: dict[str, float]) -> list[harness.Bar]:
    """Of the reference round, and of rounds of everyone."""
    two = machine.cpu_cores(2)
    default = COHORT.value == 60 and DIM.value == 64 and K.value == 16
    usual = harness.Need("60 clients, D=64, K=16", default)
    ml1m = harness.Need("ml-1m", DATASET.value == "ml-1m")
    found = [
        harness.bar(
            f"ML-1M rounds, {name}, clients/s", speed.get(name), ">=", limit, two, ml1m, usual
        )
        for name, limit in BARS.items()
    ]
    ratio = None
    if {"dense", COMPILED} <= speed.keys():
        ratio = speed["dense"] / speed[COMPILED]
    name = f"rounds on {DATASET.value}, dense over {COMPILED}"
    found.append(harness.bar(name, ratio, ">=", OF_COMPILED, two, usual))
    codecs, limit = ON_H200
    needs = (machine.gpu("H200"), ml1m, harness.Need("D=64, K=16", DIM.value == 64 == 4 * K.value))
    for codec in codecs:
        name = f"ML-1M rounds of all clients, {codec}, clients/s"
        found.append(harness.bar(name, full.get(codec), ">=", limit, *needs))
    return found


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    base = Spec(dataset=DATASET.value, dim=DIM.value, cohort_size=COHORT.value, evaluate_on="test")
    split = split_of(base, data_dir=DATA_DIR.value)
    n = (COHORT.value or split.n_clients) * ROUNDS.value
    runs, clients, figures = {}, {}, {}
    for name in CODECS.value:
        runs[name] = contestants.whole_rounds(
            arm(base, name), split, ROUNDS.value, chunk=CHUNK.value, mesh=contestants.mesh()
        )
        clients[name] = n
    plain = [f"{name}, without loops" for name in CODECS.value if PLAIN.value]
    for name, other in zip(CODECS.value, plain, strict=False):
        runs[other] = without_loops(arm(base, name), split)
        clients[other] = n
    drawn = compiled.draw(base, split, ROUNDS.value)
    if LOOPS.value:
        loops = compiled.loops(base, machine.cores())
        figures["deltas: compiled loop - jax, at most"] = compiled.gap(base, split, drawn, loops)
        runs[COMPILED] = compiled.rounds_loop(base, split, drawn, loops)
        members = np.random.default_rng(1).permutation(split.n_clients)[:LOOP_CLIENTS]
        runs[BY_CLIENT] = contestants.client_loop(base, split, members)
        runs[BY_MINIBATCH] = contestants.minibatch_loop(base, split, members)
        clients |= {COMPILED: n, BY_CLIENT: len(members), BY_MINIBATCH: len(members)}

    seconds = harness.race(runs, TURNS.value)
    if LOOPS.value and "dense" in runs:
        apart = np.abs(runs[COMPILED]()[0] - np.asarray(runs["dense"]()[0].items)).max()
        figures["table after the rounds: compiled loop - jax, at most"] = float(apart)
    speed = {name: clients[name] / s for name, s in seconds.items()}
    figures |= {f"{name}, clients/s": s for name, s in speed.items()}
    first = CODECS.value[0]
    if LOOPS.value:
        for loop in (COMPILED, BY_CLIENT, BY_MINIBATCH):
            figures[f"{first} rounds over {loop}"] = speed[first] / speed[loop]
    for name, other in zip(CODECS.value, plain, strict=False):
        figures[f"{name} rounds over those without loops"] = speed[name] / speed[other]
    full = everyone(base, split) if machine.on_gpu() else {}
    figures |= {f"{name}, all clients, clients/s": s for name, s in full.items()}
    work = contestants.work(base, split, len(drawn.item), ROUNDS.value)
    whole = [*CODECS.value, *([COMPILED] if LOOPS.value else [])]
    harness.report(
        f"rounds on {split.name}: {COHORT.value or split.n_clients} clients, D={DIM.value}",
        figures,
        JSON.value,
        bars=bars(speed, full),
        rooflines=[harness.roofline(name, seconds[name], work) for name in whole],
    )


if __name__ == "__main__":
    app.run(main)
