"""k-means on the line against scikit-learn, and its error against the exact optimum.

    python -m benchmarks.kmeans1d

1024 clients x 830 values, K=16: levels and labels from the binned dynamic programme, which also
answers for every smaller K, beside scikit-learn's k-means (one k-means++ start) as one
single-threaded worker a core. Errors are compared with a full dynamic programme in float64.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import contestants, harness, line, machine
from fedras_jax import cohort, kmeans1d

CLIENTS = flags.DEFINE_integer("clients", 1024, "Problems.")
ROWS = flags.DEFINE_integer("rows", 830, "Values a problem.")
K = flags.DEFINE_integer("k", 16, "Levels.")
EXACT = flags.DEFINE_integer("exact", 16, "Problems that are solved exactly.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns each; the median counts.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def scikit_learn(values: np.ndarray) -> np.ndarray:
    """Inertia of each problem."""
    cluster = machine.optional("sklearn.cluster")

    def one(i: int) -> float:
        model = cluster.KMeans(K.value, n_init=1, random_state=0)
        return float(model.fit(values[i][:, None]).inertia_)

    return harness.on_workers(one, len(values))


def work() -> harness.Work:
    """The least that the problems take."""
    n, k, b = ROWS.value, K.value, max(64, 16 * K.value)
    settling = (kmeans1d.POLISH + 1) * 3 * n * k
    return harness.Work(
        "flops, with B bins: 2 N log2 B (find bins), 7 B^2 / 2 (costs of all runs of bins), "
        "2 K B^2 / 2 (the programme), 3 N K a Lloyd step; bytes: the values and labels, once",
        flops=CLIENTS.value * (2 * n * np.log2(b) + 3.5 * b * b + k * b * b + settling),
        bytes=CLIENTS.value * 8.0 * n,
        working_set=8.0 * n,
    )


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores(keep_pages=True)
    k = K.value
    values = np.random.default_rng(0).standard_t(4, (CLIENTS.value, ROWS.value))
    values = values.astype(np.float32)
    mask = jnp.ones(ROWS.value, bool)
    mesh = contestants.mesh()

    def one(x):
        return kmeans1d.levels(kmeans1d.table(x, mask, k), x, mask, k)

    solve = jax.jit(lambda x: cohort.map_clients(one, x, mesh=mesh))
    on_device = jnp.asarray(values)
    found = jax.device_get(solve(on_device))
    some = values[: EXACT.value].astype(np.float64)
    level = np.take_along_axis(found.level, found.label, axis=1)[: EXACT.value]
    best = np.array([line.exact(x, k) for x in some])
    ours = ((some - level) ** 2).sum(1) / best
    theirs = scikit_learn(values[: EXACT.value]) / best
    seconds = harness.race(
        {
            "fedras_jax": lambda: jax.block_until_ready(solve(on_device)),
            "scikit-learn": lambda: scikit_learn(values),
        },
        TURNS.value,
    )
    figures: dict[str, Any] = {f"{name}, s": s for name, s in seconds.items()}
    figures |= {
        "speed-up over scikit-learn": seconds["scikit-learn"] / seconds["fedras_jax"],
        "error over the exact optimum's, mean": float(ours.mean()),
        "error over the exact optimum's, worst": float(ours.max()),
        "scikit-learn's error over the exact optimum's, mean": float(theirs.mean()),
    }
    harness.report(
        f"k-means on the line, {CLIENTS.value} x {ROWS.value}, K={k}",
        figures,
        JSON.value,
        bars=[harness.bar("k-means on the line, error over the exact", ours.max(), "<=", 1.005)],
        rooflines=[harness.roofline("fedras_jax", seconds["fedras_jax"], work())],
    )


if __name__ == "__main__":
    app.run(main)
