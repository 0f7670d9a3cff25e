"""The main directions of one set of points, which its coordinates are taken along."""

import numpy as np

from fedras_jax.native import bridge
from fedras_jax.native.vectors import BLOCK, add_up, coordinates, copy, dot, fill

_F = np.float32


@bridge.exact
def unit(v):
    """v / |v| in place, zero for zero. Scaled first: squares of tiny entries would underflow."""
    top = _F(0)
    for d in range(v.shape[0]):
        top = abs(v[d]) if not abs(v[d]) <= top else top
    if top == 0:
        fill(v, 0)
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
                fill(v, 0)
            unit(v)


@bridge.loop
def grow(column, points, mask, first, step):
    """The largest entries of every step-th point from the first, four points at a time."""
    n, i = points.shape[0], first
    while i < n:
        j, k, m = i + step, i + 2 * step, i + 3 * step
        if m < n and mask[i] and mask[j] and mask[k] and mask[m]:
            for d in range(column.shape[0]):
                p, q = abs(points[i, d]), abs(points[j, d])
                r, s = abs(points[k, d]), abs(points[m, d])
                p, r = (p if p > q else q), (r if r > s else s)
                p, q = (p if p > r else r), column[d]
                column[d] = p if p > q else q
            i += 4 * step
        else:
            if mask[i]:
                for d in range(column.shape[0]):
                    p, q = abs(points[i, d]), column[d]
                    column[d] = p if p > q else q
            i += step


@bridge.loop
def starts(points, mask, largest, basis, column):
    """The longest point, by its largest entry, of every r-th slot; returns the largest of all.

    NaN where an entry that counts is beyond `largest`. (One that is NaN is not seen here: products
    with it are NaN.)
    """
    n, dim = points.shape
    rank = basis.shape[0]
    sizes, at = np.zeros(rank, np.float32), np.zeros(rank, np.int64)
    for r in range(rank):
        for d in range(dim):
            column[d] = 0
        grow(column, points, mask, r, rank)
        for d in range(dim):
            if column[d] > largest:
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
def weigh(along, mask, scale, weight):
    """Coordinates over a scale, as products of tiny ones would underflow."""
    for i in range(mask.shape[0]):
        x = along[i] / scale
        weight[i] = x if mask[i] else _F(0)


@bridge.loop
def main_directions(points, mask, iterations, largest, basis, scratch):
    """`kmeans.main_directions`."""
    n, dim = points.shape
    rank = basis.shape[0]
    big = starts(points, mask, largest, basis, scratch)
    if np.isnan(big):
        for r in range(rank):
            fill(basis[r], np.nan)
        return
    end = n
    while end > 0 and not mask[end - 1]:
        end -= 1
    new, weight = np.empty((rank, dim), np.float32), np.empty((BLOCK, rank), np.float32)
    column, scale = np.empty(BLOCK, np.float32), big if big > 0 else _F(1)
    for _ in range(iterations):
        orthonormal(basis)
        for r in range(rank):
            fill(new[r], 0)
        for first in range(0, end, BLOCK):
            last = min(first + BLOCK, end)
            coordinates(points, basis, first, last, weight)
            for r in range(rank):
                weigh(weight[:, r], mask[first:last], scale, column)
                add_up(points, column, first, last, new[r])
        for r in range(rank):
            copy(basis[r], new[r])
    orthonormal(basis)


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
