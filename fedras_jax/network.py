"""One client's clock: how long its round takes, and how far it gets. And who can be drawn.

    seconds = latency + bits down / down + examples x epochs / compute + encoding + bits up / up

Encoding is counted in examples: `encode_work` of them for each touched row and action. A client
that fails does so at a uniformly drawn moment of its round. Until then it costs what it costs: the
bits that were on their way by then are counted, and no more.

Jitter multiplies a round's speeds, of the network and of the device apart, by lognormal factors
whose median is 1.

Source: the sum is ours, as in FedScale (Lai et al., ICML 2022), which has neither latency nor
encoding.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedras_jax import rng
from fedras_jax.types import Array, Outcome, Pace, Profile

# What `chance` is drawn from.
STREAMS = (rng.Stream.JITTER, rng.Stream.FAILURE)

PHASES = ("latency", "download", "train", "encode", "upload")

# Examples whose training takes as long as encoding one row with one action. `benchmarks/round.py`
# gives 0.20 to 0.25 (2 cores): 0.4 ms by which full-row actions are slower than dense, for 830 rows
# and 16 actions, against the 0.2 ms of dense rounds for 2 epochs of as many examples.
ENCODE_WORK = 0.2


def ideal(n_clients: int) -> Profile:
    """Clients that take no time, are always there and never fail."""
    fast = np.full(n_clients, np.inf, np.float32)
    zeros, ints = np.zeros(n_clients, np.float32), np.zeros(n_clients, np.int32)
    columns: dict[str, Any] = {
        "compute": fast,
        "up": fast,
        "down": fast,
        "latency": zeros,
        "availability": zeros + 1,
        "session": ints + 1,
        "failure": zeros,
        "jitter": zeros,
        "tier": ints,
    }
    return Profile(**columns)


def one_ideal() -> Profile:
    """A single one of `ideal`."""
    return jax.tree.map(lambda x: jnp.asarray(x[0]), ideal(1))


def available(seed: int | Array, round_: Array, profile: Profile) -> Array:
    """Who can be drawn in a round: bool[U].

    Every client is there or not for `session` rounds, and then draws again, independently: with
    probability `availability` it is there. Clients' sessions begin in different rounds.
    """

    client = jnp.arange(profile.availability.shape[0], dtype=jnp.int32)
    begins, draws = (rng.address(seed, rng.Stream.AVAILABILITY, i) for i in range(2))
    offset = rng.hashed(begins, client) % profile.session.astype(jnp.uint32)
    block = (round_ + offset.astype(jnp.int32)) // profile.session
    # The upper 24 bits: exact in float32, and below 1.
    return (rng.hashed(draws, client, block) >> 8) * 2.0**-24 < profile.availability


def pace(profile: Profile) -> Pace:
    """A client's speeds as they are known beforehand; `profile` is one client's."""
    return Pace(profile.compute, profile.up, profile.down, profile.latency)


def jittered(key: Array, profile: Profile) -> Pace:
    """A client's speeds in one round."""
    device, link = jnp.exp(profile.jitter * jax.random.normal(key, (2,)))
    return Pace(
        profile.compute * device, profile.up * link, profile.down * link, profile.latency / link
    )


def chance(pace: Array, fate: Array, device: Profile) -> tuple[Pace, Array]:
    """What a round has in store for one client: its speeds, and draws for `outcome`.

    Args:
      pace, fate: keys of the client in the round, those of `STREAMS`.
      device: the client's profile.
    """
    return jittered(pace, device), jax.random.uniform(fate, (2,))


def phases(pace: Pace, bits_down: Array, work: Array, encoding: Array, bits_up: Array) -> Array:
    """Seconds of each of `PHASES`, f32[5].

    Args:
      pace: the client's speeds.
      bits_down, bits_up: f32[], sizes of what it fetches and sends, headers included.
      work: f32[], examples times epochs.
      encoding: f32[], encoding counted in examples.
    """
    return jnp.stack(
        [
            pace.latency,
            bits_down / pace.down,
            work / pace.compute,
            encoding / pace.compute,
            bits_up / pace.up,
        ]
    )


def clustered(rows: Array, k: Array) -> Array:
    """What encoding takes the time of, rows times actions, f32; counted by `encode_work`.

    Rows that have an action each are sent as they are, so nothing is clustered. Codecs without
    actions, k = 0, take as long as one action does.

    Args:
      rows, k: of the same shape; touched rows, and actions granted.
    """
    rows = jnp.asarray(rows, jnp.float32)
    return jnp.where(k < rows, rows * jnp.maximum(k, 1), 0)


def spent(phases: Array, begin: Array, length: Array) -> Array:
    """What a client was busy with from `begin` of its own time on for `length` seconds, f32[5]."""
    ends = jnp.cumsum(phases)
    low = jnp.maximum(ends - phases, begin)
    return jnp.maximum(jnp.minimum(ends, begin + length) - low, 0)


def outcome(draws: Array, failure: Array, phases: Array) -> Outcome:
    """How a client's round ends.

    Args:
      draws: f32[2], uniform: whether it fails, and when.
      failure: f32[], probability of failing.
      phases: f32[5] seconds.
    """
    fate, moment = draws
    ends = jnp.cumsum(phases)
    starts = ends - phases
    fails = fate < failure
    seconds = jnp.where(fails, moment, 1.0) * ends[-1]
    done = jnp.clip(seconds - starts, 0, phases)
    share = jnp.where(phases > 0, done / jnp.where(phases > 0, phases, 1), seconds >= starts)
    return Outcome(
        seconds=seconds,
        phases=jnp.where(fails, done, phases),
        finished=~fails,
        share_down=jnp.where(fails, share[1], 1.0),
        share_up=jnp.where(fails, share[4], 1.0),
    )


def in_no_time() -> Outcome:
    """How a round ends for a client of `ideal`."""
    zero, one = jnp.zeros(()), jnp.ones(())
    return Outcome(zero, jnp.zeros(len(PHASES)), jnp.bool_(True), one, one)
