"""Whole dense rounds as plain loops, compiled by numba: near the limit of what a CPU can do.

Loops over clients, epochs, minibatches and rows, one thread a core over clients, each with its own
sum; then the server's mean of those that touched an item. Examples are those of the library's
rounds, drawn beforehand by the library's own functions, so drawing costs these loops nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import contestants, machine
from fedras_jax import cohort, examples, registry, rng
from fedras_jax.assembly import assemble, histories, local_training
from fedras_jax.data import Split
from fedras_jax.spec import Spec

TOLERANCE = 1e-4


class Drawn(NamedTuple):
    """The examples of several rounds, client after client, in each round the longest first.

    Attributes:
      client: i32[R C], who. offset: i64[R C + 1], where its examples begin.
      item: i32[n], label: f32[n], the examples in the order of their minibatches.
      per_round: clients a round C.
    """

    client: np.ndarray
    offset: np.ndarray
    item: np.ndarray
    label: np.ndarray
    per_round: int


def draw(spec: Spec, split: Split, rounds: int) -> Drawn:
    """The cohorts and examples of the first rounds of a run, as its program draws them."""
    n = spec.cohort_size or split.n_clients
    sampler = registry.build(
        "sampler", registry.SAMPLERS, spec.sampler, split.n_clients, size=spec.cohort_size
    )
    length = contestants.lengths(spec, split)
    width = cohort.plan_widths(length)[-1]
    data = histories(split)

    def batch(address):
        round_, who = address
        return examples.draw(
            examples.orders(
                rng.address(spec.seed, rng.Stream.NEGATIVES, round_, who),
                rng.address(spec.seed, rng.Stream.SHUFFLE, round_, who),
            ),
            data,
            who,
            jnp.bool_(True),
            n_items=split.n_items,
            negatives=spec.negatives,
            width=width,
        )

    @jax.jit
    def one_round(round_):
        who = sampler.sample(rng.address(spec.seed, rng.Stream.COHORT, round_), None).client
        return cohort.map_clients(batch, (jnp.full_like(who, round_), who))

    clients, items, labels = [], [], []
    for round_ in range(rounds):
        found = jax.device_get(one_round(jnp.int32(round_)))
        order = np.argsort(-length[found.client], kind="stable")
        mask = found.mask[order]
        clients.append(found.client[order])
        items.append(found.item[order][mask])
        labels.append(found.label[order][mask])
    client = np.concatenate(clients)
    offset = np.concatenate([[0], np.cumsum(length[client])])
    return Drawn(client, offset, np.concatenate(items), np.concatenate(labels), n)


class Loops(NamedTuple):
    """Compiled loops.

    Attributes:
      train: (client's vector f32[D], rows f32[n, D], labels f32[n]); changes both in place.
      rounds: (table f32[M, D], vectors f32[U, D], and a `Drawn`'s arrays); changes both in place.
    """

    train: Callable[..., None]
    rounds: Callable[..., None]


def loops(spec: Spec, n_threads: int) -> Loops:
    """The loops of an experiment: matrix factorisation by SGD, dense payloads, touched means.

    Raises:
      SpecError: numba is not installed.
    """
    numba = machine.optional("numba")
    numba.config.THREADING_LAYER = "workqueue"  # whose threads sleep while others are timed
    numba.set_num_threads(n_threads)
    prange, float32 = numba.prange, np.float32
    dim, size, epochs = spec.dim, spec.batch_size, spec.local_epochs
    lr, decay, one = float32(spec.client_lr), float32(spec.weight_decay), float32(1)

    @numba.njit(fastmath=True)
    def train(private, rows, label):
        n = rows.shape[0]
        grad = np.empty(dim, np.float32)
        for _ in range(epochs):
            for first in range(0, n, size):
                last = min(first + size, n)
                grad[:] = 0
                for i in range(first, last):
                    score = float32(0)
                    for d in range(dim):
                        score += rows[i, d] * private[d]
                    gap = one / (one + np.exp(-score)) - label[i]
                    for d in range(dim):
                        row = rows[i, d]
                        grad[d] += gap * row
                        rows[i, d] = row - lr * (gap * private[d] + decay * row)
                share = one / float32(last - first)
                for d in range(dim):
                    private[d] -= lr * (grad[d] * share + decay * private[d])

    @numba.njit(parallel=True, fastmath=True)
    def rounds(table, vectors, client, offset, item, label, per_round, longest):
        n_items = table.shape[0]
        total = np.zeros((n_threads, n_items, dim), np.float32)
        touched = np.zeros((n_threads, n_items), np.float32)
        for r in range(client.shape[0] // per_round):
            for t in prange(n_threads):
                rows = np.empty((longest, dim), np.float32)
                for c in range(r * per_round + t, (r + 1) * per_round, n_threads):
                    own, first = vectors[client[c]], offset[c]
                    n = offset[c + 1] - first
                    for i in range(n):
                        before = table[item[first + i]]
                        for d in range(dim):
                            rows[i, d] = before[d]
                    train(own, rows[:n], label[first : first + n])
                    for i in range(n):
                        m = item[first + i]
                        before, change = table[m], total[t, m]
                        for d in range(dim):
                            change[d] += rows[i, d] - before[d]
                        touched[t, m] += one
            for t in prange(n_threads):
                for m in range(t * n_items // n_threads, (t + 1) * n_items // n_threads):
                    count = float32(0)
                    for u in range(n_threads):
                        count += touched[u, m]
                        touched[u, m] = 0
                    if count > 0:
                        share = one / count
                        for u in range(n_threads):
                            for d in range(dim):
                                table[m, d] += total[u, m, d] * share
                                total[u, m, d] = 0

    return Loops(train, rounds)


def rounds_loop(
    spec: Spec, split: Split, drawn: Drawn, compiled: Loops
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """A function that runs the drawn rounds from the first state.

    It returns the table and the clients' vectors after them.
    """
    _, algorithm, _ = assemble(spec, split)
    state = jax.device_get(jax.jit(algorithm.init)())
    longest = int(np.diff(drawn.offset).max())

    def turn():
        table, vectors = state.items.copy(), state.clients.copy()
        compiled.rounds(
            table,
            vectors,
            drawn.client,
            drawn.offset,
            drawn.item,
            drawn.label,
            drawn.per_round,
            longest,
        )
        return table, vectors

    return turn


def gap(spec: Spec, split: Split, drawn: Drawn, compiled: Loops) -> float:
    """Largest difference between the loops' and the library's clients in the first round.

    Of all entries of the deltas and of the clients' own vectors after training.

    Raises:
      RuntimeError: it is above `TOLERANCE`: the two would not be doing the same work.
    """
    model, algorithm, _ = assemble(spec, split)
    state: Any = jax.device_get(jax.jit(algorithm.init)())
    training = jax.jit(local_training(spec, model))
    length = np.diff(drawn.offset[: drawn.per_round + 1])
    width = int(length.max())
    worst = 0.0
    for c, n in enumerate(length):
        at = slice(drawn.offset[c], drawn.offset[c + 1])
        item, label = drawn.item[at], drawn.label[at]
        before = state.items[item]
        rows, private = before.copy(), state.clients[drawn.client[c]].copy()
        padded = np.zeros((width, spec.dim), np.float32)
        padded[:n] = before
        theirs = jax.device_get(  # before `private` changes: JAX may read it in place
            training(private, (), padded, np.pad(label, (0, width - n)), np.arange(width) < n)
        )
        compiled.train(private, rows, label)
        worst = max(
            worst,
            float(np.abs(rows - before - theirs.rows[:n]).max(initial=0)),
            float(np.abs(private - theirs.private).max()),
        )
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"compiled loops differ from the library's clients by {worst:.2g}, above {TOLERANCE:g}"
        )
    return worst
