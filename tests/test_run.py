import dataclasses
import json
import logging

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

import fedras_jax
from fedras_jax import bits, cohort, metrics, results, rng, samplers
from fedras_jax.assembly import assemble, histories, n_candidates, split_of
from fedras_jax.errors import DataError, DivergedError, ResultsError, SpecError, StoppedError
from fedras_jax.spec import Spec
from fedras_jax.stream import stream
from fedras_jax.types import Sizes

SMALL = Spec(
    dataset="synthetic:60x90x12",
    dim=8,
    rounds=6,
    eval_every=2,
    cohort_size=10,
    batch_size=32,
    codec="actions",
    codec_args={"k": 4},
    candidates=20,
)


@pytest.fixture(scope="module")
def mesh():
    return cohort.client_mesh(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mesh):
    workdir = tmp_path_factory.mktemp("run") / "here"
    return workdir, fedras_jax.run(SMALL, workdir=workdir, mesh=mesh)


def test_summary_holds_what_is_documented(finished):
    workdir, result = finished
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    assert set(summary) == {
        "spec",
        "rounds",
        "metrics",
        "payload",
        "clock",
        "clients",
        "speed",
        "env",
        "state_digest",
    }
    assert Spec.from_json(summary["spec"]) == SMALL
    assert {"hr@10", "ndcg@10", "mrr@10"} <= set(summary["metrics"])
    speed = {"clients_per_s", "runs", "compile_s", "startup_s", "evaluate_s"}
    assert speed == set(summary["speed"])
    assert len(summary["state_digest"]) == 64


def test_rounds_and_ranks_are_saved(finished):
    workdir, result = finished
    rounds = pq.read_table(workdir / "rounds.parquet").to_pylist()
    assert [row["round"] for row in rounds] == [1, 2, 3, 4, 5, 6]
    assert [row["hr@10"] is not None for row in rounds] == [False, True] * 3
    assert all(row["clients"] == row["arrived"] == 10 for row in rounds)
    ranks = pq.read_table(workdir / "ranks.parquet")
    assert ranks["rank"].to_pylist() == result.ranks.tolist()
    assert metrics.ndcg(result.ranks, 10) == result.summary["metrics"]["ndcg@10"]


def test_payload_figures_follow_from_the_rounds(finished):
    _, result = finished
    payload, sizes = result.summary["payload"], Sizes(90, 8)
    assert payload["dense_bytes"] == bits.dense_bits(sizes) / 8 == 20 + 90 * 8 * 4
    up = sum(row["up_bytes"] for row in result.rounds) / 60
    assert payload["up_bytes_mean"] == pytest.approx(up)
    assert payload["up_reduction"] == pytest.approx(1 - up / payload["dense_bytes"])
    # Every client must fetch the table of the round, which is dense; the first grows from the seed.
    assert payload["down_bytes_mean"] == pytest.approx(payload["dense_bytes"] * 5 / 6)
    total = (payload["up_reduction"] + payload["down_reduction"]) / 2
    assert payload["total_reduction"] == pytest.approx(total)


def test_downlink_bytes_follow_from_what_was_published(mesh):
    """Who is drawn when, and so what each client missed, replayed from the sampler alone."""
    spec = SMALL.replace(
        rounds=12, eval_every=12, downlink="directional", downlink_args={"k": 8}, snapshot_bits=8
    )
    result = fedras_jax.run(spec, mesh=mesh)
    _, algorithm, _ = assemble(spec, result.split)
    sampler = samplers.fixed_size(60, spec.cohort_size)
    snapshot = 20 + 90 * (8 + 8 * 8) / 8  # and nothing for the set of all items
    assert algorithm.snapshot_bits == snapshot * 8
    sent, last = [0.0], dict.fromkeys(range(60), -1)
    for r, row in enumerate(result.rounds):
        drawn = sampler.sample(rng.address(spec.seed, rng.Stream.COHORT, r))
        fetched = 0.0
        for client in np.asarray(drawn.client).tolist():
            # After round r the table of round r + 1 is out; everyone holds the first.
            fetched += min(sum(sent[max(last[client], 0) + 1 :]), snapshot)
            last[client] = r
        assert row["down_bytes"] == pytest.approx(fetched)
        sent.append(row["published_bytes"])
        assert 20 < row["published_bytes"] < 20 + 90 / 8 + 16 + 16 + 90 * 3 / 8 + 1
    assert result.summary["payload"]["down_reduction"] > 0.5
    assert result.summary["metrics"]["hr@10"] > 0


def test_feedback_has_a_memory_budget(mesh):
    with pytest.raises(SpecError, match=r"feedback_rows=50 for 60 clients takes .* GiB, above"):
        fedras_jax.run(SMALL.replace(feedback_rows=50, feedback_gib=1e-6), mesh=mesh)


def test_same_seed_same_result_and_another_seed_another(finished, mesh):
    _, result = finished
    again = fedras_jax.run(SMALL, mesh=mesh)
    assert again.summary["state_digest"] == result.summary["state_digest"]
    assert again.rounds == result.rounds
    other = fedras_jax.run(SMALL.replace(seed=1), mesh=mesh)
    assert other.summary["state_digest"] != result.summary["state_digest"]


def test_how_often_it_is_evaluated_changes_nothing_else(finished, mesh):
    _, result = finished
    seldom = fedras_jax.run(SMALL.replace(eval_every=6), mesh=mesh)
    assert seldom.summary["state_digest"] == result.summary["state_digest"]
    assert seldom.summary["payload"] == result.summary["payload"]


def test_full_ranking_validation_item_shared_parameters_and_poisson(mesh):
    spec = SMALL.replace(
        model="gmf",
        candidates=0,
        evaluate_on="valid",
        sampler="poisson",
        sampler_args={"rate": 0.2},
        server_optimizer="adam",
        server_lr=0.01,
        rounds=2,
        transforms=({"name": "clip_norm", "max_norm": 1.0},),
    )
    result = fedras_jax.run(spec, mesh=mesh)
    assert result.ranks.max() > 21  # among all unseen items, not 20 candidates
    # h and b travel down and up: 8 + 1 floats more than the table.
    assert result.summary["payload"]["dense_bytes"] == 20 + 4 * (90 * 8 + 9)
    assert not np.allclose(result.state.shared["weight"], 1.0)


def test_all_clients_take_part_when_cohort_size_is_0(mesh):
    result = fedras_jax.run(SMALL.replace(cohort_size=0, rounds=1), mesh=mesh)
    assert result.rounds[0]["clients"] == 60
    assert (np.asarray(result.state.last_sync) == 0).all()


def test_learns(mesh):
    """Training beats the untrained table, whose ranks are uniform: HR@10 = 10/21 = .48."""
    spec = SMALL.replace(rounds=60, eval_every=60, codec="dense", codec_args={})
    assert fedras_jax.run(spec, mesh=mesh).summary["metrics"]["hr@10"] > 0.6


def test_another_spec_is_not_overwritten(finished, mesh):
    workdir, _ = finished
    before = {p.name: p.read_bytes() for p in workdir.iterdir()}
    with pytest.raises(ResultsError, match=r"already holds another experiment \(seed: 0, not 9\)"):
        fedras_jax.run(SMALL.replace(seed=9), workdir=workdir, mesh=mesh)
    assert {p.name: p.read_bytes() for p in workdir.iterdir()} == before


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(ResultsError, match="is not empty and holds no run"):
        fedras_jax.run(SMALL, workdir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_broken_spec_file_is_not_overwritten(tmp_path):
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(ResultsError, match="cannot be read as a Spec"):
        fedras_jax.run(SMALL, workdir=tmp_path)


def test_divergence_stops_names_the_round_and_keeps_what_was_written(tmp_path, mesh):
    spec = SMALL.replace(client_lr=1e9, rounds=40, eval_every=20, codec="dense", codec_args={})
    with pytest.raises(DivergedError, match=r"round \d+.*diverged"):
        fedras_jax.run(spec, workdir=tmp_path / "here", mesh=mesh)
    assert (tmp_path / "here/rounds.parquet").exists()
    assert not (tmp_path / "here/summary.json").exists()


def test_a_cohort_larger_than_the_clients_is_refused_before_compilation(monkeypatch):
    monkeypatch.setattr(jax, "jit", lambda *a, **k: pytest.fail("compiled"))
    with pytest.raises(SpecError, match="cohort of 61 clients, but there are 60"):
        fedras_jax.run(SMALL.replace(cohort_size=61))


def test_candidates_are_counted_and_few_are_told_once(mesh, caplog, finished):
    spec = SMALL.replace(dataset="synthetic:20x30x12", rounds=1, candidates=20, seed=9)
    with caplog.at_level(logging.WARNING):
        results = [fedras_jax.run(spec.replace(seed=seed), mesh=mesh) for seed in (0, 1)]
    clients, split = results[0].summary["clients"], results[0].split
    against = (split.candidates >= 0).sum(1)[results[0].ranks > 0]
    assert against.min() < 20  # that have 12 of 30 items and more
    assert clients["candidates_least"] == against.min()
    assert clients["candidates_mean"] == pytest.approx(against.mean())
    (told,) = (each.getMessage() for each in caplog.records if each.name == "fedras_jax.frame")
    expected = f"against {against.mean():.1f} items on average, {against.min()} at least: HR@10"
    assert told.startswith(f"synthetic-20x30: held-out items are ranked {expected} and")
    assert finished[1].summary["clients"]["candidates_least"] == 20
    full = dataclasses.replace(split, candidates=None)
    for asked, expected in ((0, split.n_items), (20, 20)):
        unseen = split.n_items - np.diff(split.offsets) - 2
        found = n_candidates(spec.replace(candidates=asked), full)
        assert found.tolist() == np.minimum(unseen, expected).tolist()


def test_options_that_do_not_exist_are_refused_with_the_nearest():
    with pytest.raises(SpecError, match="unknown option 'work_dir', did you mean workdir"):
        fedras_jax.run(SMALL, work_dir="here")
    with pytest.raises(SpecError, match=r"unknown option 'x': there are workdir, .* data_dir, dev"):
        fedras_jax.run(SMALL, x=1)
    with pytest.raises(SpecError, match="did you mean memory_gib"):
        fedras_jax.sweep(SMALL, {"seed": [0]}, memory=1)
    with pytest.raises(SpecError, match="did you mean rounds_at_once"):
        stream(SMALL, round_at_once=1)


def test_nothing_to_evaluate_is_an_error():
    clients = np.arange(5)
    lonely = fedras_jax.data.Interactions.from_columns(clients, clients, name="lonely")
    with pytest.raises(SpecError, match="lonely: no client has a test item"):
        fedras_jax.run(SMALL.replace(cohort_size=2), interactions=lonely)


def test_the_last_evaluation_is_on_disk_where_a_run_goes_on_with_fewer_rounds(tmp_path, mesh):
    """Its round was written before, without it."""

    class Told:
        asked = 0

        def __call__(self):
            self.asked += 1
            return self.asked == 1

    spec = SMALL.replace(eval_every=4, rounds=8)
    with pytest.raises(StoppedError):
        fedras_jax.run(spec, workdir=tmp_path, mesh=mesh, checkpoint_every=2, stop=Told())
    found = fedras_jax.run(spec.replace(rounds=2), workdir=tmp_path, mesh=mesh)
    table = pq.read_table(tmp_path / "rounds.parquet").to_pylist()
    assert (
        table[-1]["ndcg@10"] == found.rounds[-1]["ndcg@10"] == found.summary["metrics"]["ndcg@10"]
    )
    assert len(table) == 2


def test_sizes_that_a_device_cannot_count_are_refused(mesh):
    with pytest.raises(SpecError, match=r"fewer than 2\*\*31 for a client's \d+ training items"):
        fedras_jax.run(SMALL.replace(negatives=2**30), mesh=mesh)
    many = np.broadcast_to(np.int32(0), 2**31)
    with pytest.raises(SpecError, match=r"2,147,483,648 training items are too many"):
        histories(dataclasses.replace(split_of(SMALL), items=many))


def test_columns_have_names_of_their_own(tmp_path, mesh):
    """A Spec may name them, and they are part of it."""
    lines = [f"{u},{i},x" for u in range(8) for i in range(u % 3, 20, 2)]
    (tmp_path / "own.csv").write_text("\n".join(["visitor,track,time", *lines]))
    spec = SMALL.replace(dataset=str(tmp_path / "own.csv"), cohort_size=4, rounds=2, candidates=5)
    with pytest.raises(DataError, match=r"found the columns visitor, track, time; .*dataset_arg"):
        fedras_jax.run(spec, mesh=mesh)
    named = spec.replace(dataset_args={"user": "visitor", "item": "track", "time": None})
    result = fedras_jax.run(named, mesh=mesh, workdir=tmp_path / "here")
    assert result.split.n_clients == 8
    assert results.load(tmp_path / "here")["dataset_args.user"].to_pylist() == ["visitor"]
    assert Spec.from_json(named.to_json()) == named
    assert named.digest() != spec.digest()
    with pytest.raises(SpecError, match="dataset_args: user must be a column's name, not 3"):
        spec.replace(dataset_args={"user": 3})
