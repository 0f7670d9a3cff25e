"""Elementary functions that compilers turn into vector instructions, in float32."""

import numpy as np
from numba import types
from numba.extending import intrinsic

from fedras_jax.native import bridge

_F = np.float32
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4)


@intrinsic
def _as_float(typing, word):
    """The float32 with these bits."""
    del typing
    return types.float32(types.int32), lambda context, builder, sign, args: builder.bitcast(
        args[0], context.get_value_type(types.float32)
    )


@intrinsic
def _as_word(typing, number):
    """The bits of a float32."""
    del typing
    return types.int32(types.float32), lambda context, builder, sign, args: builder.bitcast(
        args[0], context.get_value_type(types.int32)
    )


@bridge.exact
def exp(x):
    """e^x within 2e-7 of it, relative, for x in -87 to 87; beyond, that of the end. NaN for NaN.

    Source: the reduction by ln 2 in two parts and the polynomial of Cephes (Moshier), `expf`.
    """
    x = _F(87) if x > _F(87) else x
    x = _F(-87) if x < _F(-87) else x
    n = np.floor(x * _LOG2E + _F(0.5))
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = _F(1.9875691500e-4)
    p = p * r + _F(1.3981999507e-3)
    p = p * r + _F(8.3334519073e-3)
    p = p * r + _F(4.1665795894e-2)
    p = p * r + _F(1.6666665459e-1)
    p = p * r + _F(5.0000001201e-1)
    p = p * r * r + r + _F(1)
    # NaN has no integer: its power is made of zero, and p is NaN.
    whole = np.int32(n) if n == n else np.int32(0)
    return p * _as_float(np.int32((whole + np.int32(127)) << np.int32(23)))


@bridge.exact
def log1p(x):
    """log(1 + x) for x in 0 to 1, within 2e-7, relative: 2 artanh(x / (2 + x)) by its series."""
    z = x / (x + _F(2))
    s = z * z
    p = _F(2 / 15)
    p = p * s + _F(2 / 13)
    p = p * s + _F(2 / 11)
    p = p * s + _F(2 / 9)
    p = p * s + _F(2 / 7)
    p = p * s + _F(2 / 5)
    p = p * s + _F(2 / 3)
    return z * (p * s + _F(2))


@bridge.exact
def cbrt(x):
    """The cube root of x within 2.5e-7 of it, relative, for x in 1e-36 to 1e37, and 0 for 0.

    A third of the exponent, which is within 4 %, and then two steps of Halley's, each of which
    cubes what is wrong.
    """
    y = _as_float(np.int32(_F(_as_word(x)) * _F(1 / 3)) + np.int32(709_958_130))
    for _ in range(2):
        cube = y * y * y
        y *= (cube + _F(2) * x) / (_F(2) * cube + x)
    return y if x > 0 else _F(0)


@bridge.exact
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return _F(1) / (_F(1) + exp(-x))


@bridge.exact
def softplus(x):
    """log(1 + e^x)."""
    # Beyond, squares of what is left would be subnormal numbers, which are slow.
    rest = -abs(x)
    rest = _F(-40) if rest < _F(-40) else rest
    return max(x, _F(0)) + log1p(exp(rest))
