"""`kmeans` on one set of points, and the main directions that its coordinates are taken along."""

import numpy as np

from fedras_jax.native import bridge
from fedras_jax.native.vectors import combine, dot, products

_F = np.float32
_BLOCK = 256  # points whose scores stay close at hand


@bridge.loop
def assign(across, centroid, k, label, score, best):
    """The nearest of the first k centroids, the lowest of several, from points f32[d, N]."""
    dim, n = across.shape
    for first in range(0, n, _BLOCK):
        size = min(_BLOCK, n - first)
        for i in range(size):
            label[first + i] = 0
            best[i] = -np.inf
        for c in range(k):
            half = _F(0)
            for d in range(dim):
                half += centroid[c, d] * centroid[c, d]
            half *= _F(0.5)
            for i in range(size):
                score[i] = -half
            for d in range(dim):
                along = centroid[c, d]
                for i in range(size):
                    score[i] += along * across[d, first + i]
            for i in range(size):
                nearer = score[i] > best[i]
                label[first + i] = np.int32(c) if nearer else label[first + i]
                best[i] = score[i] if nearer else best[i]


@bridge.loop
def lloyd(points, mask, weight, k, iterations, centroid, label, inertia, scratch):
    """In place on `centroid`, which holds the start."""
    n, dim = points.shape
    n_clusters = centroid.shape[0]
    across = scratch[: n * dim].reshape(dim, n)
    at = n * dim
    score, best = scratch[at : at + _BLOCK], scratch[at + _BLOCK : at + 2 * _BLOCK]
    at += 2 * _BLOCK
    sums = scratch[at : at + n_clusters * dim].reshape(n_clusters, dim)
    total = scratch[at + n_clusters * dim :]
    for i in range(n):
        for d in range(dim):
            across[d, i] = points[i, d]
    for _ in range(iterations):
        assign(across, centroid, k, label, score, best)
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
                    centroid[c, d] = sums[c, d] * share
    assign(across, centroid, k, label, score, best)
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
    return n * dim + 2 * _BLOCK + n_clusters * (dim + 1)


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
        for d in range(dim):
            x = points[i, d]
            mean[c, d] += x if abs(x) <= largest else _F(np.nan)
    for c in range(mean.shape[0]):
        share = _F(1) / total[c] if total[c] > 0 else _F(1)
        for d in range(dim):
            mean[c, d] *= share


@bridge.exact
def unit(v):
    """v / |v| in place, zero for zero. Scaled first: squares of tiny entries would underflow."""
    top = _F(0)
    for d in range(v.shape[0]):
        top = abs(v[d]) if not abs(v[d]) <= top else top
    if top == 0:
        v[:] = 0
        return
    for d in range(v.shape[0]):
        v[d] /= top
    norm = np.sqrt(dot(v, v))
    for d in range(v.shape[0]):
        v[d] /= norm


@bridge.exact
def orthonormal(basis):
    """Gram and Schmidt's, in order and in place; a vector that adds nothing becomes zero."""
    for r in range(basis.shape[0]):
        v = basis[r]
        unit(v)
        if r == 0:
            continue
        for _ in range(2):  # once more, because the first remainder may be mostly rounding
            along = np.empty(r, np.float32)
            for q in range(r):
                along[q] = dot(basis[q], v)
            for q in range(r):
                for d in range(v.shape[0]):
                    v[d] -= along[q] * basis[q, d]
            # Of a unit vector, less than this is rounding and no direction.
            if dot(v, v) <= _F(1e-13):
                v[:] = 0
            unit(v)


@bridge.loop
def starts(points, mask, largest, basis, column):
    """The longest point, by its largest entry, of every r-th slot; returns the largest of all.

    NaN where an entry that counts is beyond `largest`.
    """
    n, dim = points.shape
    rank = basis.shape[0]
    sizes, at = np.zeros(rank, np.float32), np.zeros(rank, np.int64)
    for r in range(rank):
        for d in range(dim):
            column[d] = 0
        bad = np.int32(0)
        for i in range(r, n, rank):
            if mask[i]:
                for d in range(dim):
                    size = abs(points[i, d])
                    bad += np.int32(not size <= largest)
                    column[d] = size if size > column[d] else column[d]
        if bad > 0:
            return _F(np.nan)
        which = 0
        for d in range(dim):
            which = d if column[d] > column[which] else which
        sizes[r] = column[which]
        for i in range(r, n, rank):
            if mask[i] and abs(points[i, which]) == sizes[r]:
                at[r] = i
                break
    # The longest of all comes first: it alone decides how fast the first direction is found.
    longest = _F(0)
    for r in range(rank):
        which = 0
        for q in range(rank):
            which = q if sizes[q] > sizes[which] else which
        longest = max(longest, sizes[which])
        for d in range(dim):
            basis[r, d] = points[at[which], d] if sizes[which] > 0 else _F(0)
        sizes[which] = -1
    return longest


@bridge.loop
def main_directions(points, mask, iterations, largest, basis, scratch):
    """`kmeans.main_directions`."""
    n, dim = points.shape
    rank = basis.shape[0]
    big = starts(points, mask, largest, basis, scratch)
    if np.isnan(big):
        basis[:] = np.nan
        return
    end = n
    while end > 0 and not mask[end - 1]:
        end -= 1
    new, part = np.empty((rank, dim), np.float32), np.empty(dim, np.float32)
    weight = np.empty(_BLOCK, np.float32)
    for _ in range(iterations):
        orthonormal(basis)
        new[:] = 0
        if big > 0:
            for first in range(0, end, _BLOCK):
                last = min(first + _BLOCK, end)
                for r in range(rank):
                    products(points, basis[r], first, last, weight)
                    for i in range(last - first):
                        # Scaled: products of tiny entries would underflow.
                        weight[i] = weight[i] / big if mask[first + i] else _F(0)
                    combine(points, weight, first, last, part)
                    for d in range(dim):
                        new[r, d] += part[d]
        basis[:] = new
    orthonormal(basis)


@bridge.target("lloyd")
def run_lloyd(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 2)):
            centroid = bridge.f32_2(like, like, at)
            centroid[:] = bridge.f32_2(bridge.operand(frame, 3), like, at)
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


@bridge.target("main_directions")
def run_main_directions(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 2)):
            main_directions(
                bridge.f32_2(bridge.operand(frame, 0), like, at),
                bridge.bool_1(bridge.operand(frame, 1), like, at),
                bridge.i32_0(bridge.operand(frame, 2), like, at)[0],
                bridge.f32_0(bridge.operand(frame, 3), like, at)[0],
                bridge.f32_2(like, like, at),
                bridge.f32_1(bridge.result(frame, 1), like, at),
            )
    return 0
