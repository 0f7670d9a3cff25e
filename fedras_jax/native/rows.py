"""Rows of an item table: read by clients, and added up."""

import numpy as np

from fedras_jax.native import bridge, near, vectors

_F = np.float32


@bridge.exact
def look_up(table, item, out):
    """out[i] = table[item[i]], and zeros where there is no such row."""
    dim, block = table.shape[1], near.at_once(table)
    for i in range(item.shape[0]):
        if block > 0 and i % block == 0:
            near.fetch(table, item[i : i + block])
        m = item[i]
        if 0 <= m < table.shape[0]:
            for d in range(dim):
                out[i, d] = table[m, d]
        else:
            for d in range(dim):
                out[i, d] = 0


@bridge.loop
def add_rows(item, row, label, weight, total):
    """total[item[c, i]] += weight[c] row[c, label[c, i]], as far as there are such rows."""
    dim, block = total.shape[1], near.at_once(total)
    for c in range(item.shape[0]):
        w = weight[c]
        if w <= 0:
            continue
        for i in range(item.shape[1]):
            if block > 0 and i % block == 0:
                near.fetch(total, item[c, i : i + block])
            m, at = item[c, i], label[c, i]
            if not (0 <= m < total.shape[0] and 0 <= at < row.shape[1]):
                continue
            if dim == 1:
                total[m, 0] += w * row[c, at, 0]
            else:
                for d in range(dim):
                    total[m, d] += w * row[c, at, d]


@bridge.loop
def squares(row):
    """Sum of all squared entries; a row at a time, as fewer terms to a sum lose less."""
    total = _F(0)
    for i in range(row.shape[0]):
        one = _F(0)
        for d in range(row.shape[1]):
            one += row[i, d] * row[i, d]
        total += one
    return total


@bridge.loop
def apart(row, other, label, found):
    """Sums of all squared differences, and of all squared entries of the first.

    Each row from the other's that its label names, or from zeros where there is no such row.
    """
    error, total = _F(0), _F(0)
    for i in range(row.shape[0]):
        a, b, at = _F(0), _F(0), label[i]
        if 0 <= at < other.shape[0]:
            for d in range(row.shape[1]):
                gap = row[i, d] - other[at, d]
                a += gap * gap
                b += row[i, d] * row[i, d]
        else:
            for d in range(row.shape[1]):
                b += row[i, d] * row[i, d]
            a = b
        error += a
        total += b
    found[0], found[1] = error, total


@bridge.loop
def coordinates(row, basis, length, out):
    """out[i, r] = row[i] . basis[r] / length[r]"""
    vectors.coordinates(row, basis, 0, row.shape[0], out)
    for i in range(row.shape[0]):
        for r in range(basis.shape[0]):
            out[i, r] /= length[r]


@bridge.exact
def some(row, found):
    """Whether a row has an entry that is not zero."""
    for i in range(row.shape[0]):
        found[i] = False
        for d in range(row.shape[1]):
            if row[i, d] != 0:
                found[i] = True
                break


@bridge.target("some")
def run_some(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            some(
                bridge.f32_2(bridge.operand(frame, 0), like, at),
                bridge.bool_1(like, like, at),
            )
    return 0


@bridge.target("squares")
def run_squares(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 0)):
            row = bridge.f32_2(bridge.operand(frame, 0), like, at)
            bridge.f32_0(like, like, at)[0] = squares(row)
    return 0


@bridge.target("apart")
def run_apart(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            row = bridge.f32_2(bridge.operand(frame, 0), like, at)
            other = bridge.f32_2(bridge.operand(frame, 1), like, at)
            label = bridge.i32_1(bridge.operand(frame, 2), like, at)
            apart(row, other, label, bridge.f32_1(like, like, at))
    return 0


@bridge.target("coordinates")
def run_coordinates(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 2)):
            coordinates(
                bridge.f32_2(bridge.operand(frame, 0), like, at),
                bridge.f32_2(bridge.operand(frame, 1), like, at),
                bridge.f32_1(bridge.operand(frame, 2), like, at),
                bridge.f32_2(like, like, at),
            )
    return 0


@bridge.target("look_up")
def run_look_up(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 2)):
            look_up(
                bridge.f32_2(bridge.operand(frame, 0), like, at),
                bridge.i32_1(bridge.operand(frame, 1), like, at),
                bridge.f32_2(like, like, at),
            )
    return 0


@bridge.target("add_rows")
def run_add_rows(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 2)):
            total = bridge.f32_2(like, like, at)
            before = bridge.f32_2(bridge.operand(frame, 0), like, at)
            if total.ctypes.data != before.ctypes.data:
                for m in range(total.shape[0]):
                    vectors.copy(total[m], before[m])
            add_rows(
                bridge.i32_2(bridge.operand(frame, 1), like, at),
                bridge.f32_3(bridge.operand(frame, 2), like, at),
                bridge.i32_2(bridge.operand(frame, 3), like, at),
                bridge.f32_1(bridge.operand(frame, 4), like, at),
                total,
            )
    return 0
