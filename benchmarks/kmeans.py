"""Batched k-means against scikit-learn and faiss: same points, same start, same iterations.

    python -m benchmarks.kmeans

4096 clients x 512 rows x 32 dimensions, K=16, 10 iterations. Rivals get one single-threaded
worker a core, which is how they are fastest on many small problems; faiss is told to use all
points (min_points_per_centroid=1). Inertia is compared where no cluster emptied.
`benchmarks/kmeans1d.py` does the same on the line.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import contestants, harness, machine
from fedras_jax import cohort, kmeans

CLIENTS = flags.DEFINE_integer("clients", 4096, "Problems.")
ROWS = flags.DEFINE_integer("rows", 512, "Points a problem.")
DIM = flags.DEFINE_integer("dim", 32, "Dimensions.")
K = flags.DEFINE_integer("k", 16, "Clusters.")
ITERATIONS = flags.DEFINE_integer("iterations", 10, "Lloyd iterations.")
CHUNK = flags.DEFINE_integer("chunk", None, "Clients at once; default: by platform.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns each; the median counts.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def scikit_learn(points: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Inertia of each problem."""
    cluster = machine.optional("sklearn.cluster")

    def one(i: int) -> float:
        model = cluster.KMeans(
            len(start[i]), init=start[i], n_init=1, max_iter=ITERATIONS.value, tol=0.0
        )
        return float(model.fit(points[i]).inertia_)

    return harness.on_workers(one, len(points))


def faiss(points: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Final objective of each problem."""
    library = machine.optional("faiss")
    library.omp_set_num_threads(1)

    def one(i: int) -> float:
        model = library.Kmeans(
            points.shape[2],
            start.shape[1],
            niter=ITERATIONS.value,
            min_points_per_centroid=1,
            max_points_per_centroid=points.shape[1],
        )
        model.train(points[i], init_centroids=start[i])
        return float(np.asarray(model.obj)[-1])

    return harness.on_workers(one, len(points))


def work() -> harness.Work:
    """The least that the problems take."""
    n, k, d = ROWS.value, K.value, DIM.value
    steps = ITERATIONS.value
    return harness.Work(
        "flops: 2 N K D an assignment (iterations + 1) and N D a mean (iterations); bytes: the "
        "points, once an assignment, over a working set of one problem",
        flops=CLIENTS.value * ((steps + 1) * 2.0 * n * k * d + steps * n * d),
        bytes=CLIENTS.value * (steps + 1) * 4.0 * n * d,
        working_set=4.0 * n * d,
    )


def bars(seconds: dict[str, float], error: float) -> list[harness.Bar]:
    """Of the reference shape."""
    shape = (CLIENTS.value, ROWS.value, DIM.value, K.value, ITERATIONS.value)
    usual = harness.Need("the default sizes", shape == (4096, 512, 32, 16, 10))
    two, own = machine.cpu_cores(2), seconds["fedras_jax"]
    return [
        harness.bar(
            "k-means, time over faiss-cpu's", own / seconds["faiss"], "<=", 0.25, two, usual
        ),
        harness.bar(
            "k-means, times faster than scikit-learn",
            seconds["scikit-learn"] / own,
            ">=",
            6,
            two,
            usual,
        ),
        harness.bar("k-means, inertia over scikit-learn's - 1, mean", error, "<=", 0.01, usual),
        harness.bar("k-means on a GPU, ms", 1000 * own, "<=", 4, machine.gpu("H200"), usual),
    ]


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores(keep_pages=True)
    rng = np.random.default_rng(0)
    shape = (CLIENTS.value, ROWS.value, DIM.value)
    points = rng.standard_normal(shape, np.float32)
    start = points[:, : K.value].copy()

    mask = jnp.ones(shape[1], bool)
    solve = jax.jit(
        partial(
            cohort.map_clients,
            lambda x: kmeans.lloyd(x[0], mask, x[1], iterations=ITERATIONS.value),
            chunk=CHUNK.value,
            mesh=contestants.mesh(),
        )
    )
    on_device = jax.block_until_ready((jnp.asarray(points), jnp.asarray(start)))
    ours = jax.device_get(solve(on_device))
    theirs = scikit_learn(points, start)
    used = (np.arange(K.value)[:, None] == ours.label[:, None, :]).any(2).all(1)
    error = ours.inertia[used] / theirs[used] - 1

    seconds = harness.race(
        {
            "fedras_jax": lambda: jax.block_until_ready(solve(on_device)),
            "scikit-learn": lambda: scikit_learn(points, start),
            "faiss": lambda: faiss(points, start),
        },
        TURNS.value,
    )
    own = seconds["fedras_jax"]
    figures: dict[str, Any] = {f"{name}, s": s for name, s in seconds.items()}
    figures |= {
        "speed-up over scikit-learn": seconds["scikit-learn"] / own,
        "speed-up over faiss": seconds["faiss"] / own,
        "problems in which no cluster emptied": f"{used.sum()} of {len(used)}",
        "inertia against scikit-learn's there, mean": float(error.mean()),
        "inertia against scikit-learn's there, worst": float(np.abs(error).max()),
    }
    title = "k-means, {} x {} x {}, K={}, {} iterations".format(*shape, K.value, ITERATIONS.value)
    harness.report(
        title,
        figures,
        JSON.value,
        bars=bars(seconds, float(error.mean())),
        rooflines=[harness.roofline(name, s, work()) for name, s in seconds.items()],
    )


if __name__ == "__main__":
    app.run(main)
