"""Keys and words of them, as `jax.random` derives them by default: to the bit, in one loop.

XLA:CPU makes dozens of small operations of each, and a round derives keys for all its clients.

Source: Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011, for
Threefry-2x32 with 20 rounds.
"""

import numpy as np

from fedras_jax.native import bridge

_U = np.uint32
_EVEN, _ODD = (13, 15, 26, 6), (17, 29, 16, 24)  # rotations of every other four rounds


@bridge.within
def mix(x, y, turn):
    """One round: the sum, and what is left of y after a rotation."""
    x = _U(x + y)
    return x, _U((y << _U(turn)) | (y >> _U(32 - turn))) ^ x


@bridge.within
def four(x, y, turns):
    """A round for each of four rotations."""
    x, y = mix(x, y, turns[0])
    x, y = mix(x, y, turns[1])
    x, y = mix(x, y, turns[2])
    return mix(x, y, turns[3])


@bridge.within
def threefry(key, other, x, y):
    """Two words under a key of two."""
    last = _U(key ^ other ^ _U(0x1BD11BDA))
    x, y = four(_U(x + key), _U(y + other), _EVEN)
    x, y = four(_U(x + other), _U(y + last + _U(1)), _ODD)
    x, y = four(_U(x + last), _U(y + key + _U(2)), _EVEN)
    x, y = four(_U(x + key), _U(y + other + _U(3)), _ODD)
    x, y = four(_U(x + other), _U(y + last + _U(4)), _EVEN)
    return _U(x + last), _U(y + key + _U(5))


@bridge.exact
def words(key, out):
    """`jax.random.bits`, 32 at a time."""
    for i in range(out.shape[0]):
        x, y = threefry(key[0], key[1], _U(0), _U(i))
        out[i] = x ^ y


@bridge.target("fold")
def run_fold(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            key = bridge.u32_1(bridge.operand(frame, 0), like, at)
            part = bridge.u32_0(bridge.operand(frame, 1), like, at)[0]
            out = bridge.u32_1(like, like, at)
            out[0], out[1] = threefry(key[0], key[1], _U(0), part)
    return 0


@bridge.target("words")
def run_words(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            key = bridge.u32_1(bridge.operand(frame, 0), like, at)
            words(key, bridge.u32_1(like, like, at))
    return 0
