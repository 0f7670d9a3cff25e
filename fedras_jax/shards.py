"""Where item tables lie on a mesh: whole on every device, or with their rows spread over all.

Spread is for tables that no device can hold. Of n devices each keeps M / n rows of the server's
table, of the public one, of the optimizer's state and of the sum that is being reduced. The same
devices share the clients, so most of what a client reads lies elsewhere. All devices then run
equally many chunks of clients, and in each chunk

    look up    gather the items that all devices ask for, read those that lie here, and scatter the
               sum over devices back to those who asked;
    add        gather the decoded rows of all devices, and add those that lie here.

So a device never holds more of a table than its own rows and those of n chunks. A looked-up row is
one device's row plus zeros, that is, the row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedras_jax import tables
from fedras_jax.cohort import AXIS, Layout
from fedras_jax.errors import SpecError
from fedras_jax.types import Array, Decoded, FedState, InFlight, PyTree, Sizes

WHOLE = PartitionSpec()
HELD = ("data", "shared")  # of `InFlight`


class Placement(NamedTuple):
    """What a round has to know of it.

    Attributes:
      rows: where an array with a leading axis of items lies.
      sizes: of the rows that a device keeps.
      look_up: (a device's rows, i32[L] items) -> f32[L, D], for one client of a fold.
      gather: (deltas, weights) of a device's chunk, leading axis C -> what it has to add to the
        rows that it keeps.
      layout: (partitions of what clients read, zero of the reduction) -> how `fold_clients` spreads
        them.
      pin: tables, states of the optimizer and so on -> the same, kept where they are to lie.
    """

    rows: PartitionSpec
    sizes: Sizes
    look_up: Callable[[Array, Array], Array]
    gather: Callable[[Decoded, Array], tuple[Decoded, Array]]
    layout: Callable[[PyTree, tuple], Layout]
    pin: Callable[[PyTree], PyTree]


def whole(sizes: Sizes) -> Placement:
    """Every device has the whole table, and adds up what its own clients send."""
    return Placement(
        rows=WHOLE,
        sizes=sizes,
        look_up=tables.look_up,
        gather=lambda delta, weight: (delta, weight),
        layout=lambda reads, zero: Layout(reads),
        pin=lambda tables: tables,
    )


def spread(mesh: Mesh, sizes: Sizes) -> Placement:
    """Every device has M / n consecutive rows.

    Args:
      mesh: n devices.
      sizes: M and D.

    Raises:
      SpecError: n does not divide M.
    """
    n = mesh.devices.size
    if sizes.items % n:
        fit = ", ".join(str(d) for d in range(1, n) if sizes.items % d == 0)
        raise SpecError(
            f"{sizes.items} items cannot be spread evenly over {n} devices; over {fit} they can"
        )
    n_rows = sizes.items // n
    rows = PartitionSpec(AXIS)

    def here(item):
        """Place among the rows of this device; beyond them for all that it does not keep."""
        place = item - jax.lax.axis_index(AXIS) * n_rows
        return jnp.where((place >= 0) & (place < n_rows), place, n_rows)

    def look_up(table, item):
        asked = jax.lax.all_gather(item, AXIS)
        found = table.at[here(asked)].get(mode="fill", fill_value=0)
        return jax.lax.psum_scatter(found, AXIS, scatter_dimension=0)

    def gather(delta, weight):
        delta, weight = jax.lax.all_gather((delta, weight), AXIS, tiled=True)
        return delta.replace(item=here(delta.item)), weight

    def layout(reads, zero):
        if not zero:
            return Layout(reads, in_step=True)
        # A device's sum over all clients, of its own rows; what is no row is the same everywhere.
        of_items = jax.tree.map(lambda x: _part(x, n_rows, rows), zero[0])
        others = (WHOLE,) * (len(zero) - 1)
        return Layout(
            reads,
            acc=(of_items, *others),
            merge=lambda acc: (acc[0], *jax.lax.psum(acc[1:], AXIS)),
            in_step=True,
        )

    def pin(tables):
        sharding = NamedSharding(mesh, rows)

        def one(x):
            of_items = _of_items(x, sizes.items)
            return jax.lax.with_sharding_constraint(x, sharding) if of_items else x

        return jax.tree.map(one, tables)

    return Placement(rows, Sizes(n_rows, sizes.dim), look_up, gather, layout, pin)


def _part(x: Array, n_rows: int, rows: PartitionSpec) -> PartitionSpec:
    """Where a leaf of a reducer's accumulator lies.

    Raises:
      SpecError: it is neither of items nor a single number.
    """
    if x.ndim and x.shape[0] != n_rows:
        raise SpecError(
            f"the reducer adds up an array of shape {x.shape}: with spread tables it must have a "
            "leading axis of items, or be a single number"
        )
    return rows if x.ndim else WHOLE


def _of_items(x: Any, n_items: int, lead: int = 0) -> bool:
    return x.ndim > lead and x.shape[lead] == n_items


def of_state(state: FedState, mesh: Mesh, *, spread: bool, lead: int = 0) -> FedState:
    """Where the leaves of a state lie.

    Args:
      state: arrays or their shapes.
      mesh: the devices.
      spread: whether tables are; everything is whole on every device if not.
      lead: axes before those of a single state.

    Returns:
      A sharding for each leaf.
    """
    whole = NamedSharding(mesh, WHOLE)
    rows = NamedSharding(mesh, PartitionSpec(*[None] * lead, AXIS))
    n_items = state.items.shape[lead]

    def place(x):
        return rows if spread and _of_items(x, n_items, lead) else whole

    names = ("items", "public", "velocity", "server")
    tables = {name: jax.tree.map(place, getattr(state, name)) for name in names}
    there = dataclasses.replace(jax.tree.map(lambda x: whole, state), **tables)
    if not isinstance(state.flight, InFlight):
        return there
    # What payloads in flight hold lies where it was made, unless it has been gathered.
    n_devices = mesh.devices.size
    held = {
        name: jax.tree.map(
            lambda x: rows if x.shape[lead] == n_devices else whole, getattr(state.flight, name)
        )
        for name in HELD
    }
    return dataclasses.replace(there, flight=dataclasses.replace(there.flight, **held))
