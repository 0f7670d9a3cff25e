"""How much the codecs lose on real deltas, against what more work would lose.

    python -m benchmarks.distortion --dataset=ml-1m --data_dir=DATA_DIR

Trains for a while, takes the deltas of one cohort, and compares on the same deltas
  * actions with ten full-width Lloyd iterations, from the one-dimensional start that the codec
    takes too, and from k-means++;
  * directional actions with the exact one-dimensional optimum along the exact main direction;
  * the errors that budgets are told beforehand, for every number of actions, with those that come
    of it.
Also the one-dimensional solver alone, on hard distributions, against an exact dynamic programme.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import harness, line
from fedras_jax import cohort, examples, kmeans, kmeans1d, rng
from fedras_jax.assembly import assemble, local_training, split_of
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.directional import directional
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec
from fedras_jax.types import Context, Sizes

DATASET = flags.DEFINE_string("dataset", "ml-latest-small-2016", "As in Spec.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
ROUNDS = flags.DEFINE_list("rounds", ["0", "100", "400"], "Rounds of training before.")
CLIENTS = flags.DEFINE_integer("clients", 64, "Clients whose deltas are encoded.")
WIDTH = flags.DEFINE_integer("width", 1024, "Clients with up to this many examples.")
K = flags.DEFINE_integer("k", 16, "Actions.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def real_deltas(rounds: int):
    """Deltas of CLIENTS clients after `rounds` rounds, and the sizes."""
    spec = Spec(dataset=DATASET.value, codec="rows")
    split = split_of(spec, data_dir=DATA_DIR.value)
    model, algorithm, data = assemble(spec, split)
    state = jax.jit(algorithm.init)()
    if rounds:
        state, _ = jax.jit(lambda s: simulate(algorithm, s, data, rounds))(state)
    lengths = examples.count(np.diff(split.offsets), split.n_items, spec.negatives)
    fits = np.flatnonzero(lengths <= WIDTH.value)
    who = np.random.default_rng(0).permutation(fits)[: CLIENTS.value]
    training = local_training(spec, model)

    def delta(client):
        batch = examples.draw(
            examples.orders(
                rng.address(1, rng.Stream.NEGATIVES, rounds, client),
                rng.address(1, rng.Stream.SHUFFLE, rounds, client),
            ),
            data,
            client,
            jnp.bool_(True),
            n_items=split.n_items,
            negatives=spec.negatives,
            width=WIDTH.value,
        )
        rows = state.public[batch.item]
        result = training(state.clients[client], (), rows, batch.label, batch.mask)
        return examples.item_delta(batch, result.rows)

    deltas = jax.jit(lambda w: cohort.map_clients(delta, w))(jnp.asarray(who, jnp.int32))
    return deltas, Sizes(split.n_items, spec.dim)


def losses(codec, deltas, sizes) -> np.ndarray:
    """Squared error of every client's decoded delta, relative to the delta's."""
    ctx = Context(sizes, jax.random.key(0))

    def one(delta):
        prepared = codec.prepare(ctx, ctx.key, delta)
        k = jnp.int32(codec.max_actions)
        payload, _ = codec.encode(ctx, ctx.key, delta, prepared, k, ())
        gap = delta.row - codec.decode(ctx, payload).row
        return jnp.sum(gap**2) / jnp.sum(delta.row**2)

    return np.asarray(jax.jit(lambda d: cohort.map_clients(one, d))(deltas))


def told_over_real(codec, deltas, sizes) -> tuple[np.ndarray, np.ndarray]:
    """Errors told for k = 1, ..., K actions over those that come of them, f64[K].

    The median of clients' ratios, and the ratio of clients' means, which few clients decide.
    """
    ctx = Context(sizes, jax.random.key(0))

    def one(delta):
        prepared = codec.prepare(ctx, ctx.key, delta)

        def real(k):
            payload, _ = codec.encode(ctx, ctx.key, delta, prepared, k, ())
            gap = delta.row - codec.decode(ctx, payload).row
            return jnp.sum(gap**2) / jnp.sum(delta.row**2)

        return prepared.error[1:], jax.lax.map(real, 1 + jnp.arange(codec.max_actions))

    told, found = jax.jit(lambda d: cohort.map_clients(one, d))(deltas)
    told, found = np.asarray(told, np.float64), np.asarray(found, np.float64)
    return np.median(told / np.maximum(found, 1e-30), 0), told.mean(0) / found.mean(0)


def plusplus_losses(deltas, k: int) -> np.ndarray:
    """The same for ten full-width Lloyd iterations from k-means++."""

    def one(delta):
        found = kmeans.kmeans(jax.random.key(0), delta.row, delta.mask, k, iterations=10)
        return found.inertia / jnp.sum(delta.row**2)

    return np.asarray(jax.jit(lambda d: cohort.map_clients(one, d))(deltas))


def optimal_directional(deltas, k: int) -> np.ndarray:
    """The same for the exact optimum along the exact main direction, in float64."""
    out = []
    for row, mask in zip(np.asarray(deltas.row), np.asarray(deltas.mask), strict=True):
        row = row[mask].astype(np.float64)
        along = row @ np.linalg.svd(row, full_matrices=False)[2][0]
        total = (row**2).sum()
        out.append((total - (along**2).sum() + line.exact(along, k)) / total)
    return np.array(out)


def hard_distributions(n: int = 830) -> dict[str, np.ndarray]:
    """Values that break solvers: heavy tails, outliers, ties, offsets, tight clusters."""
    draws = np.random.default_rng(0)
    normal = draws.normal(size=n)
    return {
        "normal": normal,
        "uniform": draws.random(n),
        "Student t, 2 degrees": draws.standard_t(2, n),
        "Cauchy": draws.standard_cauchy(n),
        "Pareto, exponent 1": draws.pareto(1, n),
        "one outlier at 10,000": np.append(normal[1:], 1e4),
        "two bumps": np.where(normal > 1, -0.9, 0.1) + 0.05 * draws.normal(size=n),
        "100 +- 0.01": 100 + 0.01 * normal,
        "ties": draws.integers(0, 40, n).astype(float),
        "16 tight clusters": draws.choice(10 * normal[:16], n) + 0.01 * draws.normal(size=n),
    }


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    k = K.value
    figures: dict[str, float] = {}
    bars = []
    for rounds in map(int, ROUNDS.value):
        deltas, sizes = real_deltas(rounds)
        ours = losses(actions(k), deltas, sizes).mean()
        same = losses(actions(k, iterations=10, rank=None), deltas, sizes).mean()
        ten = plusplus_losses(deltas, k).mean()
        flat = losses(directional(k), deltas, sizes).mean()
        best = optimal_directional(deltas, k).mean()
        figures[f"after {rounds} rounds: actions, mean distortion"] = float(ours)
        figures[f"after {rounds} rounds: directional, mean distortion"] = float(flat)
        ratios = {
            "actions over ten full-width Lloyd iterations, same start": ours / same,
            "actions over ten full-width Lloyd iterations, k-means++": ours / ten,
            "directional over the exact 1-D optimum": flat / best,
        }
        for name, ratio in ratios.items():
            bars.append(harness.bar(f"after {rounds} rounds: {name}", ratio, "<=", 1.02))
        for codec in (actions(k), directional(k)):
            told, of_means = told_over_real(codec, deltas, sizes)
            what = f"after {rounds} rounds: errors that {codec.name} tells over what comes"
            figures[f"{what}, means, greatest of k = 1 to {k}"] = float(of_means.max())
            figures[f"{what}, means, least"] = float(of_means.min())
            what += ", median client"
            bars.append(harness.bar(f"{what}, greatest of k = 1 to {k}", told.max(), "<=", 1.15))
            bars.append(harness.bar(f"{what}, least", told.min(), ">=", 0.87))
    for name, values in hard_distributions().items():
        x = jnp.asarray(values, jnp.float32)
        mask = jnp.ones(x.shape, bool)
        solve = jax.jit(lambda x, mask: kmeans1d.levels(kmeans1d.table(x, mask, k), x, mask, k))
        found = solve(x, mask)
        level = np.asarray(found.level, np.float64)[np.asarray(found.label)]
        error = ((np.asarray(x, np.float64) - level) ** 2).sum()
        ratio = error / line.exact(np.asarray(x), k)
        bars.append(harness.bar(f"1-D solver over exact, {name}", ratio, "<=", 1.005))
    harness.report(f"distortion on {DATASET.value}, K={k}", figures, JSON.value, bars=bars)


if __name__ == "__main__":
    app.run(main)
