"""Rounds of federated training, run in several ways: whole rounds, and loops over clients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.harness import Work
from fedras_jax import client, cohort, examples, factored, rng, shards
from fedras_jax.assembly import assemble
from fedras_jax.data import Split
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec


def mesh() -> Mesh | None:
    """All devices; None for a single one."""
    return cohort.client_mesh() if jax.device_count() > 1 else None


def lengths(spec: Spec, split: Split) -> np.ndarray:
    """Examples of every client, [U]."""
    return examples.count(np.diff(split.offsets), split.n_items, spec.negatives)


def slots(lengths: np.ndarray, widths: tuple[int, ...], chunk: int, n_devices: int) -> int:
    """Slots in which a cohort's examples are computed on all devices.

    Args:
      lengths: integer [C], examples of the cohort's clients.
      widths: static, ascending. chunk: clients at once, at the narrowest. n_devices: sharing them.
    """
    share = -(-len(lengths) // n_devices)
    longest_first = np.sort(lengths)[::-1]
    dealt = np.pad(longest_first, (0, share * n_devices - len(lengths))).reshape(share, n_devices)
    dealt[1::2] = dealt[1::2, ::-1]
    total = 0
    for device in range(n_devices):
        own, done = dealt[:, device], 0
        sizes = cohort.chunk_sizes(widths, min(chunk, share))
        narrower = (0, *widths[:-1])
        for width, size, below in reversed(list(zip(widths, sizes, narrower, strict=True))):
            trips = -(-max(int((own > below).sum()) - done, 0) // size)
            total += trips * size * width
            done += trips * size
    return total


def whole_rounds(spec: Spec, split: Split, rounds: int, **how: Any) -> Callable[[], Any]:
    """A function that runs so many rounds from the first state, the same ones at every call.

    It returns the last state and the rounds' diagnostics. `how` is that of `assemble`.
    """
    _, algorithm, data = assemble(spec, split, **how)
    advance = jax.jit(lambda s, d: simulate(algorithm, s, d, rounds))
    state = jax.jit(algorithm.init)()
    return lambda: jax.block_until_ready(advance(state, data))


def going_on(spec: Spec, split: Split, rounds: int, mesh: Mesh | None = None) -> Callable[[], Any]:
    """A function that runs the next so many rounds at every call, as a run does: the state of the
    call before is given away. For policies that keep payloads from round to round.
    """
    _, algorithm, data = assemble(spec, split, mesh=mesh)
    advance = jax.jit(lambda s, d: simulate(algorithm, s, d, rounds), donate_argnums=0)
    init = jax.jit(algorithm.init)
    if mesh is not None:
        # Where rounds leave it: else the second call would compile again.
        there = shards.of_state(jax.eval_shape(algorithm.init), mesh, spread=False)
        init = jax.jit(algorithm.init, out_shardings=there)
    held = [init()]

    def turn() -> Any:
        state, info = jax.block_until_ready(advance(held.pop(), data))
        held.append(state)
        return info

    return turn


def client_loop(spec: Spec, split: Split, members: np.ndarray) -> Callable[[], Any]:
    """One jitted client at a time: draw, train, scatter; the same functions as a round's."""
    model, algorithm, data = assemble(spec, split)
    training = factored.factored(model, spec.client_lr, spec.weight_decay, epochs=spec.local_epochs)
    n_examples = lengths(spec, split)
    widths = cohort.plan_widths(n_examples)
    state = jax.jit(algorithm.init)()

    @functools.partial(jax.jit, static_argnames="width", donate_argnums=0)
    def one(change, who, width):
        key = rng.address(0, rng.Stream.NEGATIVES, who)
        batch = examples.draw(
            examples.orders(key, key),
            data,
            who,
            jnp.bool_(True),
            n_items=split.n_items,
            negatives=spec.negatives,
            width=width,
        )
        rows = state.items[batch.item]
        result = training(state.clients[who], (), rows, batch.label, batch.mask)
        return change.at[batch.item].add(result.rows, mode="drop")

    def turn():
        change = jnp.zeros_like(state.items)
        for who in members:
            width = next(w for w in widths if w >= n_examples[who])
            change = one(change, jnp.int32(who), width=width)
        jax.block_until_ready(change)

    return turn


def minibatch_loop(spec: Spec, split: Split, members: np.ndarray) -> Callable[[], Any]:
    """One jitted minibatch of one client at a time; negatives are drawn in numpy."""
    model, algorithm, _ = assemble(spec, split)
    state = jax.jit(algorithm.init)()
    training = client.autodiff(model, client.sgd(spec.client_lr, spec.weight_decay), epochs=1)
    size = spec.batch_size

    @jax.jit
    def step(private, rows, label, mask):
        result = training(private, (), rows, label, mask)
        return result.private, rows + result.rows

    table = np.asarray(state.items)
    vectors = np.asarray(state.clients)
    draws = np.random.default_rng(0)

    def turn():
        total = np.zeros_like(table)
        for who in members:
            seen = split.items[split.offsets[who] : split.offsets[who + 1]]
            unseen = np.setdiff1d(np.arange(split.n_items), seen)
            n = min(spec.negatives * len(seen), len(unseen))
            item = np.concatenate([seen, draws.choice(unseen, n, replace=False)])
            label = (np.arange(len(item)) < len(seen)).astype(np.float32)
            order = draws.permutation(len(item))
            fill = np.arange(-(-len(item) // size) * size)
            order = np.where(fill < len(item), order[fill % len(item)], 0)
            mask = fill < len(item)
            cuts = range(0, len(order), size)
            rows = [table[item[order[at : at + size]]] for at in cuts]
            private = vectors[who]
            for _ in range(spec.local_epochs):
                for i, at in enumerate(cuts):
                    block = slice(at, at + size)
                    private, rows[i] = step(private, rows[i], label[order[block]], mask[block])
            trained = np.concatenate([np.asarray(r) for r in rows])[mask]
            total[item[order[mask]]] += trained - table[item[order[mask]]]

    return turn


def work(spec: Spec, split: Split, n_examples: float, rounds: int) -> Work:
    """The least that rounds of training take, whatever the codec; what a codec does comes on top.

    Args:
      spec, split: the experiment and its data.
      n_examples: of all clients in all rounds.
      rounds: how many.
    """
    entries, table = n_examples * spec.dim, split.n_items * spec.dim
    return Work(
        "flops: 6 an entry of every example's row and epoch (score, gradient, step); bytes: 12 an "
        "entry of every example's row (read it; read and write its sum), 12 an entry of the table "
        "a round; over a working set of the table and its sum",
        flops=6.0 * spec.local_epochs * entries,
        bytes=12.0 * (entries + rounds * table),
        working_set=8.0 * table,
    )
