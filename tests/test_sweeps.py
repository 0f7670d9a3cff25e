"""Runs that share a program, planned, run, and found again."""

import json
import shutil

import jax
import numpy as np
import pytest

import fedras_jax
from fedras_jax import assembly, cohort, engines, memory, reducers, registry, results, sweeps
from fedras_jax.errors import DivergedError, ResultsError, SpecError
from fedras_jax.options import Options
from fedras_jax.programs import Kept
from fedras_jax.run import run_group
from fedras_jax.spec import Spec
from fedras_jax.types import Number, Reducer

SPEC = Spec(
    dataset="synthetic:60x90x12",
    dim=8,
    rounds=4,
    eval_every=2,
    cohort_size=10,
    batch_size=32,
    candidates=20,
    codec="directional",
    codec_args={"k": 8},
    profile="mobile",
    budget="adaptive",
)
# Differences in everything that a program takes as a number.
SPECS = (
    SPEC,
    SPEC.replace(seed=1, client_lr=0.25, weight_decay=0.0),
    SPEC.replace(server_lr=0.5, encode_work=1.0, budget_args={"weight": 0.1}),
    SPEC.replace(profile="constrained", profile_args={"failure": 0.2}),
    SPEC.replace(client_lr=1e9),
)
KEPT = Kept()


@pytest.fixture(scope="module")
def mesh():
    return cohort.client_mesh(2)


@pytest.fixture(scope="module")
def group(mesh):
    """All of them in one program, on two devices, six slots."""
    return run_group(SPECS, mesh=mesh)


def agree(one, other):
    """As the same experiment must in another program: tables to 1e-5, sizes exactly."""
    np.testing.assert_allclose(one.state.items, other.state.items, atol=1e-5)
    np.testing.assert_allclose(one.state.clients, other.state.clients, atol=1e-5)
    for mine, theirs in zip(one.rounds, other.rounds, strict=True):
        assert mine.keys() == theirs.keys()
        for name in ("clients", "failed", "n_actions", "up_bytes", "down_bytes"):
            assert mine[name] == theirs[name], name
        assert mine["seconds"] == pytest.approx(theirs["seconds"], rel=1e-5)


@pytest.mark.parametrize("i", range(4))
def test_a_run_in_a_group_agrees_with_the_same_run_alone(group, i):
    (alone,) = run_group([SPECS[i]], mesh=cohort.client_mesh(1), kept=KEPT)
    agree(group[i], alone)
    assert group[i].summary["speed"]["runs"] == 5
    assert group[i].summary["metrics"] == pytest.approx(alone.summary["metrics"], abs=0.005)


def test_one_that_diverges_stops_no_other(group):
    assert isinstance(group[4], DivergedError)
    assert "round 1: the training loss" in str(group[4])


def test_vmapped_runs_agree_with_those_one_after_another(group):
    for one, other in zip(
        run_group(SPECS[:4], mesh=cohort.client_mesh(1), options=Options(runs_at_once=4)),
        group[:4],
        strict=True,
    ):
        agree(one, other)


def test_a_group_compiles_once_whatever_its_numbers_and_its_rounds(mesh):
    kept = Kept()
    run_group(SPECS[:2], mesh=mesh, kept=kept)  # and what looks at states one array at a time
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: (
            compiled.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
        )
    )
    try:
        (result,) = run_group(
            [SPECS[3].replace(rounds=7, eval_every=3)], mesh=mesh, kept=kept, size=2
        )
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(result.rounds) == 7
    assert not compiled


def test_what_needs_another_program_is_no_group():
    with pytest.raises(
        SpecError, match=r"a group shares one program and its data, but these do not: dim: 4"
    ):
        run_group([SPEC, SPEC.replace(dim=4)])
    with pytest.raises(SpecError, match="at least one Spec"):
        run_group([])


def test_who_may_need_other_data_is_no_group():
    """A dataset's own split has a validation item where it is asked for."""
    with pytest.raises(SpecError, match="do not: evaluate_on: 'valid', not 'test'"):
        run_group([SPEC, SPEC.replace(evaluate_on="valid")])
    both = [SPEC.replace(validation=True, evaluate_on=which) for which in ("test", "valid")]
    assert assembly.data_key(both[0]) == assembly.data_key(both[1])


def test_the_same_data_is_kept_whatever_asks_for_it():
    kept = Kept()
    first = kept.split(SPEC, None, None)
    assert kept.split(SPEC.replace(evaluate_on="valid"), None, None) is first
    assert kept.split(SPEC.replace(validation=False), None, None) is not first


def test_the_program_depends_on_shapes_alone():
    same = {assembly.program(spec) for spec in SPECS}
    assert len(same) == 1
    others = (
        SPEC.replace(dim=4),
        SPEC.replace(codec_args={"k": 4}),
        SPEC.replace(dataset="synthetic:60x80x12"),
        SPEC.replace(data_seed=1),
        SPEC.replace(profile="ideal"),
        SPEC.replace(budget="fixed"),
        SPEC.replace(budget_args={"k_min": 2}),
    )
    assert len({assembly.program(spec) for spec in others} | same) == len(others) + 1


OPTIMIZED = SPEC.replace(
    rounds=3,
    client_optimizer="adamw",
    client_lr=0.05,
    server_optimizer="adam",
    server_lr=0.1,
    server_optimizer_args={"b1": 0.5, "eps": 1e-3},
    profile="ideal",
    budget="fixed",
)


def test_numbers_of_optimizers_share_a_program_and_have_an_effect(mesh):
    specs = [
        OPTIMIZED,
        OPTIMIZED.replace(server_optimizer_args={"eps": 1e-3}),
        OPTIMIZED.replace(client_optimizer_args={"b1": 0.0}),
    ]
    found = run_group(specs, mesh=mesh)
    digests = {result.summary["state_digest"] for result in found}
    assert len(digests) == len(specs)
    (alone,) = run_group(specs[1:2], mesh=cohort.client_mesh(1))
    agree(found[1], alone)
    other = OPTIMIZED.replace(server_optimizer="momentum", server_optimizer_args={})
    assert assembly.program(other) != assembly.program(OPTIMIZED)


def test_an_own_reducers_numbers_are_swept(monkeypatch, mesh):
    def scaled(share: Number = 1.0) -> Reducer:
        zero, add, finish = reducers.touched_mean()
        return Reducer(zero, add, lambda acc: share * finish(acc))

    monkeypatch.setitem(registry.REDUCERS, "scaled", scaled)
    base = SPEC.replace(reducer="scaled", rounds=1, profile="ideal", budget="fixed")
    whole, half = run_group([base, base.replace(reducer_args={"share": 0.5})], mesh=mesh)
    start = run_group([base.replace(server_lr=0.0)], mesh=mesh)[0].state.items
    np.testing.assert_allclose(half.state.items - start, (whole.state.items - start) / 2, atol=1e-6)


AXES = [
    {"zip": {"codec": ["dense", "directional"], "codec_args": [{}, {"k": 4}]}},
    {"grid": {"seed": [0, 1, 2], "client_lr": [0.25, 1e9]}},
]
BASE = SPEC.replace(profile="ideal", budget="fixed", rounds=2)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep of twelve runs, of which six diverge."""
    workdir = tmp_path_factory.mktemp("sweep")
    return workdir, sweeps.sweep(BASE, AXES, workdir=workdir)


def test_a_sweep_is_one_table(swept):
    workdir, table = swept
    rows = table.to_pylist()
    assert [row["status"] for row in rows] == ["finished", "diverged"] * 6
    assert [row["seed"] for row in rows] == [0, 0, 1, 1, 2, 2] * 2
    assert {row["codec"] for row in rows[:6]} == {"dense"}
    spec = BASE.replace(codec="dense", codec_args={}, client_lr=0.25)
    alone = fedras_jax.run(spec)
    assert rows[0]["ndcg@10"] == pytest.approx(alone.summary["metrics"]["ndcg@10"], abs=0.005)
    assert rows[0]["folder"] == str(workdir / "runs" / spec.digest())
    told = json.loads((workdir / "runs" / rows[1]["digest"] / "diverged.json").read_text())
    assert told["round"] == 2
    assert "diverged" in told["message"]
    told = json.loads((workdir / "sweep.json").read_text())
    assert len(told["runs"]) == 12
    assert told["shared"]["dim"] == BASE.dim
    for row, run in zip(rows, told["runs"], strict=True):
        assert run["digest"] == row["digest"]
        assert set(run) == {"digest", "codec", "codec_args", "seed", "client_lr"}
        run.pop("digest")
        assert Spec.from_json(told["shared"] | run).digest() == row["digest"]


def test_what_is_done_is_not_run_again(swept):
    workdir, table = swept
    specs = sweeps.expand(BASE, AXES)
    planned = sweeps.plan(specs, workdir)
    assert (len(planned.finished), len(planned.diverged), planned.groups) == (6, 6, ())
    # One more seed is one more run, compiled for one.
    base = BASE.replace(codec="dense", codec_args={}, client_lr=0.25)
    (group,) = sweeps.plan(sweeps.expand(base, {"seed": range(4)}), workdir).groups
    assert (len(group.specs), group.size) == (1, 1)
    folder = sweeps.folder_of(workdir, specs[2])
    before = (folder / "summary.json").stat().st_mtime_ns
    assert sweeps.sweep(BASE, AXES, workdir=workdir).equals(table)
    assert (folder / "summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("n", [2, 5])  # as many as there are programs, and more
def test_shards_part_the_plan_alike_whatever_a_machine_holds(tmp_path, n):
    specs = sweeps.expand(BASE, AXES)
    parts = [
        sweeps.plan(specs, tmp_path, memory_gib=3 + i, devices=1 + i, shard=(i, n))
        for i in range(n)
    ]
    ran = [spec for part in parts for group in part.groups for spec in group.specs]
    assert sorted(s.digest() for s in ran) == sorted(s.digest() for s in specs)
    assert all(part.groups for part in parts)
    with pytest.raises(SpecError, match=r"shard 2/2: expected i/n"):
        sweeps.plan(specs, tmp_path, shard=(2, 2))


def test_memory_bounds_a_group(tmp_path):
    specs = sweeps.expand(BASE, {"seed": range(64)})
    (one,) = sweeps.plan(specs, tmp_path).groups
    assert (len(one.specs), one.size) == (64, 64)
    base = sweeps.plan(specs[:1], tmp_path).groups[0].memory.bytes
    budget = (base + (one.memory.bytes - base) / 3) / 2**30
    planned = sweeps.plan(specs, tmp_path, memory_gib=budget)
    assert len(planned.groups) > 2
    assert {group.size for group in planned.groups} == {planned.groups[0].size}
    assert {group.program for group in planned.groups} == {0}
    assert all(group.memory.bytes <= budget * 2**30 for group in planned.groups)
    assert sum(len(group.specs) for group in planned.groups) == 64
    assert f"64 to run in {len(planned.groups)} groups with 1 programs" in planned.describe()
    with pytest.raises(SpecError, match=r"is expected to take \d\.\d+ GiB, above memory_gib=0\.5"):
        sweeps.plan(specs, tmp_path, memory_gib=0.5)


def test_runs_of_a_group_that_were_stopped_go_on_together(tmp_path, swept):
    asked = iter([False, True])  # before the group, and after its first round
    options = {"checkpoint_every": 1, "checkpoint_last": False}
    axes = {"seed": [0, 1, 2]}
    base = BASE.replace(codec="dense", codec_args={}, client_lr=0.25)
    with pytest.raises(fedras_jax.StoppedError):
        sweeps.sweep(base, axes, workdir=tmp_path, stop=lambda: next(asked), **options)
    (group,) = sweeps.plan(sweeps.expand(base, axes), tmp_path).groups
    assert (group.start, len(group.specs)) == (1, 3)
    table = sweeps.sweep(base, axes, workdir=tmp_path, **options)
    whole = [row for row in swept[1].to_pylist() if row["codec"] == "dense"][::2]
    assert table["state_digest"].to_pylist() == [row["state_digest"] for row in whole]
    assert not list(tmp_path.glob("runs/*/checkpoints"))


def test_runs_of_a_group_that_stand_apart_go_on(tmp_path, swept):
    """As after a kill between the saves of a group's runs, and with a torn checkpoint."""
    base = BASE.replace(codec="dense", codec_args={}, client_lr=0.25)
    axes = {"seed": [0, 1, 2]}
    asked = iter([False, True])
    with pytest.raises(fedras_jax.StoppedError):
        sweeps.sweep(base, axes, workdir=tmp_path, checkpoint_every=1, stop=lambda: next(asked))
    specs = sweeps.expand(base, axes)
    folders = tuple(str(sweeps.folder_of(tmp_path, spec)) for spec in specs)
    shutil.rmtree(sweeps.folder_of(tmp_path, specs[0]) / "checkpoints")
    torn = sweeps.folder_of(tmp_path, specs[1]) / "checkpoints/1/about/metadata"
    torn.write_text("{")
    task = engines.Task("group", tuple(spec.to_json() for spec in specs), folders, 3, 0)
    # The torn one is all that its run has: nothing is overwritten, and it is told.
    with pytest.raises(ResultsError, match="no checkpoint in"):
        engines.work(task, Options(checkpoint_every=1))
    shutil.rmtree(torn.parents[2])
    assert engines.work(task, Options(checkpoint_every=1)).diverged == ()
    digests = results.load(tmp_path).sort_by("seed")["state_digest"].to_pylist()
    rows = [row for row in swept[1].to_pylist() if row["codec"] == "dense"][::2]
    assert digests == [row["state_digest"] for row in rows]


def test_runs_that_stand_apart_go_on_in_one_call(tmp_path, swept):
    specs = sweeps.expand(
        BASE.replace(codec="dense", codec_args={}, client_lr=0.25), {"seed": [0, 1, 2]}
    )
    folders = [tmp_path / str(spec.seed) for spec in specs]
    kept, options = Kept(), Options(checkpoint_every=1, stop=lambda: True)
    with pytest.raises(fedras_jax.StoppedError):
        run_group(specs[1:2], workdirs=folders[1:2], options=options, size=3, kept=kept)
    found = run_group(specs, workdirs=folders, options=Options(checkpoint_every=1), kept=kept)
    rows = [row for row in swept[1].to_pylist() if row["codec"] == "dense"][::2]
    assert [r.summary["state_digest"] for r in found] == [row["state_digest"] for row in rows]
    assert [r.spec for r in found] == specs
    assert [r.summary["speed"]["runs"] for r in found] == [2, 1, 2]


def test_more_devices_than_there_are_is_an_error():
    with pytest.raises(SpecError, match="devices=9, but there are 8"):
        fedras_jax.run(BASE, devices=9)


def test_a_group_of_which_all_diverge_is_told_with_a_progress_bar(tmp_path):
    base = BASE.replace(codec="dense", codec_args={}, client_lr=1e9)
    table = sweeps.sweep(base, {"seed": [0, 1]}, workdir=tmp_path, progress=True)
    assert table["status"].to_pylist() == ["diverged"] * 2
    # It diverged in round 2: one round alone is another question.
    shorter = sweeps.expand(base.replace(rounds=1), {"seed": [0, 1]})
    assert len(sweeps.plan(shorter, tmp_path).groups) == 1


def test_fewer_rounds_than_a_finished_run_has_lose_nothing(swept):
    workdir, table = swept
    base = BASE.replace(codec="dense", codec_args={}, client_lr=0.25, rounds=1)
    with pytest.raises(ResultsError, match=r"holds 2 rounds of this experiment, beyond rounds=1"):
        sweeps.sweep(base, {"seed": [0]}, workdir=workdir)
    assert sweeps.sweep(BASE, AXES, workdir=workdir).equals(table)


def test_a_workdir_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot write results to"):
        sweeps.sweep(BASE, {"seed": [0]}, workdir=tmp_path / "file")


def test_nothing_is_kept_without_a_workdir():
    table = sweeps.sweep(BASE.replace(codec="dense", codec_args={}), {"seed": [0, 1]})
    assert table["status"].to_pylist() == ["finished"] * 2
    with pytest.raises(ResultsError, match="is no folder"):
        results.load(table["folder"].to_pylist())


def test_memory_of_a_single_run_counts_every_device():
    """Its clients share them, and each has the whole state and all of the data."""
    split = assembly.split_of(SPEC)
    state = jax.eval_shape(assembly.assemble(SPEC, split)[1].init)
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    one, four = (memory.estimator(SPEC, split, n)(1).arrays for n in (1, 4))
    data = 4 * (split.items.size + split.offsets.size)
    assert four - one >= 3 * (2 * whole + data)
