"""Sets of items: in order, how many bits they take (`bits`), and one in another (`sets`)."""

import numpy as np

from fedras_jax.native import bridge
from fedras_jax.native.vectors import fill

_DIGIT = 11  # bits of a pass of the sort


@bridge.exact
def ascending(item, mask, universe, order, other, count):
    """The unmasked items in order, and `universe` in the slots that are left.

    Counting sort, digit by digit; `other` u32[N] and `count` u32[2^11] are scratch.
    """
    n = 0
    for i in range(item.shape[0]):
        if mask[i]:
            order[n] = item[i]
            n += 1
    for i in range(n, item.shape[0]):
        order[i] = universe
    shift = 0
    while n > 1 and (universe - 1) >> shift > 0:
        fill(count, 0)
        for i in range(n):
            count[(order[i] >> shift) & (2**_DIGIT - 1)] += np.uint32(1)
        before = np.uint32(0)
        for digit in range(2**_DIGIT):
            here = count[digit]
            count[digit] = before
            before += here
        for i in range(n):
            digit = (order[i] >> shift) & (2**_DIGIT - 1)
            other[count[digit]] = order[i]
            count[digit] += np.uint32(1)
        for i in range(n):
            order[i] = other[i]
        shift += _DIGIT
    return n


@bridge.exact
def set_bits(order, n, universe):
    """`bits.set_bits` of a set in order."""
    if n == 0 or n >= universe:
        return universe * 0
    width = 1
    while 2**width < universe:
        width += 1
    least = min(universe, n * width)
    for r in range(width):
        total, before = n * (1 + r), -1
        for i in range(n):
            total += (order[i] - before - 1) >> r
            before = order[i]
        least = min(least, total)
    return least


def find_scratch(q):
    """Slots of the hash table that `find` needs room for: never full, and at least two."""
    return 2 ** max((2 * q).bit_length(), 1)


@bridge.exact
def hashed(x, bits):
    """A place below 2^bits: the high bits of a product with 2^32 over the golden ratio."""
    return np.int64(np.uint32(np.uint32(x) * np.uint32(0x9E3779B1)) >> np.uint32(32 - bits))


@bridge.exact
def find(among, item, mask, found, at, table):
    """`sets.find`: open addressing; `table` is scratch and holds slots of `among`, from 1."""
    bits = 0
    while 2**bits < table.shape[0]:
        bits += 1
    last = table.shape[0] - 1
    fill(table, 0)
    for i in range(among.shape[0]):
        place = hashed(among[i], bits)
        while table[place] > 0 and among[table[place] - 1] != among[i]:
            place = (place + 1) & last
        if table[place] == 0:
            table[place] = i + 1
    for i in range(item.shape[0]):
        found[i], at[i] = False, 0
        if mask[i]:
            place = hashed(item[i], bits)
            while table[place] > 0 and among[table[place] - 1] != item[i]:
                place = (place + 1) & last
            if table[place] > 0:
                found[i], at[i] = True, table[place] - 1


@bridge.target("find")
def run_find(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            find(
                bridge.i32_1(bridge.operand(frame, 0), like, at),
                bridge.i32_1(bridge.operand(frame, 1), like, at),
                bridge.bool_1(bridge.operand(frame, 2), like, at),
                bridge.bool_1(like, like, at),
                bridge.i32_1(bridge.result(frame, 1), like, at),
                bridge.i32_1(bridge.result(frame, 2), like, at),
            )
    return 0


@bridge.target("ascending")
def run_ascending(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            universe = np.int64(bridge.i32_0(bridge.operand(frame, 2), like, at)[0])
            order = bridge.i32_1(like, like, at)
            n = ascending(
                bridge.i32_1(bridge.operand(frame, 0), like, at),
                bridge.bool_1(bridge.operand(frame, 1), like, at),
                universe,
                order,
                bridge.u32_1(bridge.result(frame, 2), like, at),
                bridge.u32_1(bridge.result(frame, 3), like, at),
            )
            bridge.i32_0(bridge.result(frame, 1), like, at)[0] = set_bits(order, n, universe)
    return 0
