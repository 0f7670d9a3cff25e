"""How many payloads a second are encoded and decoded, on device and as bytes.

    python -m benchmarks.codecs

Every registered codec with its default settings, on deltas as training makes them: 830 touched
rows out of 3,706, D=64, nearly all of it in eight directions. Device figures are whole cohorts in
one jitted call (prepare, encode, decode, with the exact count of bits); wire figures are one core
in NumPy. Also how much of each delta is lost, and the bytes. The baseline is a loop that
dispatches the same jitted functions for one client at a time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import contestants, harness, machine
from fedras_jax import bits, cohort, registry, wire
from fedras_jax.types import Context, ItemDelta, Sizes

CLIENTS = flags.DEFINE_integer("clients", 256, "Clients in a call.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns; medians are reported.")
CODECS = flags.DEFINE_list("codecs", None, "Codecs; default: all.")
ALONE = flags.DEFINE_list("alone", ["directional", "actions"], "Codecs run by the client, too.")
KEEP = flags.DEFINE_bool("keep_pages", True, "Keep freed memory: `fedras_jax.heap`.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

SIZES = Sizes(items=3706, dim=64)
ROWS, SLOTS, RANK = 830, 832, 8


def deltas(n_clients: int) -> ItemDelta:
    """Rows that nearly lie in a few directions, each a third as strong as the one before."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(n_clients, RANK, SIZES.dim))
    coefs = random.normal(size=(n_clients, SLOTS, RANK)) * 3.0 ** -np.arange(RANK)
    mask = np.broadcast_to(np.arange(SLOTS) < ROWS, (n_clients, SLOTS))
    row = 0.01 * np.einsum("cnr,crd->cnd", coefs, vectors) * mask[..., None]
    item = np.stack([random.permutation(SIZES.items)[:SLOTS] for _ in range(n_clients)])
    return ItemDelta(
        jnp.asarray(np.where(mask, item, SIZES.items), jnp.int32),
        jnp.asarray(row, jnp.float32),
        jnp.asarray(mask),
    )


def one_at_a_time(both: Callable[[Any], Any], inputs: Any) -> Callable[[], Any]:
    """A loop over clients, a call of a jitted function each."""
    run = jax.jit(both)
    clients = [jax.tree.map(lambda x, i=i: x[i], inputs) for i in range(CLIENTS.value)]
    return lambda: jax.block_until_ready([run(one) for one in clients])


def work() -> harness.Work:
    """The least that a directional codec takes for all clients."""
    n, d = CLIENTS.value * ROWS, SIZES.dim
    return harness.Work(
        "directional; flops: 11 an entry of the delta (two power steps, coordinates, decoding); "
        "bytes: 8 an entry (read the delta, write the decoded one), over a working set of one "
        "client's two; levels and labels are left out",
        flops=11.0 * n * d,
        bytes=8.0 * n * d,
        working_set=8.0 * ROWS * d,
    )


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores(keep_pages=KEEP.value)
    mesh = contestants.mesh()
    some = deltas(CLIENTS.value)
    keys = jax.random.split(jax.random.key(0), CLIENTS.value)
    calls: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    on_wire, facts = {}, {}
    for name in CODECS.value or sorted(registry.CODECS):
        codec = registry.build("codec", registry.CODECS, name)

        def both(inputs, codec=codec):
            delta, key = inputs
            ctx = Context(SIZES, jax.random.key(1))
            prepared = codec.prepare(ctx, key, delta)
            k = jnp.int32(codec.max_actions)
            payload, _ = codec.encode(ctx, key, delta, prepared, k, codec.init(SIZES))
            decoded = codec.decode(ctx, payload)
            return payload, decoded.item, decoded.row

        run = jax.jit(lambda x, both=both: cohort.map_clients(both, x, mesh=mesh))
        payloads, item, row = jax.block_until_ready(run((some, keys)))
        calls[name] = lambda run=run: jax.block_until_ready(run((some, keys)))
        table = np.zeros((SIZES.items + 1, SIZES.dim))
        table[np.asarray(some.item[0])] = some.row[0]
        total = np.sum(table**2)
        table[np.asarray(item[0])] -= np.asarray(row[0])
        first = jax.tree.map(lambda x: np.asarray(x[0]), payloads)
        size = float(bits.payload_bits(codec.fields(SIZES), first.counts)) / 8
        if name in ALONE.value:
            alone[name] = one_at_a_time(both, (some, keys))
        facts[name] = f"{size:>9,.0f} B  {np.sum(table[:-1] ** 2) / total:.2%} lost"
        on_wire[name] = lambda codec=codec, first=first: wire.unpack(
            codec, SIZES, wire.pack(codec, SIZES, first)
        )
    loops = {f"{name}, client loop": loop for name, loop in alone.items()}
    seconds = harness.race(calls | loops, TURNS.value)
    written = harness.race(on_wire, TURNS.value)
    figures: dict[str, float | str] = {}
    for name in calls:
        device, wired = CLIENTS.value / seconds[name], 1 / written[name]
        figures[name] = f"{device:>9,.0f} clients/s  {wired:>7,.0f} wire/s  {facts[name]}"
    for name in alone:
        figures[f"{name} over a client loop"] = seconds[f"{name}, client loop"] / seconds[name]
    own = seconds.get("directional")
    bar = harness.bar(
        "encode and decode, directional, K=16, clients/s",
        own and CLIENTS.value / own,
        ">=",
        5_000,
        machine.cpu_cores(2),
        harness.Need("256 clients", CLIENTS.value == 256),
    )
    harness.report(
        f"codecs, {ROWS} rows of {SIZES.items}, D={SIZES.dim}",
        figures,
        JSON.value,
        bars=[bar],
        rooflines=[harness.roofline("directional", own, work())] if own else [],
    )


if __name__ == "__main__":
    app.run(main)
