"""Clients per second as clients, items, D, K and devices grow, and several runs in one program.

    python -m benchmarks.scaling

Whole rounds on synthetic data, dense unless K is what grows, each point beside the first one of its
axis, in turns. Then 8 seeds in one program over one: on a GPU they should take less than 8 times
as long.
"""

from typing import Any, NamedTuple

import jax
from absl import app, flags

from benchmarks import contestants, harness, machine
from fedras_jax import cohort
from fedras_jax.assembly import split_of
from fedras_jax.programs import SEGMENT, Programs
from fedras_jax.spec import Spec

AXES = flags.DEFINE_list(
    "axes", ["clients", "items", "dim", "k", "devices", "seeds"], "What grows."
)
DATA = flags.DEFINE_string("data", "600x4000x80", "Synthetic clients x items x interactions.")
CLIENTS = flags.DEFINE_list("clients", ["30", "120", "480"], "Clients a round.")
ITEMS = flags.DEFINE_list("items", ["4000", "16000", "64000"], "Items.")
DIMS = flags.DEFINE_list("dims", ["16", "64", "256"], "Embedding widths.")
KS = flags.DEFINE_list("ks", ["4", "16", "64"], "Actions, directional.")
SEEDS = flags.DEFINE_integer("seeds", 8, "Runs in one program.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds in a turn.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns each; the median counts.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

COHORT = 60


class Point(NamedTuple):
    """A place on an axis: what is run there, on so many devices (all, when None)."""

    name: str
    spec: Spec
    devices: int | None = None


def points(axis: str) -> list[Point]:
    """Those of an axis, the first of which the others are compared with."""
    base = Spec(dataset=f"synthetic:{DATA.value}", cohort_size=COHORT, codec="dense")
    n_clients, _, n_each = DATA.value.split("x")
    if axis == "clients":
        return [Point(f"{n} clients", base.replace(cohort_size=int(n))) for n in CLIENTS.value]
    if axis == "items":
        sizes = {m: f"synthetic:{n_clients}x{m}x{n_each}" for m in ITEMS.value}
        return [Point(f"{m} items", base.replace(dataset=name)) for m, name in sizes.items()]
    if axis == "dim":
        return [Point(f"D={d}", base.replace(dim=int(d))) for d in DIMS.value]
    if axis == "k":
        codec = {"codec": "directional"}
        return [Point(f"K={k}", base.replace(**codec, codec_args={"k": int(k)})) for k in KS.value]
    counts = sorted({1, jax.device_count()})
    return [Point(f"{n} devices", base, n) for n in counts]


def along(axis: str) -> tuple[dict[str, Any], list[harness.Roofline]]:
    """Clients a second at every point, over the first, and over the machine's limit."""
    runs, works, sizes = {}, {}, {}
    for point in points(axis):
        split = split_of(point.spec)
        n = point.devices or jax.device_count()
        mesh = cohort.client_mesh(n) if n > 1 else None
        turn = contestants.whole_rounds(point.spec, split, ROUNDS.value, mesh=mesh)
        examples = int(turn()[1].n_examples.sum())
        works[point.name] = contestants.work(point.spec, split, examples, ROUNDS.value)
        runs[point.name] = turn
        sizes[point.name] = point.spec.cohort_size * ROUNDS.value
    seconds = harness.race(runs, TURNS.value)
    figures: dict[str, Any] = {}
    speed = {name: sizes[name] / s for name, s in seconds.items()}
    first = next(iter(speed))
    for name, s in speed.items():
        figures[f"{axis}: {name}, clients/s"] = s
        if name != first:
            figures[f"{axis}: {name} over {first}"] = s / speed[first]
    roofs = [harness.roofline(f"{axis}: {name}", seconds[name], works[name]) for name in runs]
    return figures, roofs


def seeds() -> float:
    """Time of several seeds in one program over that of one, `SEGMENT` rounds each."""
    spec = Spec(dataset=f"synthetic:{DATA.value}", cohort_size=COHORT, codec="dense")
    split = split_of(spec)
    runs = {}
    for n in (1, SEEDS.value):
        programs = Programs(spec, split, n, mesh=contestants.mesh())
        given = programs.arguments([spec.replace(seed=seed) for seed in range(n)])
        state = programs.init(given)

        def turn(programs=programs, given=given, kept=[state]):  # noqa: B006, states are donated
            kept[0], info = programs.advance(given, kept[0], programs.data, SEGMENT)
            jax.block_until_ready((kept[0], info))

        runs[str(n)] = turn
    seconds = harness.race(runs, TURNS.value)
    return seconds[str(SEEDS.value)] / seconds["1"]


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    figures: dict[str, Any] = {}
    roofs = []
    for axis in AXES.value:
        if axis != "seeds":
            found, limits = along(axis)
            figures |= found
            roofs += limits
    ratio = seeds() if "seeds" in AXES.value else None
    if ratio is not None:
        figures[f"{SEEDS.value} seeds in one program, times one seed's time"] = ratio
    bar = harness.bar(
        "8 seeds in one program on a GPU, times one seed's time",
        ratio,
        "<=",
        2.5,
        machine.gpu("H200"),
        harness.Need("8 seeds", SEEDS.value == 8),
    )
    title = f"scaling, synthetic {DATA.value}, {COHORT} clients, D=64"
    harness.report(title, figures, JSON.value, bars=[bar], rooflines=roofs)


if __name__ == "__main__":
    app.run(main)
