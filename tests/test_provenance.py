"""A results folder belongs to its data: what has changed meanwhile is refused, and nothing lost."""

import dataclasses

import numpy as np
import pytest

import fedras_jax
from fedras_jax import assembly, provenance, results, retiming, sweeps
from fedras_jax.data import leave_one_out, synthetic
from fedras_jax.data.store import open_store, write_split, writing
from fedras_jax.errors import ResultsError, SpecError
from fedras_jax.spec import Spec
from fedras_jax.stream import stream

SPEC = Spec(dim=4, rounds=4, eval_every=2, cohort_size=6, codec="dense", candidates=5)
OTHER = "holds a run on other data, by the digest of its interactions"


def write(path, seed):
    found = synthetic(20, 30, mean_interactions=8, seed=seed)
    users = np.repeat(np.arange(20), np.diff(found.offsets))
    lines = [f"{u},{i},{t}" for t, (u, i) in enumerate(zip(users, found.items, strict=True))]
    path.write_text("\n".join(["user,item,time", *lines]) + "\n")
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "own.csv", seed=0)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("more", [0, 4], ids=["finished", "extended"])
def test_a_file_that_has_changed_is_refused(file, tmp_path, more):
    spec = SPEC.replace(dataset=str(file))
    fedras_jax.run(spec, workdir=tmp_path / "run", checkpoint_every=2)
    before = contents(tmp_path / "run")
    write(file, seed=1)
    with pytest.raises(ResultsError, match=OTHER):
        fedras_jax.run(spec.replace(rounds=4 + more), workdir=tmp_path / "run")
    assert contents(tmp_path / "run") == before
    write(file, seed=0)  # the same again
    assert fedras_jax.run(spec.replace(rounds=4 + more), workdir=tmp_path / "run").summary


def test_interactions_that_are_given_are_told_apart(tmp_path):
    one, two = (synthetic(20, 30, mean_interactions=8, seed=seed) for seed in (0, 1))
    first = fedras_jax.run(SPEC, workdir=tmp_path / "run", interactions=one)
    with pytest.raises(ResultsError, match=OTHER):
        fedras_jax.run(SPEC, workdir=tmp_path / "run", interactions=two)
    # What is there is read, and not run again.
    stamp = (tmp_path / "run/summary.json").stat().st_mtime_ns
    again = fedras_jax.run(SPEC, workdir=tmp_path / "run", interactions=one, keep_states=False)
    assert again.summary == first.summary
    assert (tmp_path / "run/summary.json").stat().st_mtime_ns == stamp


def test_a_table_of_devices_that_has_changed_is_refused(tmp_path):
    table = tmp_path / "devices.csv"
    lines = ["compute,up,down,latency", *["1e5,1e6,1e6,0.1"] * 20]
    table.write_text("\n".join(lines))
    spec = SPEC.replace(dataset="synthetic:20x30x8", profile=str(table))
    fedras_jax.run(spec, workdir=tmp_path / "run")
    table.write_text("\n".join([*lines[:-1], "1e5,2e6,1e6,0.1"]))
    with pytest.raises(ResultsError, match="by the digest of its profile:"):
        fedras_jax.run(spec, workdir=tmp_path / "run")


def test_a_sweep_does_not_mix_data(file, tmp_path):
    spec = SPEC.replace(dataset=str(file))
    fedras_jax.sweep(spec, {"seed": [0]}, workdir=tmp_path / "sweep")
    write(file, seed=1)
    with pytest.raises(ResultsError, match=OTHER):
        fedras_jax.sweep(spec, {"seed": [0, 1]}, workdir=tmp_path / "sweep")
    write(file, seed=0)
    assert fedras_jax.sweep(spec, {"seed": [0, 1]}, workdir=tmp_path / "sweep").num_rows == 2


def test_retiming_asks_for_the_same_data(tmp_path):
    spec = SPEC.replace(dataset="synthetic:20x30x8", profile="mobile")
    there = tmp_path / "mobile"
    fedras_jax.run(spec, workdir=there, log_clients=True)
    data, wanted = results.read_data(there), spec.replace(profile="wifi")
    run = retiming.source(wanted, [there], data)
    assert retiming.source(wanted, [there], {"interactions": "0"}) is None
    retiming.write(run, wanted, tmp_path / "wifi")
    assert results.read_data(tmp_path / "wifi") == data


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    results.claim(tmp_path, SPEC, {})
    (tmp_path / "data.json").unlink()
    with pytest.raises(ResultsError, match="does not say what data its run is of"):
        results.claim(tmp_path, SPEC, {})


def test_a_folder_that_was_claimed_by_half_is_claimed(tmp_path):
    (tmp_path / "data.json").write_text("{}")
    assert results.claim(tmp_path, SPEC, {"interactions": "1"}) == tmp_path
    assert results.read_data(tmp_path) == {"interactions": "1"}


def test_what_a_split_is_told_apart_by():
    spec = SPEC.replace(dataset="synthetic:20x30x8")
    found = synthetic(20, 30, mean_interactions=8)
    plain = leave_one_out(found, n_candidates=5)
    digest = provenance.of_split(spec, plain)
    assert digest == provenance.of_split(spec, leave_one_out(found, n_candidates=5))
    for other in (
        leave_one_out(found, n_candidates=5, validation=False),
        leave_one_out(found, n_candidates=6),
        leave_one_out(found, n_candidates=0),
        leave_one_out(synthetic(20, 31, mean_interactions=8), n_candidates=5),
    ):
        assert provenance.of_split(spec, other) != digest


def test_a_store_is_told_apart_by_all_of_its_columns(tmp_path):
    split = leave_one_out(synthetic(20, 30, mean_interactions=8), n_candidates=0)
    write_split(tmp_path / "one", split)
    assert write_split(tmp_path / "same", split).digest == open_store(tmp_path / "one").digest
    # One client has another item in training: sizes, offsets and held-out items are the same.
    first = split.items[: split.offsets[1]]
    changed = np.sort(np.append(first[1:], np.setdiff1d(np.arange(30), first)[0]))
    items = np.concatenate([changed, split.items[split.offsets[1] :]]).astype(np.int32)
    other = write_split(tmp_path / "other", dataclasses.replace(split, items=items))
    assert other.digest != open_store(tmp_path / "one").digest
    spec = SPEC.replace(dataset=str(tmp_path / "one"))
    stream(spec, workdir=tmp_path / "run")
    (tmp_path / "one").rename(tmp_path / "away")
    (tmp_path / "other").rename(tmp_path / "one")
    with pytest.raises(ResultsError, match=OTHER):
        stream(spec, workdir=tmp_path / "run")


@pytest.mark.parametrize(("timed", "refused"), [(False, True), (True, False)])
def test_a_store_whose_held_out_items_are_drawn_has_its_own_seed(tmp_path, timed, refused):
    found = synthetic(20, 30, mean_interactions=8)
    with writing(tmp_path / "store", timed=timed, seed=3) as writer:
        writer.add(np.diff(found.offsets), found.items)
        writer.finish("toy", np.arange(20), np.arange(30), {})
    spec = SPEC.replace(dataset=str(tmp_path / "store"), data_seed=1)
    if not refused:  # it is of the candidates alone
        assert stream(spec).summary
        return
    with pytest.raises(SpecError, match=r"data_seed=1, but .* were drawn with data_seed=3"):
        stream(spec)
    assert stream(spec.replace(data_seed=3)).summary


def test_a_sweep_goes_on_where_its_folder_was_claimed_by_half(tmp_path):
    spec = SPEC.replace(dataset="synthetic:20x30x8")
    sweeps.folder_of(tmp_path, spec).mkdir(parents=True)
    assert fedras_jax.sweep(spec, {"seed": [0]}, workdir=tmp_path).num_rows == 1


def test_data_is_loaded_once_for_all_that_are_finished(tmp_path, monkeypatch):
    """Also where runs take turns between two forms of it."""
    spec = SPEC.replace(dataset="synthetic:20x30x8")
    along = {"seed": [0, 1], "evaluate_on": ["test", "valid"], "candidates": [0, 5]}
    fedras_jax.sweep(spec, along, workdir=tmp_path)
    loaded = []
    split_of = assembly.split_of
    monkeypatch.setattr(assembly, "split_of", lambda *a, **k: loaded.append(a) or split_of(*a, **k))
    assert fedras_jax.sweep(spec, along, workdir=tmp_path).num_rows == 8
    assert len(loaded) == 4


def test_the_seed_of_a_store_with_times_is_not_in_its_digest(tmp_path):
    found = synthetic(20, 30, mean_interactions=8)
    digests = []
    for seed in (0, 1):
        with writing(tmp_path / str(seed), seed=seed) as writer:
            writer.add(np.diff(found.offsets), found.items)
            writer.finish("toy", np.arange(20), np.arange(30), {})
        digests.append(open_store(tmp_path / str(seed)).digest)
    assert digests[0] == digests[1]
