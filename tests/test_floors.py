"""The house plan: imports point down, and a floor's rooms don't know each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {
        "types",
        "errors",
        "native",
        "rng",
        "bits",
        "kmeans",
        "kmeans1d",
        "directions",
        "reductions",
        "sets",
        "tables",
    },
    {
        "codecs",
        "models",
        "examples",
        "transforms",
        "reducers",
        "optimizers",
        "budgets",
        "arrivals",
        "network",
        "profiles",
        "samplers",
        "metrics",
    },
    {
        "client",
        "factored",
        "cohort",
        "shards",
        "publish",
        "flight",
        "agreement",
        "traces",
        "client_round",
        "turnout",
        "passes",
        "server",
    },
    {"rounds", "simulate", "evaluate"},
    {
        "wire",
        "coding",
        "data",
        "registry",
        "spec",
        "results",
        "progress",
        "run",
        "frame",
        "options",
        "programs",
        "provenance",
        "stream",
        "training",
        "assembly",
        "checkpoint",
        "hosts",
        "record",
        "recommend",
        "axes",
        "heap",
        "memory",
        "engines",
        "sweeps",
        "tensorboard",
        "accounting",
        "report",
        "page",
        "stats",
        "pareto",
        "timing",
        "retiming",
        "timing_plot",
        "pareto_plot",
    },
    {"experiments", "benchmarks"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def _room(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] == "fedras_jax":
        return parts[1] if len(parts) > 1 else None
    return parts[0] if parts[0] in ("experiments", "benchmarks") else None


def _imports(path: Path):
    """Rooms of this project that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (room for room in map(_room, modules) if room in FLOOR)


SOURCES = sorted(
    path
    for folder in ("fedras_jax", "experiments", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if path != ROOT / "fedras_jax/__init__.py"
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    own = _room(module)
    assert own in FLOOR, f"{path.name} has no room: give it a floor here"
    above = [room for room in _imports(path) if FLOOR[room] > FLOOR[own]]
    assert not above, f"{own} (floor {FLOOR[own]}) imports {above} from above"


@pytest.mark.parametrize("room", sorted(FLOORS[1]))
def test_rooms_of_floor_1_do_not_import_each_other(room):
    folder = ROOT / "fedras_jax" / room
    files = sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    for path in files:
        siblings = [r for r in _imports(path) if FLOOR[r] == 1]
        assert not siblings, f"{path.name} imports {siblings}"


def test_only_cohort_vmaps_and_shards():
    """One file owns parallelism; everything else is written for one client.

    But for `shards`, for where tables lie; for `rng`, as `jax.random` draws by one key, and several
    at once are a vmap; and for `kmeans1d`, which reads one table for several k.
    """
    own = ("cohort.py", "shards.py", "rng.py", "kmeans1d.py")
    for path in SOURCES:
        if path.parent.name == "benchmarks" or path.name in own:
            continue
        calls = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
        }
        assert not calls & {"vmap", "pmap", "shard_map", "psum"}, path
