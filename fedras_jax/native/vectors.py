"""Products and sums of a matrix's rows: what reads a client's rows over and over.

Four rows, or four vectors, at a time, so that what they share is read once. Callers go through
rows in blocks of `BLOCK`, which stay in the first cache between a product and a sum.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from fedras_jax.native import bridge

_F = np.float32
BLOCK = 64
LANES = 16  # entries that `lower` takes


@intrinsic
def lower(typing, out, shift, rows):
    """out = the least of itself and of shift[i] + rows[i], entry by entry, for the first `LANES`.

    As the vectors that are meant: loops this short are made into none.
    """
    del typing
    for one in (out, *rows):
        if one.dtype != types.float32 or one.ndim != 1 or one.layout != "C":
            raise TypingError(f"{one}: entries must be float32, and lie beside each other")
    vector = ir.VectorType(ir.FloatType(), LANES)

    def generate(context, builder, signature, arguments):
        def place(kind, value):
            data = cgutils.create_struct_proxy(kind)(context, builder, value).data
            return builder.bitcast(data, vector.as_pointer())

        kind, _, kinds = signature.args
        undefined = ir.Constant(vector, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        to = place(kind, arguments[0])
        least = builder.load(to, align=4)
        for i, of in enumerate(kinds):
            row = builder.load(place(of, builder.extract_value(arguments[2], i)), align=4)
            number = builder.extract_value(arguments[1], i)
            lane = builder.insert_element(undefined, number, ir.IntType(32)(0))
            total = builder.fadd(builder.shuffle_vector(lane, undefined, zeros), row)
            least = builder.select(builder.fcmp_ordered("<", total, least), total, least)
        builder.store(least, to, align=4)
        return context.get_dummy_value()

    return types.void(out, shift, rows), generate


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
