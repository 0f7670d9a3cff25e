"""When a round ends, and whose payload the server gets to see.

A client that is too late has trained: what it keeps to itself, a codec's feedback among it, stays
as its training left it, and its bytes were sent. It may be drawn again in the next round. A client
that fails keeps nothing of the round.
"""

import math

import jax
import jax.numpy as jnp

from fedras_jax.errors import SpecError
from fedras_jax.types import Array, Arrival, Number, Settled


def _latest(seconds: Array, present: Array) -> Array:
    return jnp.max(jnp.where(present, seconds, 0))


def synchronous() -> Arrival:
    """The server waits for everyone who was drawn, until they deliver or fail."""

    def settle(seconds, present, finished, cohort):
        del cohort
        return Settled(present & finished, present & False, _latest(seconds, present))

    def alone(seconds, finished):
        del seconds
        return finished

    return Arrival(settle, alone)


def deadline(seconds: Number) -> Arrival:
    """The server waits for so long at most; what comes later is dropped.

    Raises:
      SpecError: not a time.
    """
    if not isinstance(seconds, jax.core.Tracer) and not 0 < seconds < math.inf:
        raise SpecError(f"deadline: seconds must be positive and finite, not {seconds}")
    limit = seconds

    def alone(seconds, finished):
        return finished & (seconds <= limit)

    def settle(seconds, present, finished, cohort):
        del cohort
        end = jnp.minimum(_latest(seconds, present), limit)
        return Settled(present & alone(seconds, finished), present & False, end)

    return Arrival(settle, alone, deadline=seconds)


def over_commit(wanted: int) -> Arrival:
    """More clients are drawn than `wanted`, and the first so many that deliver count.

    The others' payloads are dropped. Where fewer deliver, the server waits for all, as it does
    without a limit.

    Args:
      wanted: n of the m clients of a cohort.

    Raises:
      SpecError: `wanted` is no positive integer.

    Source: Bonawitz et al., Towards federated learning at scale, MLSys 2019, draw 1.3 times as
    many as they want.
    """
    if wanted < 1 or wanted != int(wanted):
        raise SpecError(f"over_commit: wanted must be an integer of at least 1, not {wanted}")

    def settle(seconds, present, finished, cohort):
        del cohort
        came = present & finished
        place = _place(seconds, came)
        taken = came & (place < wanted)
        end = jnp.where(came.sum() >= wanted, _latest(seconds, taken), _latest(seconds, present))
        return Settled(taken, present & False, end)

    return Arrival(settle, wanted=wanted)


def buffered(in_flight: int, *, staleness_power: Number = 0.5) -> Arrival:
    """Asynchronous rounds: the server steps when a cohort's worth of clients has reported back.

    `in_flight` clients are at work at once. They train when they are sent out, on the public table
    of that time, and their payloads wait in flight; the server takes the earliest, as many as a
    cohort has clients (those that fail among them, who bring nothing), steps, and sends out as many
    again. The first rounds only send out, until so many are at work; they take no time.
    A payload that was made s rounds ago weighs (1 + s) ** -staleness_power against the others of
    its step; the mean is over weights, so payloads that are equally stale are not made smaller.

    Args:
      in_flight: clients at work at once, at least a cohort.
      staleness_power: 0 for no discount.

    Raises:
      SpecError: a number out of range.

    Source: FedBuff, Nguyen et al., AISTATS 2022, for buffer and discount. There the sum is divided
    by the size of the buffer, and a client is sent out whenever another one comes back; a weighted
    mean, and clients in groups after each step, are our choice.
    """
    if in_flight < 1 or in_flight != int(in_flight):
        raise SpecError(f"buffered: in_flight must be an integer of at least 1, not {in_flight}")
    traced = isinstance(staleness_power, jax.core.Tracer)
    if not traced and not 0 <= staleness_power < math.inf:
        raise SpecError(f"buffered: staleness_power must be >= 0, not {staleness_power}")

    def settle(seconds, present, finished, cohort):
        excess = present.sum() - (in_flight - cohort)
        leaving = present & (_place(seconds, present) < excess)
        return Settled(leaving & finished, present & ~leaving, _latest(seconds, leaving))

    def weigh(staleness):
        return (1.0 + staleness) ** -staleness_power

    return Arrival(settle, weigh=weigh, in_flight=in_flight)


def _place(seconds: Array, among: Array) -> Array:
    """Which place each has in the order of time, ties by slot; those not among come last."""
    order = jnp.argsort(jnp.where(among, seconds, jnp.inf), stable=True)
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
