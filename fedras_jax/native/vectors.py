"""Products and sums of the rows of a matrix, four rows at a time."""

import numpy as np

from fedras_jax.native import bridge

_F = np.float32


@bridge.loop
def products(rows, v, first, last, out):
    """out[i] = rows[first + i] . v"""
    dim = v.shape[0]
    i = first
    while i + 4 <= last:
        a, b, c, d = _F(0), _F(0), _F(0), _F(0)
        for j in range(dim):
            w = v[j]
            a += rows[i, j] * w
            b += rows[i + 1, j] * w
            c += rows[i + 2, j] * w
            d += rows[i + 3, j] * w
        at = i - first
        out[at], out[at + 1], out[at + 2], out[at + 3] = a, b, c, d
        i += 4
    while i < last:
        a = _F(0)
        for j in range(dim):
            a += rows[i, j] * v[j]
        out[i - first] = a
        i += 1


@bridge.loop
def combine(rows, w, first, last, out):
    """out = sum of w[i] rows[first + i]"""
    dim = out.shape[0]
    out[:] = 0
    i = first
    while i + 4 <= last:
        at = i - first
        a, b, c, d = w[at], w[at + 1], w[at + 2], w[at + 3]
        for j in range(dim):
            out[j] += a * rows[i, j] + b * rows[i + 1, j] + c * rows[i + 2, j] + d * rows[i + 3, j]
        i += 4
    while i < last:
        a = w[i - first]
        for j in range(dim):
            out[j] += a * rows[i, j]
        i += 1


@bridge.loop
def dot(a, b):
    total = _F(0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total
