"""Devices and networks that change: what clients are like at a moment of simulated time.

A trace is a profile whose entries hold for a while. A round goes by what holds when it begins.
Where nobody who could be drawn has any availability, the server waits for the next stretch in which
somebody has some, or for the trace to begin anew; that wait is a round.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedras_jax import profiles
from fedras_jax.errors import SpecError
from fedras_jax.types import Array, Profile, Trace


def now(trace: Trace, clock: Array) -> Profile:
    """What every client is like at a time; leading axis U.

    Args:
      trace: of U clients.
      clock: f32[2], as in `FedState`.
    """
    time = _within(trace, clock)
    low, high = trace.offset[:-1], trace.offset[1:] - 1

    def halve(_, span):
        """Stretch `low` has begun, and those above `high` have not."""
        low, high = span
        middle = (low + high + 1) // 2
        begun = trace.begin[middle] <= time
        return jnp.where(begun, middle, low), jnp.where(begun, high, middle - 1)

    steps = trace.begin.shape[0].bit_length()
    at, _ = jax.lax.fori_loop(0, steps, halve, (low, high))
    return jax.tree.map(lambda x: x[at], trace.stretch)


def begin() -> Array:
    """The clock before the first round, f32[2]."""
    return jnp.zeros(2)


def later(clock: Array, seconds: Array) -> Array:
    """The clock after so many seconds more: compensated, as many short rounds make a long time.

    Source: Kahan, Further remarks on reducing truncation errors, Comm. ACM 8(1), 1965.
    """
    total, excess = clock
    more = seconds - excess
    after = total + more
    return jnp.stack([after, (after - total) - more])


def until_somebody(trace: Trace, clock: Array, wanted: Array | np.ndarray) -> Array:
    """Seconds until the next stretch in which one of those wanted, bool[U], has any availability.

    Where none comes, until everything begins anew; 0 where it does not.
    """
    time = _within(trace, clock)
    n = trace.begin.shape[0]
    of_wanted = jnp.repeat(jnp.asarray(wanted), jnp.diff(trace.offset), total_repeat_length=n)
    comes = of_wanted & (trace.begin > time) & (trace.stretch.availability > 0)
    ahead = jnp.min(jnp.where(comes, trace.begin, trace.period))
    return jnp.where(jnp.isfinite(ahead), ahead - time, 0)


def _within(trace: Trace, clock: Array) -> Array:
    """The time since everything began anew."""
    return jnp.where(jnp.isfinite(trace.period), jnp.mod(clock[0], trace.period), clock[0])


def check(trace: Trace, n_clients: int) -> Trace:
    """The trace as NumPy float32 and int32, once it is known to be one of `n_clients` clients.

    Raises:
      SpecError: not that many clients; a client without a stretch at 0, stretches that do not
        ascend, or that begin after the period; values out of range; nobody who is ever there.
    """
    offset = np.asarray(trace.offset, np.int64)
    if offset.shape != (n_clients + 1,):
        raise SpecError(f"a trace of {len(offset) - 1} clients: expected {n_clients}")
    start = np.asarray(trace.begin, np.float32)
    n = len(start)
    if offset[0] != 0 or offset[-1] != n or (np.diff(offset) < 1).any():
        raise SpecError(f"the trace's offsets: expected one stretch a client or more, {n} in all")
    first = np.isin(np.arange(n), offset[:-1])
    wrong = np.where(first, start != 0, ~(start > np.roll(start, 1)))
    period = np.float32(trace.period)
    if not period > 0:
        raise SpecError(f"the trace's period must be positive, not {period} s")
    owner = np.repeat(np.arange(n_clients), np.diff(offset))
    for bad, rule in (
        (wrong, "a client's first stretch begins at 0 s, and each later than the one before"),
        (~(start < period), f"it must lie before the period, {period:g} s"),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            raise SpecError(f"the trace's client {owner[at]} at {start[at]:g} s: {rule}")
    stretch = profiles.check(trace.stretch, n, away=True, owner=owner)
    if not stretch.availability.any():
        raise SpecError("the trace's availability: nobody is ever there")
    return Trace(start, offset.astype(np.int32), stretch, period)


def best(trace: Trace) -> Profile:
    """Every client at its best while it has any availability: NumPy arrays, leading axis U.

    At best means fast, and with the most jitter, as a round is then the sooner over with some luck.
    Who is never there is so slow that nothing is in time.
    """
    starts = np.asarray(trace.offset)[:-1]
    stretch, there = trace.stretch, np.asarray(trace.stretch.availability) > 0
    least = ("latency", "failure", "session", "tier")
    away = {"compute": 1e-30, "up": 1e-30, "down": 1e-30, "latency": 1e30, "jitter": 0}

    def of(name: str) -> np.ndarray:
        column = np.asarray(getattr(stretch, name))
        column = np.where(there, column, np.float32(away[name])) if name in away else column
        return (np.minimum if name in least else np.maximum).reduceat(column, starts)

    columns: dict[str, Any] = {field.name: of(field.name) for field in dataclasses.fields(Profile)}
    return Profile(**columns)
