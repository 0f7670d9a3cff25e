"""Sets of items: in order, how many bits they take (`bits`), and one in another (`sets`)."""

import numpy as np
from numba import types
from numba.extending import intrinsic

from fedras_jax.native import bridge, sorting
from fedras_jax.native.vectors import copy, fill

BITMAP = 2**12  # words
ROOM = BITMAP + BITMAP // 32  # and one for every 32 of them


@intrinsic
def lowest(typing, word):
    """Which bit of a word that is not zero is the lowest of those set."""
    del typing

    def lower(context, builder, sign, args):
        del sign
        bit = context.get_value_type(types.boolean)(1)
        return builder.zext(builder.cttz(args[0], bit), context.get_value_type(types.int64))

    return types.int64(types.uint32), lower


@bridge.exact
def put_bits(item, universe, word, some):
    """Words of a set, and of the set of those that are not zero; both begin as zeros."""
    five, last = np.uint32(5), np.uint32(31)
    for i in range(item.shape[0]):
        if item[i] < universe:
            at = item[i] >> five
            word[at] |= np.uint32(1) << (item[i] & last)
            some[at >> five] |= np.uint32(1) << (at & last)


@bridge.exact
def gather_bits(word, some, order):
    """Members of such a set in order; returns how many."""
    n = 0
    for s in range(some.shape[0]):
        full = some[s]
        while full != 0:
            w = 32 * s + lowest(full)
            full &= full - np.uint32(1)
            left = word[w]
            while left != 0:
                order[n] = 32 * w + lowest(left)
                left &= left - np.uint32(1)
                n += 1
    return n


@bridge.exact
def ascending(item, mask, universe, order, other, word):
    """The unmasked items in order, and `universe` in the slots that are left; returns how many.

    Of a small universe as a bitmap, else by sorting. `other` u32[3, N] and `word` u32[ROOM] are
    scratch.
    """
    n, size, key = 0, item.shape[0], other[0]
    for i in range(size):
        if mask[i]:
            key[n] = item[i]
            n += 1
    if universe <= 32 * BITMAP:
        n_words = (universe + 31) // 32
        word, some = word[:n_words], word[BITMAP : BITMAP + (n_words + 31) // 32]
        fill(word, 0)
        fill(some, 0)
        put_bits(key[:n], universe, word, some)
        n = gather_bits(word, some, order)
    else:
        sorting.sort(
            key[:n], order[:n], sorting.width_below(universe), other[1:], word[: 2**sorting.DIGIT]
        )
        copy(order[:n], key[:n])
    fill(order[n:], universe)
    return n


@bridge.loop
def quotients(gap, r):
    total = 0
    for i in range(gap.shape[0]):
        total += np.int64(gap[i] >> r)
    return total


@bridge.exact
def set_bits(order, universe, gap):
    """`bits.set_bits` of a set in order; `gap` is scratch."""
    n = order.shape[0]
    if n == 0 or n >= universe:
        return universe * 0
    gap[0] = order[0]
    for i in range(1, n):
        gap[i] = order[i] - order[i - 1] - 1
    width = sorting.width_below(universe)
    least = min(universe, n * width)
    for r in range(width):
        least = min(least, n * (1 + r) + quotients(gap, np.uint32(r)))
    return least


@bridge.exact
def own(first, item, mask, label, k, found):
    """`bits.own_actions`, of which `first` are the items in order."""
    n = 0
    for i in range(mask.shape[0]):
        n += np.int64(mask[i])
    if n != k:
        copy(found, label)
        return
    for i in range(item.shape[0]):
        place = np.int32(0)
        for j in range(first.shape[0]):
            place += np.int32(first[j] < item[i])
        found[i] = place if mask[i] else 0


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
            other = bridge.u32_2(bridge.result(frame, 2), like, at)
            n = ascending(
                bridge.i32_1(bridge.operand(frame, 0), like, at),
                bridge.bool_1(bridge.operand(frame, 1), like, at),
                universe,
                order,
                other,
                bridge.u32_1(bridge.result(frame, 3), like, at),
            )
            told = set_bits(order[:n], universe, other[0, :n])
            bridge.i32_0(bridge.result(frame, 1), like, at)[0] = told
    return 0


@bridge.target("own")
def run_own(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            own(
                bridge.i32_1(bridge.operand(frame, 0), like, at),
                bridge.i32_1(bridge.operand(frame, 1), like, at),
                bridge.bool_1(bridge.operand(frame, 2), like, at),
                bridge.i32_1(bridge.operand(frame, 3), like, at),
                bridge.i32_0(bridge.operand(frame, 4), like, at)[0],
                bridge.i32_1(like, like, at),
            )
    return 0
