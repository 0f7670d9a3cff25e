"""The one place that batches, chunks and shards: a cohort's clients, and the runs of a sweep.

Everything else is written for one client. Here a cohort's clients are sorted by length and run in
chunks; every chunk is `vmap`ped at a width that fits its longest client, out of a few static
widths; and the chunks of one width form a loop whose trip count is traced. Shorter clients fill
up the last chunk of a wider loop. So nothing is dropped, padding is small, memory is bounded, and
one compiled program serves every cohort. Over a mesh the sorted clients are dealt to devices like
cards, so that all have equally long ones.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, UInt32

from fedras_jax import native
from fedras_jax.types import PyTree

AXIS = "clients"

# Clients per chunk at the narrowest width. On CPU a chunk's rows should stay in cache; accelerators
# want many. `benchmarks/round.py --chunk` measures it.
CHUNK = {"cpu": 8, "gpu": 512, "tpu": 512}

# Entries of a chunk's rows where loops go through them client by client: with fewer, what XLA does
# once a chunk counts; with more, they leave the cache between one loop and the next. And no more
# clients than these: the last chunk of a cohort is filled up with slots that nobody has.
NATIVE_ENTRIES, NATIVE_CLIENTS = 2**15, 8

# Examples of all clients together from which on more widths are worth their compilation.
MANY_EXAMPLES = 1_000_000


class Layout(NamedTuple):
    """How a fold lies on a mesh; by default devices read the same, and their sums are added.

    Attributes:
      broadcast: partitions of what clients read, a prefix of that tree.
      zero: partitions of the accumulator at first, a prefix of it.
      acc: the same at the end.
      merge: a device's accumulator -> what it holds of all devices'.
      in_step: all devices run equally many chunks, so that clients and `add` may talk across them.
    """

    broadcast: PyTree = PartitionSpec()
    zero: PyTree = PartitionSpec()
    acc: PyTree = PartitionSpec()
    merge: Callable[[PyTree], PyTree] = lambda acc: jax.lax.psum(acc, AXIS)
    in_step: bool = False


def default_chunk() -> int:
    """Clients per chunk on this platform."""
    return CHUNK.get(jax.default_backend(), 256)


def round_chunk(widths: tuple[int, ...], dim: int) -> int:
    """Clients per chunk of a round on this platform, at the narrowest of these widths."""
    if not native.on():
        return default_chunk()
    return min(max(1, NATIVE_ENTRIES // (widths[0] * dim)), NATIVE_CLIENTS)


def client_mesh(n_devices: int | None = None) -> Mesh:
    """A mesh of devices that share the clients of a cohort: all, or the first n of each process."""
    own = jax.local_device_count()
    if n_devices is not None and not 1 <= n_devices <= own:
        raise ValueError(f"{n_devices} devices asked for, but there are {own}")
    taken: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        taken.setdefault(device.process_index, []).append(device)
    devices = [device for own in taken.values() for device in own[:n_devices]]
    return Mesh(np.array(devices), (AXIS,))


def plan_widths(
    lengths: np.ndarray, n_widths: int | None = None, multiple: int = 64
) -> tuple[int, ...]:
    """At most `n_widths` static widths that pad these lengths least.

    Args:
      lengths: integer [U], examples of each client; clients are taken as equally likely.
      n_widths: each width is compiled once, so this trades compile time for padding. None: 8 where
        little is compiled, as loops do most of it (`native`), or all clients together have
        `MANY_EXAMPLES` or more; else 4.
      multiple: widths are multiples of it.

    Returns:
      Ascending widths; the last holds the longest client.
    """
    if n_widths is None:
        n_widths = 8 if native.on() or np.sum(lengths) >= MANY_EXAMPLES else 4
    steps = np.maximum(-(-np.asarray(lengths, np.int64) // multiple), 1)
    size, count = np.unique(steps, return_counts=True)
    below = np.concatenate([[0], np.cumsum(count)])
    # best[j]: least padded slots of the j shortest sizes; a width `size[j - 1]` closes each group.
    best = np.where(np.arange(len(size) + 1) == 0, 0.0, np.inf)
    cuts = []
    for _ in range(min(n_widths, len(size))):
        cost = best[None, :] + (below[1:, None] - below[None, :]) * size[:, None]
        reach = np.arange(len(size) + 1)[None, :] <= np.arange(len(size))[:, None]
        cost = np.where(reach, cost, np.inf)
        cuts.append(cost.argmin(1))
        best = np.concatenate([[0.0], cost.min(1)])
    widths, end = [], len(size)
    for cut in reversed(cuts):
        if end == 0:
            break
        widths.append(int(size[end - 1]) * multiple)
        end = int(cut[end - 1])
    return tuple(sorted(widths))


def chunk_sizes(widths: tuple[int, ...], chunk: int) -> tuple[int, ...]:
    """Clients per chunk at each width: `chunk` at the narrowest, and no more rows at the others."""
    return tuple(max(1, chunk * widths[0] // width) for width in widths)


def homes(length: Int[Array, " c"], mesh: Mesh | None) -> Int[Array, " c"]:
    """The device of the mesh, i32[C], that `fold_clients` runs each client of a cohort on."""
    n_devices = 1 if mesh is None else mesh.devices.size
    hand = _deal(length, n_devices)
    device = jnp.broadcast_to(jnp.arange(n_devices, dtype=jnp.int32)[:, None], hand.shape)
    return jnp.zeros(length.shape, jnp.int32).at[hand].set(device, mode="drop")


def _deal(
    length: Int[Array, " c"], n_devices: int, home: Int[Array, " c"] | None = None
) -> Int[Array, "n s"]:
    """Which clients each device runs, the longest first; C where a slot is nobody's."""
    n = length.shape[0]
    if home is not None:
        device = jnp.arange(n_devices)[:, None]
        order = jnp.argsort(jnp.where(home == device, -length, 1), axis=1, stable=True)
        return jnp.where(home[order] == device, order, n)
    share = -(-n // n_devices)
    order = jnp.argsort(-length, stable=True)
    order = jnp.pad(order, (0, share * n_devices - n), constant_values=n)
    order = order.reshape(share, n_devices)
    # To and fro: always in the same order, the first device would have the longer one each time.
    odd = jnp.arange(share)[:, None] % 2 == 1
    return jnp.where(odd, order[:, ::-1], order).T


def fold_clients(
    client: Callable[..., tuple[PyTree, PyTree]],
    add: Callable[[PyTree, PyTree], PyTree],
    zero: PyTree,
    broadcast: PyTree,
    inputs: PyTree,
    length: Int[Array, " c"],
    *,
    widths: tuple[int, ...],
    chunk: int,
    mesh: Mesh | None = None,
    layout: Layout | None = None,
    home: Int[Array, " c"] | None = None,
    load: Callable[[int, PyTree, PyTree], PyTree] | None = None,
) -> tuple[PyTree, PyTree]:
    """Run `client` on every client of a cohort, fold what it sends, collect what it keeps.

    Args:
      client: (width, broadcast, inputs of one client) -> (sent, kept), for a static width.
      add: (acc, sent with a leading axis of clients) -> acc.
      zero: the empty accumulator; accumulators of disjoint clients add up leaf by leaf.
      broadcast: what every client reads.
      inputs: pytree with leading axis C.
      length: i32[C], examples of each client. Slots of length 0 may or may not be run, and must
        send nothing when they are.
      widths: static, ascending; the last is at least every length.
      chunk: clients run at once on one device, at the narrowest width; see `chunk_sizes`.
      mesh: devices to share the clients; one device when None.
      layout: what of it is spread over the mesh; by default every device reads all of `broadcast`
        and sums up an accumulator of its own, and these are added.
      home: the device of each client; dealt so that all have equally long ones when None.
      load: (width, broadcast, inputs of a chunk) -> inputs of a chunk as `client` sees them, for
        what is read in one go for all of a chunk.

    Returns:
      The accumulator over all clients, and `kept` with leading axis C in the order of `inputs`
      (unspecified in slots of length 0).
    """
    n = length.shape[0]
    n_devices = 1 if mesh is None else mesh.devices.size
    layout = layout or Layout()
    hand = _deal(length, n_devices, home)
    share = hand.shape[1]
    # A chunk may reach beyond the last client by all but one of its slots. And there are more slots
    # than in any chunk: of what always reads the same ones XLA would make no part of a loop that
    # may run no time, but compute it for every width.
    chunk = min(chunk, share)
    hand = jnp.pad(hand, [(0, 0), (0, max(chunk - 1, 1))], constant_values=n)

    def collect(x):
        return jnp.zeros((n, *x.shape[2:]), x.dtype).at[hand].set(x, mode="drop")

    def on_device(zero, broadcast, inputs, length, hand):
        # Every device picks its own out of all: what is dealt by the compiler it gathers again.
        own = hand[0 if mesh is None else jax.lax.axis_index(AXIS)]
        inputs, length = jax.tree.map(
            lambda x: x.at[own].get(mode="fill", fill_value=0), (inputs, length)
        )
        in_step = mesh is not None and layout.in_step
        acc, kept, shapes = _fold_chunks(
            client, add, load, zero, broadcast, inputs, length, widths, chunk, in_step
        )
        if mesh is None:
            return acc, _unpack(kept[None], shapes)
        words = jnp.zeros((n_devices, *kept.shape), kept.dtype)  # of nothing, if there is nothing
        if kept.size:
            words = jax.lax.all_gather(kept, AXIS)
        return layout.merge(acc), _unpack(words, shapes)

    if mesh is not None:
        same = PartitionSpec()
        on_device = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(layout.zero, layout.broadcast, same, same, same),
            out_specs=(layout.acc, same),
            check_vma=False,  # loop carries start replicated and become per-device
        )
    acc, kept = on_device(zero, broadcast, inputs, length, hand)
    return acc, jax.tree.map(collect, kept)


def _pack(tree: PyTree, slots: int) -> UInt32[Array, "s w"]:
    """All leaves, [slots, ...], as words of one array, those of a kind beside each other.

    It is written once a chunk, and devices wait for each other once, not at every leaf.
    """
    leaves = [x.reshape(slots, -1) for x in jax.tree.leaves(tree)]
    words = [_to_words(jnp.concatenate([leaves[i] for i in kind], 1)) for kind in _kinds(leaves)]
    return jnp.concatenate([jnp.zeros((slots, 0), jnp.uint32), *words], axis=1)


def _unpack(words: UInt32[Array, "*s w"], shapes: PyTree) -> PyTree:
    """`_pack` undone: leaves [*s, ...], whose shapes are given with a leading axis of any size."""
    leaves, tree = jax.tree.flatten(shapes)
    order = [i for kind in _kinds(leaves) for i in kind]
    ends = np.cumsum([0, *(_n_words(leaves[i]) for i in order)])
    found = {
        i: _from_words(words[..., a:b], leaves[i])
        for i, (a, b) in zip(order, itertools.pairwise(ends), strict=True)
    }
    return jax.tree.unflatten(tree, [found[i] for i in range(len(leaves))])


def _kinds(leaves: list) -> list[list[int]]:
    """Which leaves are of a type, for each there is: they become words together."""
    kinds: dict[np.dtype, list[int]] = {}
    for i, x in enumerate(leaves):
        kinds.setdefault(x.dtype, []).append(i)
    return list(kinds.values())


def _n_words(x: jax.ShapeDtypeStruct) -> int:
    """Words that a slot's share of a leaf takes."""
    return math.prod(x.shape[1:]) * max(1, x.dtype.itemsize // 4)


def _to_words(x: Array) -> UInt32[Array, "s w"]:
    """The leading axis stays, and what an entry of it holds becomes words."""
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    size = x.dtype.itemsize
    if size < 4:
        x = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(x.shape[0], -1)


def _from_words(words: UInt32[Array, "*s w"], like: jax.ShapeDtypeStruct) -> Array:
    """`_to_words` undone, for any leading axes."""
    shape, dtype = (*words.shape[:-1], *like.shape[1:]), like.dtype
    if dtype == jnp.bool_:
        return words.reshape(shape) > 0
    if dtype.itemsize < 4:
        words = words.reshape(shape).astype(jnp.dtype(f"uint{8 * dtype.itemsize}"))
        return jax.lax.bitcast_convert_type(words, dtype)
    wide = (2,) if dtype.itemsize == 8 else ()
    return jax.lax.bitcast_convert_type(words.reshape(*shape, *wide), dtype)


def _fold_chunks(client, add, load, zero, broadcast, inputs, length, widths, chunk, in_step):
    """`fold_clients` on one device: leading axes are slots, longest first.

    In step, all devices run as many chunks of a width as the one that needs the most.

    Returns:
      The accumulator, what clients keep as words, and the shapes of that for a chunk.
    """

    def runner(width, size):
        """A chunk's clients at a width: traced once, however often it is called."""

        @jax.jit
        def run(start, inputs, broadcast):
            some = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), inputs)
            if load is not None:
                some = load(width, broadcast, some)
            return jax.vmap(lambda one: client(width, broadcast, one))(some)

        return run

    sizes = chunk_sizes(widths, chunk)
    runs = [runner(width, size) for width, size in zip(widths, sizes, strict=True)]
    n_slots, begin = length.shape[0], jnp.int32(0)
    _, shapes = jax.eval_shape(runs[0], begin, inputs, broadcast)
    n_words = jax.eval_shape(lambda x: _pack(x, sizes[0]), shapes).shape[1]
    kept = jnp.zeros((n_slots, n_words), jnp.uint32)
    carry, done = (zero, kept), begin
    narrower = (0, *widths[:-1])
    for run, size, below in reversed(list(zip(runs, sizes, narrower, strict=True))):

        def body(i, carry, run=run, size=size, first=done):
            acc, kept = carry
            start = first + i * size
            sent, new = run(start, inputs, broadcast)
            words = _pack(new, size)
            return add(acc, sent), jax.lax.dynamic_update_slice_in_dim(kept, words, start, 0)

        reach = jnp.sum(length > below, dtype=jnp.int32)
        if in_step:
            reach = jax.lax.pmax(reach, AXIS)
        trips = (jnp.maximum(reach - done, 0) + size - 1) // size
        carry = jax.lax.fori_loop(0, trips, body, carry)
        done = done + trips * size
    return (*carry, shapes)


def map_runs(
    run: Callable[[PyTree, PyTree], PyTree],
    runs: PyTree,
    broadcast: PyTree,
    *,
    at_once: int | None = None,
    mesh: Mesh | None = None,
) -> PyTree:
    """`run` on every entry of the leading axis: one program for several runs.

    Args:
      run: (inputs of one run, what all runs read) -> what it gives.
      runs: pytree with leading axis G.
      broadcast: what every run reads.
      at_once: runs that are `vmap`ped; None: one after another on CPU, where a run fills a core,
        and all that a device has elsewhere. It bounds memory.
      mesh: devices to share the runs, whose number divides G; one device when None.
    """
    n = jax.tree.leaves(runs)[0].shape[0]
    n_devices = 1 if mesh is None else mesh.devices.size
    share = n // n_devices
    if share * n_devices != n:
        raise ValueError(f"{n} runs cannot be dealt to {n_devices} devices")
    if at_once is None and jax.default_backend() != "cpu":
        at_once = share

    def on_device(runs, broadcast):
        if share == 1:  # no loop, so that what is donated is used in place
            done = run(jax.tree.map(lambda x: x[0], runs), broadcast)
            return jax.tree.map(lambda x: jnp.asarray(x)[None], done)
        return jax.lax.map(lambda one: run(one, broadcast), runs, batch_size=at_once)

    if mesh is None:
        return on_device(runs, broadcast)
    split, whole = PartitionSpec(AXIS), PartitionSpec()
    mapped = jax.shard_map(
        on_device, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False
    )
    return mapped(runs, broadcast)


def map_clients(
    client: Callable[..., PyTree],
    inputs: PyTree,
    *,
    reads: PyTree = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> PyTree:
    """`client` on every entry of the leading axis, `chunk` of them at a time.

    Args:
      client: a function of one client's inputs, and of what all read where there is anything; with
        a mesh it must not close over tracers.
      inputs: pytree with leading axis C.
      reads: what all clients read.
      chunk: clients run at once on a device; `default_chunk()` when None. It bounds memory.
      mesh: devices to share the clients; one device when None.
    """
    n = jax.tree.leaves(inputs)[0].shape[0]
    n_devices = 1 if mesh is None else mesh.devices.size
    share = -(-n // n_devices)

    def on_device(inputs, reads):
        one = client if reads is None else lambda own: client(own, reads)
        return jax.lax.map(one, inputs, batch_size=min(chunk or default_chunk(), share))

    if mesh is None:
        return on_device(inputs, reads)
    # Repeat the first clients so that all devices get equally many; their results are cut off.
    fill = jnp.arange(share * n_devices) % n
    padded = jax.tree.map(lambda x: x[fill], inputs) if fill.size != n else inputs
    split = PartitionSpec(AXIS)
    mapped = jax.shard_map(
        on_device, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split, check_vma=False
    )(padded, reads)
    return jax.tree.map(lambda x: x[:n], mapped)


def map_at_once(client: Callable[..., PyTree], *inputs: PyTree) -> PyTree:
    """`client` on all entries of the leading axis in one go, for what is a few numbers a client.

    Many small operations (deriving keys, say) cost the same for one client as for a whole cohort.
    """
    return jax.vmap(client)(*inputs)
