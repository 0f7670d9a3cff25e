"""Item tables spread over devices beside whole ones: bytes on a device, and clients a second.

    python -m benchmarks.spread

Bytes are what XLA plans for one device's round of a large table, whose state is donated: its
arguments, what it returns elsewhere, and what it needs meanwhile. They are counted by the compiler,
and nothing of that size is run. Whole rounds of a smaller table then race.
"""

import dataclasses
from typing import Any

import jax
from absl import app, flags

from benchmarks import contestants, harness
from fedras_jax import cohort, shards
from fedras_jax.assembly import assemble, split_of
from fedras_jax.data import Split
from fedras_jax.spec import Spec

DATA = flags.DEFINE_string("data", "600x50000x80", "Synthetic clients x items x interactions.")
ITEMS = flags.DEFINE_integer("items", 10_000_000, "Items of the table that is not run.")
COHORT = flags.DEFINE_integer("cohort_size", 60, "Clients a round.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds in a turn.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns each; the median counts.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def planned(spec: Spec, split: Split, *, spread: bool) -> int:
    """Bytes that a round takes on each device, from shapes alone."""
    mesh = cohort.client_mesh()
    _, algorithm, data = assemble(spec, split, mesh=mesh, spread_items=spread)
    shapes = jax.eval_shape(algorithm.init)
    places = shards.of_state(shapes, mesh, spread=spread)
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )
    step = jax.jit(algorithm.step, donate_argnums=0)
    plan: Any = step.lower(state, data).compile().memory_analysis()
    returned = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return plan.argument_size_in_bytes + returned + plan.temp_size_in_bytes


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    spec = Spec(dataset=f"synthetic:{DATA.value}", cohort_size=COHORT.value, dim=64, codec="dense")
    split = split_of(spec)
    large = dataclasses.replace(split, n_items=ITEMS.value)
    mesh = cohort.client_mesh()
    figures: dict[str, Any] = {"devices": mesh.size}
    runs = {}
    for name, spread in (("whole", False), ("spread", True)):
        size = planned(spec, large, spread=spread)
        figures[f"{name}: GiB on a device, {ITEMS.value:,} items"] = size / 2**30
        figures[f"{name}: in tables of that size"] = size / (4 * spec.dim * ITEMS.value)
        runs[name] = contestants.whole_rounds(
            spec, split, ROUNDS.value, mesh=mesh, spread_items=spread
        )
    seconds = harness.race(runs, TURNS.value)
    for name, s in seconds.items():
        figures[f"{name}: clients/s, {split.n_items:,} items"] = COHORT.value * ROUNDS.value / s
    figures["spread over whole"] = seconds["whole"] / seconds["spread"]
    title = f"tables over {mesh.size} devices, D={spec.dim}, dense"
    harness.report(title, figures, JSON.value)


if __name__ == "__main__":
    app.run(main)
