"""Products and sums of a matrix's rows: what reads a client's rows over and over.

Four rows, or four vectors, at a time, so that what they share is read once. Callers go through
rows in blocks of `BLOCK`, which stay in the first cache between a product and a sum.
"""

import numpy as np

from fedras_jax.native import bridge

_F = np.float32
BLOCK = 64


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
def add_up(rows, w, first, last, out):
    """out += sum of w[i] rows[first + i]"""
    dim = out.shape[0]
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
def coordinates(rows, basis, first, last, out):
    """out[i] = rows[first + i] . basis, for every vector of it"""
    rank, dim = basis.shape
    if rank == 1:
        products(rows, basis[0], first, last, out.reshape(out.size))
        return
    for i in range(first, last):
        r = 0
        while r + 4 <= rank:
            a, b, c, d = _F(0), _F(0), _F(0), _F(0)
            for j in range(dim):
                x = rows[i, j]
                a += x * basis[r, j]
                b += x * basis[r + 1, j]
                c += x * basis[r + 2, j]
                d += x * basis[r + 3, j]
            at = i - first
            out[at, r], out[at, r + 1], out[at, r + 2], out[at, r + 3] = a, b, c, d
            r += 4
        while r < rank:
            a = _F(0)
            for j in range(dim):
                a += rows[i, j] * basis[r, j]
            out[i - first, r] = a
            r += 1


@bridge.loop
def dot(a, b):
    total = _F(0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@bridge.loop
def fill(out, x):
    """out = x: assigning a slice takes longer."""
    for j in range(out.shape[0]):
        out[j] = x


@bridge.loop
def copy(out, of):
    for j in range(out.shape[0]):
        out[j] = of[j]


@bridge.loop
def summed(a):
    total = _F(0)
    for j in range(a.shape[0]):
        total += a[j]
    return total
