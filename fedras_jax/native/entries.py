"""Single entries of rows: which are largest (`reductions`), and rows of some (`top_entries`)."""

import numpy as np

from fedras_jax.native import bridge, sorting
from fedras_jax.native.vectors import fill

_DIGITS = (21, 11), (10, 11), (0, 10)  # of a key, from the highest: where they begin, and bits
COUNTS = 2**11  # of the values of a digit


@bridge.exact
def largest(x, at, count):
    """Positions of the largest numbers, as many as `at` has room for, in order of positions.

    Digit by digit of the smallest of them, from the highest; `count` u32[2^11] is scratch.
    """
    bits, n_wanted = x.view(np.int32), at.shape[0]
    least, known, left = np.uint32(0), np.uint32(0), n_wanted
    for shift, width in _DIGITS:
        fill(count, 0)
        for i in range(bits.shape[0]):
            key = sorting.key_of(bits[i])
            if key & known == least:
                count[(key >> np.uint32(shift)) & np.uint32(2**width - 1)] += np.uint32(1)
        digit = 2**width - 1
        while digit > 0 and count[digit] < left:
            left -= np.int64(count[digit])
            digit -= 1
        least |= np.uint32(digit << shift)
        known |= np.uint32((2**width - 1) << shift)
    # `left` of those that are equal to the smallest: the first.
    n = 0
    for i in range(bits.shape[0]):
        key = sorting.key_of(bits[i])
        if key > least or (key == least and left > 0):
            left -= np.int64(key == least)
            if n < n_wanted:
                at[n] = i
            n += 1


@bridge.exact
def by_item(position, mask, value, n_items, item, row, first, words, count):
    """`top_entries.by_item`; `words` u32[4, N] and `count` u32[2^DIGIT] are scratch."""
    n, dim, size = 0, row.shape[1], position.shape[0]
    key, order = words[0], words[1]
    for i in range(size):
        if mask[i]:
            key[n], order[n] = position[i] // dim, i
            n += 1
        item[i], first[i] = n_items, False
        fill(row[i], 0)
    sorting.sort(key[:n], order[:n], sorting.width_below(n_items), words[2:], count)
    slot = 0
    for i in range(n):
        at, m = order[i], np.int64(key[i])
        if i == 0 or m != item[slot]:
            slot = i
            item[slot], first[slot] = m, True
        row[slot, position[at] % dim] += value[at]


@bridge.target("largest")
def run_largest(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            largest(
                bridge.f32_1(bridge.operand(frame, 0), like, at),
                bridge.i32_1(like, like, at),
                bridge.u32_1(bridge.result(frame, 1), like, at),
            )
    return 0


@bridge.target("by_item")
def run_by_item(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            by_item(
                bridge.i32_1(bridge.operand(frame, 0), like, at),
                bridge.bool_1(bridge.operand(frame, 1), like, at),
                bridge.f32_1(bridge.operand(frame, 2), like, at),
                bridge.i32_0(bridge.operand(frame, 3), like, at)[0],
                bridge.i32_1(like, like, at),
                bridge.f32_2(bridge.result(frame, 1), like, at),
                bridge.bool_1(bridge.result(frame, 2), like, at),
                bridge.u32_2(bridge.result(frame, 3), like, at),
                bridge.u32_1(bridge.result(frame, 4), like, at),
            )
    return 0
