"""Unsigned numbers in order, with what they carry, and float32 numbers as such."""

import numpy as np

from fedras_jax.native import bridge
from fedras_jax.native.vectors import copy, fill

DIGIT = 8  # bits of a pass


@bridge.exact
def key_of(bits):
    """The bits of a float32 as an unsigned number of the same order."""
    return np.uint32(bits) ^ (np.uint32(0xFFFFFFFF) if bits < 0 else np.uint32(0x80000000))


@bridge.exact
def width_below(n):
    """`bits.index_width`: of numbers below n."""
    width = 1
    while 2**width < n:
        width += 1
    return width


@bridge.exact
def sort(key, carried, bits, spare, count):
    """Keys u32[N] below 2^bits in order and in place, equal ones as they were; and what they carry.

    Counting sort, digit by digit; `spare` u32[2, N] and `count` u32[2^DIGIT] are scratch.
    """
    n, last = key.shape[0], np.uint32(2**DIGIT - 1)
    for first in range(0, bits if n > 1 else 0, DIGIT):
        shift = np.uint32(first)
        fill(count, 0)
        for i in range(n):
            count[(key[i] >> shift) & last] += np.uint32(1)
        if count[(key[0] >> shift) & last] == n:
            continue
        before = np.uint32(0)
        for digit in range(2**DIGIT):
            here = count[digit]
            count[digit] = before
            before += here
        for i in range(n):
            digit = (key[i] >> shift) & last
            at = count[digit]
            count[digit] = at + np.uint32(1)
            spare[0, at], spare[1, at] = key[i], carried[i]
        copy(key, spare[0])
        copy(carried, spare[1])
