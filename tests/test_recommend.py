"""What a run recommends is what its own table and vectors say, read back from its folder."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import fedras_jax
from fedras_jax import assembly, checkpoint, cohort, results
from fedras_jax.data import Interactions
from fedras_jax.errors import DataError, ResultsError, SpecError
from fedras_jax.recommend import Item, recommend
from fedras_jax.spec import Spec

SPEC = Spec(
    dataset="synthetic:60x90x12",
    dim=8,
    rounds=4,
    cohort_size=10,
    batch_size=32,
    candidates=0,
    codec="directional",
    codec_args={"k": 4},
    downlink="directional",  # so that what clients hold is not the server's own table
    downlink_args={"k": 8},
)


def own_data() -> Interactions:
    """The synthetic data under names of its own: ids out of order, every other item titled."""
    plain = fedras_jax.load(SPEC.dataset, seed=SPEC.data_seed)
    return Interactions(
        name="named",
        client_ids=np.array([f"user-{7 * u % 60:02d}" for u in range(60)]),
        item_ids=1000 + np.arange(90),
        offsets=plain.offsets,
        items=plain.items,
        times=plain.times,
        titles=np.array([f"Film {i}" if i % 2 else "" for i in range(90)]),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder, and its result."""
    workdir = tmp_path_factory.mktemp("recommend") / "run"
    mesh = cohort.client_mesh(1)
    return workdir, fedras_jax.run(SPEC, workdir=workdir, mesh=mesh, checkpoint_every=2)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it to do things to."""
    return shutil.copytree(finished[0], tmp_path / "run")


def plain_scores(result, client: int) -> np.ndarray:
    state = result.state
    return np.asarray(state.public, np.float64) @ np.asarray(state.clients[client], np.float64)


@pytest.mark.parametrize("client", [0, 17, 59])
def test_scores_are_dot_products_of_what_the_client_holds(finished, client):
    workdir, result = finished
    assert not np.array_equal(result.state.public, result.state.items)
    found = recommend(workdir, client, top=90)
    expected = plain_scores(result, client)
    for entry in (*found.items, found.held_out):
        assert entry.score == pytest.approx(expected[entry.item.row], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("client", [0, 17, 59])
def test_all_unseen_items_are_recommended_once_and_best_first(finished, client):
    workdir, result = finished
    found = recommend(workdir, client, top=1000)
    split = result.split
    seen = {
        *split.items[split.offsets[client] : split.offsets[client + 1]].tolist(),
        int(split.valid[client]),
    }
    rows = [entry.item.row for entry in found.items]
    assert sorted(rows) == sorted(set(range(90)) - seen)
    assert {item.row for item in found.history} == seen
    expected = plain_scores(result, client)
    assert rows == sorted(rows, key=lambda row: -expected[row])
    # Fewer are the first of these.
    assert recommend(workdir, client, top=3).items == found.items[:3]


def test_the_rank_is_the_one_that_the_run_was_evaluated_by(finished):
    workdir, result = finished  # among all unseen items, as candidates=0 asks for
    for client in range(0, 60, 7):
        found = recommend(workdir, client)
        assert found.held_out.rank == result.ranks[client]
        assert found.held_out.item.row == result.split.test[client]
        assert found.held_out.item.role == "test"
        assert found.held_out.of == 90 - len(found.history)


def test_history_is_in_the_order_of_time_and_tells_what_was_not_trained_on(finished):
    workdir, result = finished
    own = fedras_jax.load(SPEC.dataset, seed=SPEC.data_seed).history(17)
    found = recommend(workdir, 17)
    assert [item.row for item in found.history] == own[:-1].tolist()  # the last one is held out
    assert [item.role for item in found.history] == ["training"] * (own.size - 2) + ["valid"]
    assert result.split.valid[17] == found.history[-1].row


def test_clients_and_items_go_by_the_ids_and_titles_of_the_dataset(finished):
    workdir, _ = finished
    plain = recommend(workdir, 17)
    assert (plain.client, plain.has_titles) == (17, False)
    assert all(item.id == item.row and item.title == "" for item in plain.history)
    data = own_data()
    found = recommend(workdir, data.client_ids[17].item(), interactions=data)
    assert (found.client, found.has_titles) == (f"user-{7 * 17 % 60:02d}", True)
    assert [entry.score for entry in found.items] == [entry.score for entry in plain.items]
    for item in found.history:
        title = f"Film {item.row}" if item.row % 2 else ""
        assert item == Item(item.row, 1000 + item.row, title, item.role)


def test_a_client_may_be_named_as_text(finished):
    assert recommend(finished[0], "17") == recommend(finished[0], 17)


def test_the_bundled_dataset_has_titles():
    data = fedras_jax.load("ml-latest-small-2016")
    titles = dict(zip(data.item_ids.tolist(), data.titles.tolist(), strict=True))
    assert "Toy Story" in titles[1]
    assert sum(map(bool, titles.values())) > 0.99 * len(titles)


def test_rounds_in_which_the_client_took_part_are_told(finished):
    workdir, _ = finished
    drawn = results.read_columns(workdir / "ranks.parquet")["drawn"]
    assert drawn.sum() == 40
    assert drawn.min() == 0  # so that both kinds are here
    for client in (int(drawn.argmin()), int(drawn.argmax())):
        assert recommend(workdir, client).trained == drawn[client]


def test_shared_parameters_count_too(tmp_path):
    spec = SPEC.replace(model="gmf", rounds=2, codec="rows", codec_args={})
    spec = spec.replace(downlink="dense", downlink_args={}, evaluate_on="valid")
    mesh = cohort.client_mesh(1)
    result = fedras_jax.run(spec, workdir=tmp_path, mesh=mesh, checkpoint_every=2)
    state = result.state
    weight = np.asarray(state.clients[5]) * np.asarray(state.shared["weight"])
    expected = np.asarray(state.public) @ weight + float(state.shared["bias"])
    found = recommend(tmp_path, 5)
    np.testing.assert_allclose(
        [entry.score for entry in found.items],
        [expected[entry.item.row] for entry in found.items],
        rtol=1e-4,
        atol=1e-6,
    )
    assert found.held_out.item.role == "valid"
    assert found.held_out.rank == result.ranks[5]
    assert [item.role for item in found.history].count("test") == 1


def test_a_folder_with_one_run_below_stands_for_it(folder):
    assert recommend(folder.parent, 3) == recommend(folder, 3)


def test_reading_changes_nothing(folder):
    def files():
        return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}

    before = files()
    recommend(folder, 3)
    assert files() == before


def test_top_below_one_is_refused(finished):
    with pytest.raises(SpecError, match="top must be at least 1, not 0"):
        recommend(finished[0], 3, top=0)


@pytest.mark.parametrize("client", [60, "060", -1, "user"])
def test_an_unknown_client_is_told_who_is_there(finished, client):
    message = f"has no client '{client}': there are 60, such as 0, 1, 2, 3, 4"
    with pytest.raises(SpecError, match=message):
        recommend(finished[0], client)


def test_no_folder_and_no_run(tmp_path):
    with pytest.raises(ResultsError, match="nowhere is no folder"):
        recommend(tmp_path / "nowhere", 3)
    with pytest.raises(ResultsError, match=r"there is no folder with a spec\.json"):
        recommend(tmp_path, 3)


def test_several_runs_are_named(folder):
    shutil.copytree(folder, folder.parent / "other")
    with pytest.raises(ResultsError, match=r"holds 2 runs: name one of them, as in .*other, .*run"):
        recommend(folder.parent, 3)


def test_unfinished_and_diverged_runs_have_no_model(folder):
    (folder / "summary.json").unlink()
    with pytest.raises(ResultsError, match="is not a finished run: the command that began it"):
        recommend(folder, 3)
    results.write_json(folder / "diverged.json", {"round": 3, "message": "oh"})
    with pytest.raises(ResultsError, match="has no model: training diverged in round 3"):
        recommend(folder, 3)


def test_a_run_without_checkpoint_says_how_to_get_one(folder):
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ResultsError) as error:
        recommend(folder, 3)
    assert "holds no checkpoint, so its model is lost" in str(error.value)
    assert "--checkpoint_every=500" in str(error.value)
    assert "--keep_models" in str(error.value)


def test_a_checkpoint_from_before_the_end_is_refused(folder):
    shutil.rmtree(folder / "checkpoints/4")
    assert checkpoint.rounds_in(folder) == [2]
    with pytest.raises(ResultsError, match="ended with round 4, and its last checkpoint is of rou"):
        recommend(folder, 3)


def test_a_checkpoint_of_another_experiment_is_refused(folder):
    for name in ("spec", "summary"):
        content = json.loads((folder / f"{name}.json").read_text())
        content.get("spec", content)["seed"] = 5
        results.write_json(folder / f"{name}.json", content)
    with pytest.raises(ResultsError, match=r"of another experiment \(seed: 0, not 5\)"):
        recommend(folder, 3)


def test_other_data_than_the_run_was_trained_on_is_refused(finished, monkeypatch):
    other = fedras_jax.synthetic(60, 91, mean_interactions=12)
    with pytest.raises(DataError, match=r"is not what .* was trained on: it has 60 clients and a"):
        recommend(finished[0], 3, interactions=other)
    # Nothing is restored for that.
    monkeypatch.setattr(checkpoint, "restore", None)
    assert assembly.split_of(SPEC, interactions=other).n_items == 91
    with pytest.raises(DataError):
        recommend(finished[0], 3, interactions=other)


def test_other_data_of_the_same_sizes_is_refused(finished):
    plain = fedras_jax.load(SPEC.dataset, seed=SPEC.data_seed)
    other = dataclasses.replace(plain, items=89 - plain.items)
    with pytest.raises(ResultsError, match="holds a run on other data"):
        recommend(finished[0], 3, interactions=other)
