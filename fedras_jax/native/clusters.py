"""`kmeans` on one set of points."""

import numpy as np

from fedras_jax.native import bridge
from fedras_jax.native.vectors import copy, dot, fill

_F = np.float32
_CLOSE = 4096  # coordinates of points that are compared with all centroids before the next ones


@bridge.loop
def add_four(score, centroid, d, across, first):
    """Four coordinates' part of some points' products with a centroid."""
    a, b, c, e = centroid[d], centroid[d + 1], centroid[d + 2], centroid[d + 3]
    w, x = across[d, first:], across[d + 1, first:]
    y, z = across[d + 2, first:], across[d + 3, first:]
    for i in range(score.shape[0]):
        score[i] += a * w[i] + b * x[i] + c * y[i] + e * z[i]


@bridge.loop
def higher(score, c, label, best):
    """Label c where its score is higher than the best so far."""
    for i in range(score.shape[0]):
        # All is read before it is chosen from: what may not be read is no vector.
        now, before, old = score[i], best[i], label[i]
        above = now > before
        label[i] = c if above else old
        best[i] = now if above else before


@bridge.loop
def assign(across, centroid, k, label, score, best):
    """The nearest of the first k centroids, the lowest of several, of points f32[d, N].

    Their d coordinates are filled up to a multiple of four by zeros, the centroids' as well.
    """
    dim, n = across.shape
    step = max(_CLOSE // dim, 64)
    for first in range(0, n, step):
        size = min(step, n - first)
        fill(label[first : first + size], 0)
        fill(best[:size], -np.inf)
        for c in range(k):
            fill(score[:size], _F(-0.5) * dot(centroid[c], centroid[c]))
            for d in range(0, dim, 4):
                add_four(score[:size], centroid[c], d, across, first)
            higher(score[:size], np.int32(c), label[first : first + size], best)


@bridge.loop
def lloyd(points, mask, weight, k, iterations, centroid, label, inertia, scratch):
    """In place on `centroid`, which holds the start."""
    n, dim = points.shape
    n_clusters, wide = centroid.shape[0], (dim + 3) // 4 * 4
    across = scratch[: n * wide].reshape(wide, n)
    at = n * wide
    score, best = scratch[at : at + _CLOSE], scratch[at + _CLOSE : at + 2 * _CLOSE]
    at += 2 * _CLOSE
    at, to = at + n_clusters * wide, at
    mean = scratch[to:at].reshape(n_clusters, wide)
    sums = scratch[at : at + n_clusters * dim].reshape(n_clusters, dim)
    total = scratch[at + n_clusters * dim :]
    for d in range(dim, wide):
        fill(across[d], 0)
    for c in range(n_clusters):
        fill(mean[c], 0)
    for i in range(n):
        for d in range(dim):
            across[d, i] = points[i, d]
    for c in range(n_clusters):
        for d in range(dim):
            mean[c, d] = centroid[c, d]
    for _ in range(iterations):
        assign(across, mean, k, label, score, best)
        for c in range(k):
            total[c] = 0
            for d in range(dim):
                sums[c, d] = 0
        for i in range(n):
            c, w = label[i], weight[i]
            total[c] += w
            for d in range(dim):
                sums[c, d] += w * points[i, d]
        for c in range(k):
            if total[c] > 0:
                share = _F(1) / total[c]
                for d in range(dim):
                    mean[c, d] = sums[c, d] * share
    assign(across, mean, k, label, score, best)
    for c in range(n_clusters):
        for d in range(dim):
            centroid[c, d] = mean[c, d]
    error = _F(0)
    for i in range(n):
        one = _F(0)
        for d in range(dim):
            gap = points[i, d] - centroid[label[i], d]
            one += gap * gap
        error += weight[i] * one
        label[i] = label[i] if mask[i] else 0
    inertia[0] = error


def lloyd_scratch(n, dim, n_clusters):
    """Numbers that `lloyd` needs room for."""
    wide = -(-dim // 4) * 4
    return n * wide + 2 * _CLOSE + n_clusters * (wide + dim + 1)


@bridge.loop
def averages(points, weight, score, k, before, centroid, label, best, total):
    """A Lloyd step after products with all centroids: labels, and the means of what they name.

    A cluster that is empty, or is the k-th or above, keeps its centroid. `best` and `total` are
    scratch.
    """
    fill(label, 0)
    fill(best, -np.inf)
    for c in range(k):
        higher(score[c], np.int32(c), label, best)
    for c in range(centroid.shape[0]):
        total[c] = 0
        fill(centroid[c], 0)
    for i in range(points.shape[0]):
        c, w = label[i], weight[i]
        total[c] += w
        for d in range(points.shape[1]):
            centroid[c, d] += w * points[i, d]
    for c in range(centroid.shape[0]):
        if total[c] > 0:
            share = _F(1) / total[c]
            for d in range(points.shape[1]):
                centroid[c, d] *= share
        else:
            copy(centroid[c], before[c])


@bridge.loop
def means(points, mask, label, largest, mean, total):
    """`kmeans.means`; entries beyond `largest` count as NaN."""
    n, dim = points.shape
    for c in range(mean.shape[0]):
        total[c] = 0
        for d in range(dim):
            mean[c, d] = 0
    for i in range(n):
        c = label[i]
        if not mask[i] or c < 0 or c >= mean.shape[0]:
            continue
        total[c] += 1
        if dim == 1:
            x = points[i, 0]
            mean[c, 0] += x if abs(x) <= largest else _F(np.nan)
        else:
            for d in range(dim):
                x = points[i, d]
                mean[c, d] += x if abs(x) <= largest else _F(np.nan)
    for c in range(mean.shape[0]):
        share = _F(1) / total[c] if total[c] > 0 else _F(1)
        for d in range(dim):
            mean[c, d] *= share


@bridge.loop
def kept(rows, mask, label, sizes, found, total, count):
    """found[e]: squares of the clusters' sums over their sizes, for the e-th labelling of the rows.

    The clusters of all labellings lie below one another in `total` and `count`, which are scratch.
    """
    n, dim = rows.shape
    for c in range(total.shape[0]):
        count[c] = 0
        fill(total[c], 0)
    for i in range(n):
        if not mask[i]:
            continue
        first = 0
        for e in range(sizes.shape[0]):
            c = first + label[e, i]
            count[c] += 1
            for d in range(dim):
                total[c, d] += rows[i, d]
            first += sizes[e]
    first = 0
    for e in range(sizes.shape[0]):
        found[e] = 0
        for c in range(first, first + sizes[e]):
            found[e] += dot(total[c], total[c]) / max(count[c], _F(1))
        first += sizes[e]


@bridge.target("lloyd")
def run_lloyd(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 2)):
            centroid = bridge.f32_2(like, like, at)
            start = bridge.f32_2(bridge.operand(frame, 3), like, at)
            for c in range(centroid.shape[0]):
                copy(centroid[c], start[c])
            lloyd(
                bridge.f32_2(bridge.operand(frame, 0), like, at),
                bridge.bool_1(bridge.operand(frame, 1), like, at),
                bridge.f32_1(bridge.operand(frame, 2), like, at),
                min(bridge.i32_0(bridge.operand(frame, 4), like, at)[0], centroid.shape[0]),
                bridge.i32_0(bridge.operand(frame, 5), like, at)[0],
                centroid,
                bridge.i32_1(bridge.result(frame, 1), like, at),
                bridge.f32_0(bridge.result(frame, 2), like, at),
                bridge.f32_1(bridge.result(frame, 3), like, at),
            )
    return 0


@bridge.target("averages")
def run_averages(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 2)):
            averages(
                bridge.f32_2(bridge.operand(frame, 0), like, at),
                bridge.f32_1(bridge.operand(frame, 1), like, at),
                bridge.f32_2(bridge.operand(frame, 2), like, at),
                bridge.i32_0(bridge.operand(frame, 4), like, at)[0],
                bridge.f32_2(bridge.operand(frame, 3), like, at),
                bridge.f32_2(like, like, at),
                bridge.i32_1(bridge.result(frame, 1), like, at),
                bridge.f32_1(bridge.result(frame, 2), like, at),
                bridge.f32_1(bridge.result(frame, 3), like, at),
            )
    return 0


@bridge.target("means")
def run_means(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 2)):
            means(
                bridge.f32_2(bridge.operand(frame, 0), like, at),
                bridge.bool_1(bridge.operand(frame, 1), like, at),
                bridge.i32_1(bridge.operand(frame, 2), like, at),
                bridge.f32_0(bridge.operand(frame, 3), like, at)[0],
                bridge.f32_2(like, like, at),
                bridge.f32_1(bridge.result(frame, 1), like, at),
            )
    return 0


@bridge.target("kept")
def run_kept(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            kept(
                bridge.f32_2(bridge.operand(frame, 0), like, at),
                bridge.bool_1(bridge.operand(frame, 1), like, at),
                bridge.i32_2(bridge.operand(frame, 2), like, at),
                bridge.i32_1(bridge.operand(frame, 3), like, at),
                bridge.f32_1(like, like, at),
                bridge.f32_2(bridge.result(frame, 1), like, at),
                bridge.f32_1(bridge.result(frame, 2), like, at),
            )
    return 0
