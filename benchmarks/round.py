"""Clients per second of whole rounds, against loops that dispatch less at a time.

    python -m benchmarks.round --dataset=ml-1m --data_dir=DATA_DIR

Measures the reference round (sampling, negatives, local training, codec, reduction, server step)
for every codec asked for, everything but compilation, and side by side with it two loops over
clients that share the same training: one dispatches a jitted minibatch of one client at a time,
as a simulator written in the usual style does; the other a jitted client at a time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import harness
from fedras_jax import client, cohort, examples, factored, rng
from fedras_jax.assembly import assemble, split_of
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec

DATASET = flags.DEFINE_string("dataset", "ml-latest-small-2016", "As in Spec.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
COHORT = flags.DEFINE_integer("cohort_size", 60, "Clients a round; 0: all.")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds in a turn.")
DIM = flags.DEFINE_integer("dim", 64, "Embedding width.")
K = flags.DEFINE_integer("k", 16, "Actions.")
CODECS = flags.DEFINE_list("codecs", ["dense", "actions", "directional"], "Codecs to time.")
CHUNK = flags.DEFINE_integer("chunk", None, "Clients at once on a device; default: by platform.")
LOOPS = flags.DEFINE_bool("loops", True, "Also time the two loops over clients.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns each; the median counts.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def whole_rounds(spec: Spec, split, mesh):
    """A function that runs ROUNDS rounds."""
    _, algorithm, data = assemble(spec, split, chunk=CHUNK.value, mesh=mesh)
    advance = jax.jit(lambda s, d: simulate(algorithm, s, d, ROUNDS.value), donate_argnums=0)
    state = jax.jit(algorithm.init)()

    def turn():
        nonlocal state
        state, info = jax.block_until_ready(advance(state, data))
        return info

    return turn


def client_loop(spec: Spec, split, members: np.ndarray):
    """One jitted client at a time: draw, train, scatter; the same functions as a round's."""
    _, algorithm, data = assemble(spec, split)
    training = factored.factored(spec.client_lr, spec.weight_decay, epochs=spec.local_epochs)
    lengths = examples.count(np.diff(split.offsets), split.n_items, spec.negatives)
    widths = cohort.plan_widths(lengths)
    state = jax.jit(algorithm.init)()

    @functools.partial(jax.jit, static_argnames="width", donate_argnums=0)
    def one(change, who, width):
        key = rng.address(0, rng.Stream.NEGATIVES, who)
        batch = examples.draw(
            key,
            key,
            data,
            who,
            jnp.bool_(True),
            n_items=split.n_items,
            negatives=spec.negatives,
            width=width,
        )
        rows = state.items[batch.item]
        result = training(state.clients[who], (), rows, batch.label, batch.mask)
        return change.at[batch.item].add(result.rows, mode="drop")

    def turn():
        change = jnp.zeros_like(state.items)
        for who in members:
            width = next(w for w in widths if w >= lengths[who])
            change = one(change, jnp.int32(who), width=width)
        jax.block_until_ready(change)

    return turn


def minibatch_loop(spec: Spec, split, members: np.ndarray):
    """One jitted minibatch of one client at a time; negatives are drawn in numpy."""
    model, algorithm, _ = assemble(spec, split)
    state = jax.jit(algorithm.init)()
    training = client.autodiff(model, client.sgd(spec.client_lr, spec.weight_decay), epochs=1)
    size = spec.batch_size

    @jax.jit
    def step(private, rows, label, mask):
        result = training(private, (), rows, label, mask)
        return result.private, rows + result.rows

    table = np.asarray(state.items)
    vectors = np.asarray(state.clients)
    draws = np.random.default_rng(0)

    def turn():
        total = np.zeros_like(table)
        for who in members:
            seen = split.items[split.offsets[who] : split.offsets[who + 1]]
            unseen = np.setdiff1d(np.arange(split.n_items), seen)
            n = min(spec.negatives * len(seen), len(unseen))
            item = np.concatenate([seen, draws.choice(unseen, n, replace=False)])
            label = (np.arange(len(item)) < len(seen)).astype(np.float32)
            order = draws.permutation(len(item))
            fill = np.arange(-(-len(item) // size) * size)
            order = np.where(fill < len(item), order[fill % len(item)], 0)
            mask = fill < len(item)
            cuts = range(0, len(order), size)
            rows = [table[item[order[at : at + size]]] for at in cuts]
            private = vectors[who]
            for _ in range(spec.local_epochs):
                for i, at in enumerate(cuts):
                    block = slice(at, at + size)
                    private, rows[i] = step(private, rows[i], label[order[block]], mask[block])
            trained = np.concatenate([np.asarray(r) for r in rows])[mask]
            total[item[order[mask]]] += trained - table[item[order[mask]]]

    return turn


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    base = Spec(dataset=DATASET.value, dim=DIM.value, cohort_size=COHORT.value, evaluate_on="test")
    split = split_of(base, data_dir=DATA_DIR.value)
    mesh = cohort.client_mesh() if jax.device_count() > 1 else None
    n = (COHORT.value or split.n_clients) * ROUNDS.value
    contestants, clients = {}, {}
    for name in CODECS.value:
        args = {"k": K.value} if name in ("actions", "directional") else {}
        spec = base.replace(codec=name, codec_args=args)
        contestants[name] = whole_rounds(spec, split, mesh)
        clients[name] = n
    if LOOPS.value:
        members = np.random.default_rng(1).permutation(split.n_clients)[:60]
        contestants["loop over clients"] = client_loop(base, split, members)
        contestants["loop over minibatches"] = minibatch_loop(base, split, members)
        clients |= {"loop over clients": len(members), "loop over minibatches": len(members)}

    seconds = harness.race(contestants, TURNS.value)
    speed = {name: clients[name] / s for name, s in seconds.items()}
    figures = {f"{name}, clients/s": s for name, s in speed.items()}
    if LOOPS.value:
        for loop in ("loop over clients", "loop over minibatches"):
            figures[f"{CODECS.value[0]} rounds over {loop}"] = speed[CODECS.value[0]] / speed[loop]
    title = f"rounds on {split.name}: {COHORT.value or split.n_clients} clients, D={DIM.value}"
    harness.report(title, figures, JSON.value)


if __name__ == "__main__":
    app.run(main)
