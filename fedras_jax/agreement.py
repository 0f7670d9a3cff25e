"""Whether the parts of `rounds.federated` fit together: asked before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedras_jax import bits, profiles, traces
from fedras_jax.errors import SpecError
from fedras_jax.types import (
    Arrival,
    Budget,
    Codec,
    Context,
    ItemDelta,
    Payload,
    Profile,
    Sizes,
    Trace,
)


def parts(**given: tuple[Any, type]) -> None:
    """Arguments by their names are what they should be: not the functions that make them, say.

    Raises:
      SpecError: one is not.
    """
    for name, (part, kind) in given.items():
        if part is not None and not isinstance(part, kind):
            call = ": call it" if callable(part) else ""
            raise SpecError(f"{name}: expected a {kind.__name__}, not {part!r}{call}")


def declaration(codec: Codec, sizes: Sizes) -> None:
    """A codec's fields are of kinds that can be counted and written.

    Raises:
      SpecError: one is not.
    """
    for field in codec.fields(sizes):
        if field.dtype not in bits.KINDS:
            raise SpecError(
                f"codec {codec.name}: {field.name} is declared as {field.dtype!r}, expected one of "
                f"{', '.join(bits.KINDS)}"
            )


def counted(codec: Codec, sizes: Sizes, payload: Payload) -> None:
    """A payload has a count for each field that its codec declares.

    Raises:
      SpecError: it has others, so that its size is not known.
    """
    n = len(codec.fields(sizes))
    if payload.counts.shape != (n,):
        raise SpecError(
            f"codec {codec.name}: {n} fields, but counts of shape {payload.counts.shape}: make "
            "payloads with bits.measure"
        )


def actions(budget: Budget, codec: Codec) -> None:
    """A budget grants what the codec can send.

    Raises:
      SpecError: more, or nothing at all.
    """
    if (budget.max_actions or 0) > codec.max_actions > 0:
        raise SpecError(
            f"the budget grants up to {budget.max_actions} actions, but codec {codec.name} holds "
            f"at most {codec.max_actions}: build it with k={budget.max_actions}"
        )
    if codec.max_actions and budget.max_actions is not None and budget.max_actions < 1:
        raise SpecError(f"the budget grants no action, but codec {codec.name} sends at least one")


def profile(found: Profile | Trace, n_clients: int) -> Profile | Trace:
    """A profile whose values are in range; of traced ones only the shapes can be checked."""
    if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(found)):
        checks: Any = traces if isinstance(found, Trace) else profiles
        return checks.check(found, n_clients)
    if isinstance(found, Trace):
        if jnp.shape(found.offset) != (n_clients + 1,):
            raise SpecError(f"trace: expected stretches of {n_clients} clients")
    elif any(jnp.shape(x) != (n_clients,) for x in jax.tree.leaves(found)):
        raise SpecError(f"profile: expected one entry for each of {n_clients} clients")
    return found


def policies(
    budget: Budget,
    arrival: Arrival,
    capacity: int,
    clients: Profile | Trace,
    n_examples: np.ndarray,
    codec: Codec,
    sizes: Sizes,
) -> None:
    """Whether the policies fit to the cohort, to the clients and to the codec.

    Raises:
      SpecError: they do not.
    """
    n_clients = len(n_examples)
    known = _known(clients)
    if isinstance(clients, Trace):
        clients = traces.best(clients) if known else clients.stretch
    if budget.n_clients not in (0, n_clients):
        raise SpecError(f"the budget knows {budget.n_clients} clients, but there are {n_clients}")
    if budget.needs_error and not _tells_errors(codec, sizes):
        raise SpecError("the budget looks at errors, which this codec cannot tell beforehand")
    if arrival.wanted > capacity:
        raise SpecError(
            f"over_commit waits for {arrival.wanted} of a cohort of {capacity}: draw more clients "
            "than are wanted"
        )
    if 0 < arrival.in_flight < capacity:
        raise SpecError(
            f"buffered: a cohort of {capacity} clients is more than the {arrival.in_flight} in "
            "flight: let at least as many be at work at once"
        )
    if arrival.alone and (arrival.in_flight or arrival.weigh):
        raise SpecError("an arrival policy of single clients has nothing in flight or stale")
    trained = n_examples > 0
    if arrival.in_flight > trained.sum():
        raise SpecError(
            f"{arrival.in_flight} clients in flight, but there are only {trained.sum()} with "
            "something to train on"
        )
    fewest = int(n_examples[trained].min(initial=sizes.items))
    needed = bits.least(codec.fields(sizes), sizes, fewest, codec.max_actions)
    if codec.max_actions and budget.most_bits is not None and known:
        before = clients.latency + n_examples / clients.compute
        most = budget.most_bits(clients.up, before)
        # A budget that is swept over is a tracer.
        best = np.max(np.where(trained, most, 0)) if _known(most) else np.inf
        if trained.any() and best < needed:
            raise SpecError(
                f"the budget lets no client send a single action: codec {codec.name} needs "
                f"{-(-needed // 8)} bytes for one with its header, but at most {best / 8:.4g} are "
                "granted: grant more seconds or bytes, or choose a codec with smaller actions"
            )
    if arrival.deadline is not None and known and _known(arrival.deadline):
        # One epoch, the smallest payload, and no download, as there is not one in every round;
        # with jitter as lucky as four standard deviations. Who may choose rows may choose none.
        needed = bits.HEADER_BITS if codec.support == "subset" else needed
        least = clients.latency + n_examples / clients.compute + needed / clients.up
        best = np.min(np.where(trained, least * np.exp(-4 * clients.jitter), np.inf))
        if best > arrival.deadline:
            raise SpecError(
                f"a deadline of {arrival.deadline:g} s, but the fastest client needs more than "
                f"{best:.3g} s to train and to send {-(-needed // 8)} bytes: nobody would arrive"
            )


def _tells_errors(codec: Codec, sizes: Sizes) -> bool:
    """Whether a codec knows its errors beforehand."""

    def prepared():
        ctx = Context(sizes, jax.random.key(0))
        rows = jnp.zeros((64, sizes.dim))
        delta = ItemDelta(jnp.zeros(64, jnp.int32), rows, jnp.ones(64, bool))
        return codec.prepare(ctx, ctx.key, delta).error

    return jax.eval_shape(prepared) is not None


def _known(values: Any) -> bool:
    """Whether all numbers are known before anything is compiled."""
    return all(
        isinstance(x, np.ndarray | np.generic | float | int) for x in jax.tree.leaves(values)
    )


def histories(lengths: np.ndarray, n_clients: int, n_items: int) -> np.ndarray:
    """Lengths as an array, one for each client and none above the number of items."""
    lengths = np.asarray(lengths)
    if lengths.shape != (n_clients,):
        raise SpecError(f"history_lengths: expected one for each of {n_clients} clients")
    if n_clients < 1 or n_items < 1 or lengths.min() < 0 or lengths.max() > n_items:
        raise SpecError("history_lengths: each must lie between 0 and the number of items")
    return lengths
