"""Batched k-means against scikit-learn and faiss: same points, same start, same iterations.

    python -m benchmarks.kmeans

4096 clients x 512 rows x 32 dimensions, K=16, 10 iterations. Rivals get one single-threaded
worker a core, which is how they are fastest on many small problems; faiss is told to use all
points (min_points_per_centroid=1). Inertia is compared where no cluster emptied.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from threadpoolctl import threadpool_limits

from benchmarks import harness
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
    from sklearn.cluster import KMeans

    def one(i: int) -> float:
        model = KMeans(len(start[i]), init=start[i], n_init=1, max_iter=ITERATIONS.value, tol=0.0)
        return float(model.fit(points[i]).inertia_)

    return _workers(one, len(points))


def faiss(points: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Final objective of each problem."""
    import faiss as library

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

    return _workers(one, len(points))


def _workers(one, n: int) -> np.ndarray:
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        return np.array(list(pool.map(one, range(n), chunksize=32)))


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    rng = np.random.default_rng(0)
    shape = (CLIENTS.value, ROWS.value, DIM.value)
    points = rng.standard_normal(shape, np.float32)
    start = points[:, : K.value].copy()

    mesh = cohort.client_mesh() if jax.device_count() > 1 else None
    mask = jnp.ones(shape[1], bool)
    solve = jax.jit(
        partial(
            cohort.map_clients,
            lambda x: kmeans.lloyd(x[0], mask, x[1], iterations=ITERATIONS.value),
            chunk=CHUNK.value,
            mesh=mesh,
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
        "speed-up over scikit-learn (bar: >= 6)": seconds["scikit-learn"] / own,
        "speed-up over faiss (bar: >= 2.5)": seconds["faiss"] / own,
        "problems in which no cluster emptied": f"{used.sum()} of {len(used)}",
        "inertia against scikit-learn's there, mean (bar: within 1 %)": float(error.mean()),
        "inertia against scikit-learn's there, worst": float(np.abs(error).max()),
    }
    title = "k-means, {} x {} x {}, K={}, {} iterations".format(*shape, K.value, ITERATIONS.value)
    harness.report(title, figures, JSON.value)


if __name__ == "__main__":
    app.run(main)
