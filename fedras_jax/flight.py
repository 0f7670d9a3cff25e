"""Payloads on their way: what an arrival policy that must see several of them needs.

What is known of a payload (whose, how long it takes, its weight) is the same on every device; what
it holds lies where it was made, is written there once, and is read from there when it counts. It
may be several hundred kilobytes, so nothing else ever touches it.

A slot has the widest form that a payload can have. A client writes its own width of it, and is read
at that width again, or at a wider one with its own padding: so no time goes into what was not sent.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedras_jax import network
from fedras_jax.cohort import AXIS
from fedras_jax.errors import SpecError
from fedras_jax.types import Array, InFlight, PyTree

# Leaves of a payload for each static width of a client.
Shapes = Mapping[int, Mapping[str, jax.ShapeDtypeStruct]]

# Payloads, on a mesh: each device has its own.
OWN = PartitionSpec(AXIS)

# Slots that are copied one by one, as XLA:CPU does ten to forty times as fast as it gathers or
# scatters them; more, unless someone asks for them, are what accelerators run at once, which do
# that well.
FEW = 16


def empty(
    capacity: int, shapes: Shapes, shared: PyTree, gib: float, n_devices: int = 1
) -> InFlight:
    """No payload in `capacity` slots.

    Args:
      capacity: slots P.
      shapes: of the payloads' leaves, by width.
      shared: the model's shared parameters.
      gib: memory that the slots may take on a device; a checkpoint holds them once more meanwhile.
      n_devices: how many devices make payloads; any of them may have made all.

    Raises:
      SpecError: they would take more.
    """
    widest = shapes[max(shapes)]
    leaves = jax.tree.leaves((widest, jax.eval_shape(lambda: shared)))
    size = (capacity + 1) * sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)
    if size > gib * 2**30:
        raise SpecError(
            f"{capacity} payloads in flight take {size / 2**30:.1f} GiB, above flight_gib={gib:g}: "
            "let fewer be on their way, take a smaller codec, or allow more memory"
        )

    def zeros(dtype=jnp.int32, *shape):
        return jnp.zeros((capacity, *shape), dtype)  # a buffer for each, so that all can be donated

    def slots(x):
        return jnp.zeros((n_devices, capacity + 1, *x.shape), x.dtype)

    return InFlight(
        client=zeros(),
        round=zeros(),
        width=zeros(),
        home=zeros(),
        seconds=zeros(jnp.float32),
        phases=zeros(jnp.float32, len(network.PHASES)),
        present=zeros(bool),
        finished=zeros(bool),
        weight=zeros(jnp.float32),
        report=zeros(jnp.float32),
        data=jax.tree.map(slots, widest),
        shared=jax.tree.map(slots, shared),
    )


# ---------------------------------------------------------------- on one device


def put(held: PyTree, sent: tuple[Array, PyTree]) -> PyTree:
    """Write what a chunk of clients sends where it is to wait.

    Args:
      held: a device's slots, leading axes 1 and P + 1.
      sent: rows i32[c], 0 for what nobody wants; and what they get, which may be narrower.
    """
    row, new = sent

    def write(old, x):
        if row.shape[0] > FEW:
            window = tuple(slice(n) for n in x.shape[1:])
            return old.at[(0, row, *window)].set(x)
        for i in range(row.shape[0]):
            start: list[Any] = [0, row[i], *[0] * (x.ndim - 1)]
            old = jax.lax.dynamic_update_slice(old, x[i][None, None], start)
        return old

    return jax.tree.map(write, held, new)


def read_at_once(chunk: int) -> int:
    """How many payloads `take` should read together where so many clients are run together.

    One where few are: then it is read in place, and several would have to be copied beside each
    other first.
    """
    return 1 if chunk <= FEW else chunk


def take(
    held: tuple[PyTree, PyTree], row: Array, made: Array, width: int, shapes: Shapes, n_items: int
) -> tuple[PyTree, PyTree]:
    """Read payloads from where they have waited.

    Args:
      held: a device's `data` and `shared`, leading axes 1 and P + 1.
      row: i32[c].
      made: i32[c], the widths that they were made at, none above `width`.
      width: static, the width to read them at. What that is wider is padded: `n_items` where an
        item would be, 0 elsewhere.
      shapes: of the payloads' leaves, by width.
      n_items: M.

    Returns:
      The same with leading axis c.
    """
    narrower = [w for w in sorted(shapes) if w <= width]
    at = jnp.searchsorted(jnp.asarray(narrower), made)

    def read(x, shape):
        if row.shape[0] > 1:
            return x[(0, row, *(slice(n) for n in shape))]
        return jax.lax.dynamic_slice(x, (0, row[0], *[0] * len(shape)), (1, 1, *shape))[0]

    def leaf(name, x):
        to = shapes[width][name].shape
        x = read(x, to)
        fill = jnp.asarray(n_items if name == "item" else 0, x.dtype)
        for axis, n in enumerate(to):
            own = [shapes[w][name].shape[axis] for w in narrower]
            if min(own) < n:
                place = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis + 1)
                end = jnp.asarray(own)[at].reshape(-1, *[1] * len(to))
                x = jnp.where(place < end, x, fill)
        return x

    data, shared = held
    data = {name: leaf(name, x) for name, x in data.items()}
    return data, jax.tree.map(lambda x: read(x, x.shape[2:]), shared)


# ---------------------------------------------------------------- out and in


def berths(present: Array, going: Array) -> Array:
    """A free slot for each payload that is about to be made; there must be as many.

    Args:
      present: bool[P], slots that are taken.
      going: bool[C], who makes one.

    Returns:
      i32[C], P for those who make none.
    """
    n, n_slots = going.shape[0], present.shape[0]
    if n > n_slots:
        raise SpecError(f"a cohort of {n}, but slots for {n_slots} payloads")
    free = jnp.argsort(present, stable=True)[:n]
    # The first free slots are for those that go.
    place = jnp.cumsum(going) - 1
    return jnp.where(going, free[place], n_slots)


def at_leisure(flight: InFlight, n_clients: int) -> Array:
    """Who has no payload on its way, bool[U]."""
    at_work = jnp.where(flight.present, flight.client, n_clients)
    return jnp.ones(n_clients, bool).at[at_work].set(False, mode="drop")


def launch(flight: InFlight, slot: Array, new: InFlight) -> InFlight:
    """All that is in flight, once those of `new` have left, whose `data` and `shared` it holds."""
    before = dataclasses.replace(flight, data=(), shared=())
    of_new = dataclasses.replace(new, data=(), shared=())
    after = jax.tree.map(lambda old, x: old.at[slot].set(x, mode="drop"), before, of_new)
    return dataclasses.replace(after, data=new.data, shared=new.shared)


def land(flight: InFlight, seconds: Array, kept: Array) -> InFlight:
    """What stays in flight after a round of so many seconds: bool[P]."""
    left = jnp.maximum(flight.seconds - seconds, 0)
    return dataclasses.replace(flight, present=kept, seconds=left)


# ---------------------------------------------------------------- on several devices


def pin(flight: InFlight, mesh: Mesh | None) -> InFlight:
    """The same, what payloads hold kept on the devices that have made them."""
    if mesh is None:
        return flight
    here = NamedSharding(mesh, OWN)
    data, shared = jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, here), (flight.data, flight.shared)
    )
    return dataclasses.replace(flight, data=data, shared=shared)


def gather(flight: InFlight, shapes: Shapes, n_items: int) -> InFlight:
    """The same as if one device had made all, and nothing else had been there before them.

    So it holds nothing that depends on how devices have written what nobody wants.

    Args:
      flight: of any number of devices.
      shapes: of the payloads' leaves, by width.
      n_items: M.
    """
    slot = jnp.arange(flight.home.shape[0])
    mine = jax.tree.map(lambda x: x[flight.home, slot + 1][None], (flight.data, flight.shared))
    held = take(mine, slot, flight.width, max(shapes), shapes, n_items)

    def one(x):
        there = flight.present.reshape(-1, *[1] * (x.ndim - 1))
        x = jnp.where(there, x, jnp.zeros((), x.dtype))
        return jnp.pad(x, [(1, 0), *[(0, 0)] * (x.ndim - 1)])[None]

    data, shared = jax.tree.map(one, held)
    return dataclasses.replace(flight, data=data, shared=shared)


def scatter(flight: InFlight, n_devices: int) -> InFlight:
    """What `gather` has returned, as host arrays for so many devices: each has all of it."""

    def one(x):
        return np.broadcast_to(x, (n_devices, *x.shape[1:]))

    data, shared = jax.tree.map(one, (flight.data, flight.shared))
    home: Any = np.asarray(flight.home) % n_devices  # it may have been written by more
    return dataclasses.replace(flight, home=home, data=data, shared=shared)
