"""How many actions a client may send in a round.

A client that cannot afford a single action sends `k_min` all the same; a budget under which no
client can is refused before anything is compiled (`agreement.policies`).

Policies are local: each sees one client, after its training and before its payload is made, and
what the server has told everyone. None needs a further exchange of messages within a round; what
a policy has reported goes with the payload.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fedras_jax.errors import SpecError
from fedras_jax.types import Array, Budget, Number, Outlook


def fixed(k: int | None = None) -> Budget:
    """The same k for everyone in every round; as many as the codec holds when None.

    Who has its rows for as few bits sends those, as with every policy (`at_no_cost`).
    """
    if k is not None:
        _positive("fixed", k=k)

    def allocate(outlook, state):
        del state
        return jnp.int32(outlook.bits.shape[0] - 1 if k is None else k)

    return Budget(allocate, max_actions=k)


def by_client(k: np.ndarray) -> Budget:
    """A k of its own for each client: `k` i32[U], at least 1 (devices differ)."""
    k = np.asarray(k)
    if k.ndim != 1 or k.size == 0 or not np.issubdtype(k.dtype, np.integer) or k.min() < 1:
        raise SpecError("by_client: expected a 1-D integer array of action counts, all >= 1")
    table = k.astype(np.int32)  # NumPy: a Spec is checked before devices are set up

    def allocate(outlook, state):
        del state
        return jnp.asarray(table)[outlook.client]

    return Budget(allocate, max_actions=int(k.max()), n_clients=k.size)


def schedule(k: Sequence[int], until: Sequence[int]) -> Budget:
    """k[0] in the rounds before until[0], k[1] before until[1], ..., the last k ever after.

    Args:
      k: one more than there are bounds.
      until: ascending rounds.

    Raises:
      SpecError: lengths that do not fit, bounds that do not ascend, k below 1.
    """
    if len(k) != len(until) + 1 or list(until) != sorted(set(until)):
        raise SpecError(
            f"schedule: expected ascending rounds and one k more than rounds, not k={list(k)} "
            f"until={list(until)}"
        )
    for entry in k:
        _positive("schedule", k=entry)
    bounds, table = np.array(until, np.int32).reshape(-1), np.array(k, np.int32)

    def allocate(outlook, state):
        del state
        return jnp.asarray(table)[jnp.sum(bounds <= outlook.round)]

    return Budget(allocate, max_actions=max(k))


def bandwidth(seconds: Number, k_min: int = 1) -> Budget:
    """The largest k whose upload takes at most so long on the client's own uplink.

    Args:
      seconds: time for the upload.
      k_min: what a client sends for which nothing fits.

    Raises:
      SpecError: a number out of range.
    """
    _positive("bandwidth", k_min=k_min, seconds=seconds)

    def allocate(outlook, state):
        del state
        return _largest(outlook.bits <= seconds * outlook.pace.up, k_min)

    return Budget(allocate, most_bits=lambda up, before: seconds * up)


def distortion(tolerance: Number, k_min: int = 1) -> Budget:
    """The smallest k whose relative squared error is at most `tolerance`; all where none is.

    Args:
      tolerance: of the error, relative to the delta's squared norm.
      k_min: least k.

    Raises:
      SpecError: a number out of range.
    """
    _positive("distortion", k_min=k_min, tolerance=tolerance)

    def allocate(outlook, state):
        del state
        good = outlook.error <= tolerance
        first = jnp.where(good.any(), jnp.argmax(good), good.shape[0] - 1)
        return jnp.maximum(first, k_min).astype(jnp.int32)

    return Budget(allocate, needs_error=True)


def round_time(seconds: Number, k_min: int = 1) -> Budget:
    """Least distortion over the cohort with nobody later than `seconds`.

    Errors fall with k and clients do not share links, so this falls apart into clients: each takes
    the largest k with which its whole round, download and training included, is over by then.

    Args:
      seconds: of a round.
      k_min: what a client sends that is too late in any case.

    Raises:
      SpecError: a number out of range.
    """
    _positive("round_time", k_min=k_min, seconds=seconds)

    def allocate(outlook, state):
        del state
        return _largest(_seconds(outlook) <= seconds, k_min)

    return Budget(allocate, most_bits=lambda up, before: (seconds - before) * up)


def joint(bytes_mean: Number, k_min: int = 1, gain: Number = 0.2) -> Budget:
    """Least distortion over the cohort under a budget of bytes, by a price that the server names.

    Each client takes the k with the least error + price x bits. For any price that is the best
    allocation of the bits that it spends (Lagrange), so the server has only to find the price at
    which the mean upload meets the budget: it raises it after a round that spent too much, and
    lowers it after one that spent too little. So budgets hold on average over rounds, not in each.

    Args:
      bytes_mean: mean upload of a client, header included.
      k_min: least k.
      gain: how fast the price follows; the logarithm of the price moves by gain x the relative
        excess.

    Raises:
      SpecError: a number out of range.

    Source: dual ascent, as in network utility maximization (Kelly et al., J. Oper. Res. Soc. 1998).
    """
    _positive("joint", k_min=k_min, bytes_mean=bytes_mean, gain=gain)
    bits_mean = 8 * bytes_mean

    def allocate(outlook, state):
        cost = outlook.error + jnp.exp(state) * outlook.bits / bits_mean
        return _cheapest(cost, k_min)

    def update(state, tally):
        excess = jnp.clip(tally.bits / bits_mean - 1, -1, 1)
        return jnp.where(tally.bits > 0, jnp.clip(state + gain * excess, -20, 20), state)

    # The first price: as much error as bits are worth. It is forgotten within some 1 / gain rounds.
    return Budget(
        allocate,
        init=lambda: jnp.float32(-3),
        update=update,
        needs_error=True,
        most_bits=lambda up, before: bits_mean,
    )


@struct.dataclass
class Limit:
    """What everyone is told by `adaptive`, and how the server goes on.

    Attributes:
      seconds: f32[], for a round; 0 for any time, as in the first round.
      clients: f32[], whose payloads the last round took that took any; each is one of so many.
      deadline: f32[], seconds after which nothing counts, as far as is known.
      gain: f32[], of the server's next step.
    """

    seconds: Any
    clients: Any
    deadline: Any
    gain: Any


def adaptive(weight: Number = 0.25, k_min: int = 1, steady: Number = 50) -> Budget:
    """The most actions within a time that the server moves to where it is best.

    A round is as long as its slowest client takes, so whoever would be done sooner loses nothing
    by sending more. The server names a time, the same for everyone, and minimizes over it

        mean error of the clients + weight x log(the longest time that one of them takes).

    Each client takes the k of least error within that time. It is later only if that saves more
    than it costs all the others, whose errors are but one in so many each: it takes the k with the
    least error + clients x weight x log(its time / the time named, at least 1). Beside its payload
    it reports one number, by how much less that would be for each unit of the logarithm of a
    longer time; the server raises the time where this comes to more than `weight` on the mean, and
    lowers it where it comes to less (stochastic gradient descent). Nothing has to be set for a
    network: on fast links, and where downloads or computation rule, a longer time costs little and
    all the actions are sent that lower the error. Where there is a deadline no later time is named,
    and what cannot meet it counts as an error of 1; speeds are those known beforehand, so with
    jitter some are late nevertheless.

    The time follows what came with the payloads that the server took. It is meant for networks that
    stay alike over some hundred rounds, and for servers that wait: in buffered rounds nobody waits
    for the slowest, and the time is one at which they would be least bad if somebody did.

    In later rounds the weight falls with the root of the round, as step sizes do: errors of early
    rounds are made good by later ones, and those of the last are left in the table.

    Args:
      weight: relative squared error, mean of the clients, that is as bad as a round e times as
        long.
      k_min: least k.
      steady: rounds in which it is; in round r beyond them it is weight x (steady / r) ^ .5.

    Raises:
      SpecError: a number out of range.

    Source: ours; the paper's rule is not public.
    """
    _positive("adaptive", k_min=k_min, weight=weight, steady=steady)
    near = 0.02  # of the logarithm: how much longer and shorter a time is asked about
    first, least, fade = 1.0, 0.1, 0.9  # gains: of the first step, in the end, and from one to next

    def worth(round_):
        return weight * jnp.minimum(1, (steady / jnp.maximum(round_, 1)) ** 0.5)

    def cost(outlook, told, limit):
        seconds, known = _seconds(outlook), limit > 0
        late = jnp.log(jnp.maximum(seconds, limit) / jnp.where(known, limit, 1))
        error = jnp.where(seconds > told.deadline, 1, outlook.error)  # nothing arrives
        return error + jnp.where(known, told.clients * worth(outlook.round) * late, 0)

    def allocate(outlook, state):
        return _cheapest(cost(outlook, state, state.seconds), k_min)

    def report(outlook, state):
        shorter, longer = (
            _from(cost(outlook, state, state.seconds * math.exp(side)), k_min).min()
            for side in (-near, near)
        )
        return (shorter - longer) / (2 * near)

    def update(state, tally):
        # A step is at most gain x weight, both ways: late clients report much at once.
        usual = worth(tally.round)
        step = state.gain * (jnp.minimum(tally.report, 2 * usual) - usual)
        begun, heard = state.seconds > 0, tally.clients > 0
        seconds = jnp.where(heard, state.seconds * jnp.exp(step), state.seconds)
        seconds = jnp.where(begun, seconds, tally.seconds)
        return Limit(
            seconds=jnp.minimum(seconds, tally.deadline),
            clients=jnp.where(heard, tally.clients, jnp.maximum(state.clients, 1)),
            deadline=jnp.asarray(tally.deadline),
            gain=jnp.where(begun & heard, jnp.maximum(fade * state.gain, least), state.gain),
        )

    def init():
        return Limit(*map(jnp.float32, (0, 0, jnp.inf, first)))

    return Budget(allocate, init=init, update=update, report=report, needs_error=True)


def at_no_cost(outlook: Outlook, k: Array) -> Array:
    """The largest number of actions whose payload is no larger than that of the k granted.

    An action for every row does without labels, so it may take fewer bits than fewer actions: who
    can have its rows as they are for as much or less, sends them, whatever the policy; nothing is
    clustered for that, so it takes no time either. Sizes of entropy-coded labels are those told
    beforehand.

    Args:
      outlook: of a client. k: i32[], what its policy grants, of what the codec holds at most.
    """
    k = jnp.clip(k, 0, outlook.bits.shape[0] - 1)
    return _largest(outlook.bits <= outlook.bits[k], 0)


def _seconds(outlook: Outlook) -> Array:
    """Time of the client's round with every number of actions, f32[K + 1]."""
    return outlook.seconds + outlook.encode_s + outlook.bits / outlook.pace.up


def _largest(fits: Array, k_min: int) -> Array:
    """The largest k that fits, at least k_min."""
    k = jnp.arange(fits.shape[0])
    return jnp.maximum(jnp.max(jnp.where(fits, k, 0)), k_min).astype(jnp.int32)


def _cheapest(cost: Array, k_min: int) -> Array:
    """The k of least cost, the smallest of several, at least k_min."""
    return jnp.argmin(_from(cost, k_min)).astype(jnp.int32)


def _from(cost: Array, k_min: int) -> Array:
    """Costs, infinite below k_min, or below all that the codec holds where that is less."""
    return jnp.where(jnp.arange(cost.shape[0]) < min(k_min, cost.shape[0] - 1), jnp.inf, cost)


def _positive(policy: str, **values: Number) -> None:
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer):  # a sweep's: whoever names its values checks them
            continue
        if not 0 < value < math.inf or (name.startswith("k") and value != int(value)):
            kind = "an integer of at least 1" if name.startswith("k") else "positive and finite"
            raise SpecError(f"{policy}: {name} must be {kind}, not {value}")
