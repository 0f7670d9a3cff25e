"""Examples drawn a second: positives and distinct negatives, shuffled, for many clients.

    python -m benchmarks.sampling --dataset=ml-1m --data_dir=DATA_DIR

The library's draws on device, padded and chunked as in rounds, beside a loop over clients in NumPy
on one core, as simulators in the usual style have it: `setdiff1d`, `choice` without replacement,
`permutation`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import contestants, harness
from fedras_jax import cohort, examples, rng
from fedras_jax.assembly import histories, split_of
from fedras_jax.data import Split
from fedras_jax.spec import Spec

DATASET = flags.DEFINE_string("dataset", "ml-latest-small-2016", "As in Spec.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
CLIENTS = flags.DEFINE_integer("clients", 512, "Clients in a call; all, where there are fewer.")
LOOP_CLIENTS = flags.DEFINE_integer("loop_clients", 64, "Of them, in the loop.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns each; the median counts.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

# Of one round of the permutation: the partner (3), whether they change places (11), the choice.
PERMUTATION_OPS = 15 * rng.PERMUTATION_ROUNDS
HALVING_OPS = 8


def on_device(spec: Spec, split: Split, who: np.ndarray) -> Callable[[], Any]:
    """All clients in one call; returns a sum of each client's items, so that none is left out."""
    length = contestants.lengths(spec, split)
    widths = cohort.plan_widths(length)
    data = histories(split)

    def one(width, data, client):
        batch = examples.draw(
            examples.orders(
                rng.address(0, rng.Stream.NEGATIVES, 0, client),
                rng.address(0, rng.Stream.SHUFFLE, 0, client),
            ),
            data,
            client,
            jnp.bool_(True),
            n_items=split.n_items,
            negatives=spec.negatives,
            width=width,
        )
        place = jnp.arange(width) + batch.label.astype(jnp.int32)
        return (), jnp.sum(jnp.where(batch.mask, batch.item * place, 0))

    @jax.jit
    def draw(data, clients, lengths):
        return cohort.fold_clients(
            one,
            lambda acc, _: acc,
            (),
            data,
            clients,
            lengths,
            widths=widths,
            chunk=cohort.default_chunk(),
            mesh=contestants.mesh(),
        )[1]

    inputs = (data, jnp.asarray(who, jnp.int32), jnp.asarray(length[who], jnp.int32))
    return lambda: jax.block_until_ready(draw(*inputs))


def in_numpy(spec: Spec, split: Split, who: np.ndarray) -> Callable[[], Any]:
    """One client at a time."""
    draws = np.random.default_rng(0)

    def turn():
        for client in who:
            seen = split.items[split.offsets[client] : split.offsets[client + 1]]
            unseen = np.setdiff1d(np.arange(split.n_items), seen)
            n = min(spec.negatives * len(seen), len(unseen))
            item = np.concatenate([seen, draws.choice(unseen, n, replace=False)])
            item[draws.permutation(len(item))]

    return turn


def work(spec: Spec, split: Split, who: np.ndarray) -> harness.Work:
    """The least that the library's way of drawing takes for these clients."""
    history = np.diff(split.offsets)[who].astype(np.float64)
    n = contestants.lengths(spec, split)[who].astype(np.float64)
    halvings = (n - history) * np.ceil(np.log2(np.maximum(history, 1) + 1))
    ops = PERMUTATION_OPS * (2 * n - history) + HALVING_OPS * halvings
    return harness.Work(
        f"integer operations: {PERMUTATION_OPS} a keyed permutation (one an example, one more a "
        f"negative), {HALVING_OPS} a halving of the search for an unseen item (log2 of the "
        "history's length a negative)",
        integer_ops=float(ops.sum()),
    )


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores(keep_pages=True)
    spec = Spec(dataset=DATASET.value, evaluate_on="test")
    split = split_of(spec, data_dir=DATA_DIR.value)
    who = np.random.default_rng(1).permutation(split.n_clients)[: CLIENTS.value]
    few = who[: LOOP_CLIENTS.value]
    drawn = {"fedras_jax": who, "numpy, client loop": few}
    seconds = harness.race(
        {
            "fedras_jax": on_device(spec, split, who),
            "numpy, client loop": in_numpy(spec, split, few),
        },
        TURNS.value,
    )
    length = contestants.lengths(spec, split)
    speed = {name: length[drawn[name]].sum() / s for name, s in seconds.items()}
    figures: dict[str, Any] = {f"{name}, examples/s": float(s) for name, s in speed.items()}
    figures["fedras_jax over numpy"] = float(speed["fedras_jax"] / speed["numpy, client loop"])
    harness.report(
        f"examples of {len(who)} clients of {split.name}",
        figures,
        JSON.value,
        rooflines=[
            harness.roofline("fedras_jax", seconds["fedras_jax"], work(spec, split, who)),
        ],
    )


if __name__ == "__main__":
    app.run(main)
