"""Clients per second as clients, items, D, K and devices grow, and several runs in one program.

    python -m benchmarks.scaling

Whole rounds on synthetic data, dense unless K is what grows, in turns, each point beside the first
one of its axis. A point that several axes have is compiled and timed once. Then 8 seeds in one
program over one: on a GPU they should take less than 8 times as long.
"""

from collections.abc import Sequence
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
CLIENTS = flags.DEFINE_list("clients", ["60", "480"], "Clients a round.")
ITEMS = flags.DEFINE_list("items", ["4000", "64000"], "Items.")
DIMS = flags.DEFINE_list("dims", ["64", "256"], "Embedding widths.")
KS = flags.DEFINE_list("ks", ["16", "64"], "Actions, directional.")
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

    @property
    def n_devices(self) -> int:
        return self.devices or jax.device_count()

    @property
    def key(self) -> str:
        """Points of several axes that are the same have the same."""
        return f"{self.spec.digest()} {self.n_devices}"


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
    return [Point(f"{n} devices", base, n) for n in sorted({1, jax.device_count()})]


def along(axes: Sequence[str]) -> tuple[dict[str, Any], list[harness.Roofline]]:
    """Clients a second at every point, over the first of its axis, and over the machine's limit."""
    on = {axis: points(axis) for axis in axes}
    turns, works, sizes = {}, {}, {}
    for key, point in {point.key: point for each in on.values() for point in each}.items():
        split, n = split_of(point.spec), point.n_devices
        mesh = cohort.client_mesh(n) if n > 1 else None
        turns[key] = contestants.whole_rounds(point.spec, split, ROUNDS.value, mesh=mesh)
        examples = int(turns[key]()[1].n_examples.sum())
        works[key] = contestants.work(point.spec, split, examples, ROUNDS.value)
        sizes[key] = point.spec.cohort_size * ROUNDS.value
    seconds = harness.race(turns, TURNS.value)
    speed = {key: sizes[key] / s for key, s in seconds.items()}
    figures: dict[str, Any] = {}
    roofs = []
    for axis, (first, *others) in on.items():
        for point in (first, *others):
            name, key = f"{axis}: {point.name}", point.key
            figures[f"{name}, clients/s"] = speed[key]
            roofs.append(harness.roofline(name, seconds[key], works[key]))
        for point in others:
            ratio = speed[point.key] / speed[first.key]
            figures[f"{axis}: {point.name} over {first.name}"] = ratio
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
    figures, roofs = along([axis for axis in AXES.value if axis != "seeds"])
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
