"""Who takes part in a round: out of those that are there, and what their devices are like by then.

A profile says what clients are like for a whole run, a trace as simulated time goes on; without
either everyone is always there, and no time passes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedras_jax import network, rng, traces
from fedras_jax.types import Array, Cohort, Profile, Sampler, Trace


class Turnout(NamedTuple):
    """Who takes part.

    Attributes:
      begin: () -> the clock before the first round, as in `FedState`.
      now: clock -> Profile with leading axis U; None where no time passes.
      draw: (round i32[], Profile, bool[U] those that are at leisure or None for all) -> Cohort.
      place: (Cohort, Profile) -> the same, with slots and devices where it has none.
      lasting: (seconds f32[] that the server waits for payloads, clock, Profile, those at leisure)
        -> seconds f32[] that the round takes, as it may have to wait for somebody to be there.
      later: (clock, seconds) -> the clock after a round.
      known: round i32[] -> the Cohort that is drawn, if nobody is at work; None where cohorts
        depend on the time.
    """

    begin: Callable[[], Any]
    now: Callable[[Any], Profile | None]
    draw: Callable[[Array, Profile | None, Array | None], Cohort]
    place: Callable[[Cohort, Profile | None], Cohort]
    lasting: Callable[[Array, Any, Profile | None, Array | None], Array]
    later: Callable[[Any, Array], Any]
    known: Callable[[Array], Cohort] | None


def turnout(
    clients: Profile | Trace | None, sampler: Sampler, n_examples: np.ndarray, seed: int | Array
) -> Turnout:
    """Who takes part.

    Args:
      clients: devices and networks, or how they change; None: no time passes.
      sampler: of cohorts.
      n_examples: integer [U]; nobody waits for those who have none.
      seed: of the run.
    """
    trained = n_examples > 0

    def place(members, here):
        if members.slot is None:
            members = dataclasses.replace(members, slot=members.client)
        if members.device is None and here is not None:
            found = jax.tree.map(lambda x: x[members.client], here)
            members = dataclasses.replace(members, device=found)
        return members

    def draw(round_, here, free):
        there = free
        if here is not None:
            there = network.available(seed, round_, here)
            there = there if free is None else there & free
        if sampler.period == 1:
            return sampler.sample(rng.address(seed, rng.Stream.COHORT, round_), there)
        turn, place = jnp.divmod(round_, sampler.period)
        return sampler.sample(rng.address(seed, rng.Stream.COHORT, turn), there, place)

    if not isinstance(clients, Trace):
        return Turnout(
            begin=tuple,
            now=lambda clock: clients,
            draw=draw,
            place=place,
            lasting=lambda seconds, *_: seconds,
            later=lambda clock, seconds: clock,
            known=lambda round_: draw(round_, clients, None),
        )

    def lasting(seconds, clock, here, free):
        # Who is there for a part of the time will be there in some later round.
        there = (here.availability > 0) & trained
        there = there if free is None else there & free
        idle = ~there.any() & (seconds == 0)
        return jnp.where(idle, traces.until_somebody(clients, clock, trained), seconds)

    return Turnout(
        begin=traces.begin,
        now=lambda clock: traces.now(clients, clock),
        draw=draw,
        place=place,
        lasting=lasting,
        later=traces.later,
        known=None,
    )
