"""Any number of runs as one table: all of them, with what each has, and nothing made up."""

import json
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedras_jax import metrics, results
from fedras_jax.errors import ResultsError
from fedras_jax.results import index
from fedras_jax.spec import Spec

DENSE = Spec(codec="dense", rounds=4, eval_every=2)
ACTIONS = DENSE.replace(codec="actions", codec_args={"k": 8})
DIVERGED = {"round": 3, "message": "loss is not finite"}


def rounds_of(n, first=1):
    columns = {"round": np.arange(first, first + n), "loss": np.linspace(1, 0.5, n)}
    return columns | {"hr@10": [0.5 if r % 2 == 0 else None for r in columns["round"]]}


def claimed(folder, spec):
    folder.mkdir(parents=True)
    results.write_json(folder / "spec.json", spec.to_json())
    return folder


def finished(folder, spec, ranks=(1, 0, 30), **changes):
    """A run that has finished, as `run` writes it."""
    claimed(folder, spec)
    ranks = np.array(ranks, np.int32)
    results.write_table(folder / "rounds.parquet", rounds_of(spec.rounds))
    results.write_table(
        folder / "ranks.parquet", {"client": np.arange(ranks.size, dtype=np.int32), "rank": ranks}
    )
    summary = {
        "spec": spec.to_json(),
        "metrics": metrics.summarise(ranks),
        "payload": {"up_bytes_mean": 100.0, "down_bytes_mean": 200.0},
        "clock": {"seconds": 9.0},
        "clients": {"total": ranks.size, "not_evaluated": 1},
        "speed": {"clients_per_s": 10.0},
        "env": {"device": "cpu"},
        "state_digest": "0",
    }
    results.write_json(folder / "summary.json", summary | changes)
    return folder


@pytest.fixture
def four(tmp_path):
    """A run of each kind, at different depths."""
    finished(tmp_path / "dense" / "seed0", DENSE)
    finished(tmp_path / "runs" / "deep" / "x", ACTIONS.replace(seed=1), ranks=(2, 0, 2))
    bad = claimed(tmp_path / "bad", DENSE.replace(client_lr=9.0))
    results.write_json(bad / "diverged.json", DIVERGED)
    results.write_table(bad / "rounds.parquet", rounds_of(3))
    half = claimed(tmp_path / "half", DENSE.replace(codec="directional", codec_args={"k": 4}))
    for first, name in ((1, "00000002"), (3, "00000003")):
        (half / "rounds.parts").mkdir(exist_ok=True)
        results.write_table(
            half / "rounds.parts" / f"{name}.parquet", rounds_of(2 if first == 1 else 1, first)
        )
    return tmp_path


def by_folder(table):
    rows = {}
    for row in table.to_pylist():
        rows.setdefault(os.path.basename(row["folder"]), []).append(row)
    return rows


def test_a_row_a_run_with_fields_arguments_and_figures(four):
    table = results.load(four)
    rows = {name: row for name, (row,) in by_folder(table).items()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "seed0": "finished",
        "x": "finished",
        "bad": "diverged",
        "half": "unfinished",
    }
    assert rows["seed0"]["digest"] == DENSE.digest()
    assert rows["x"]["codec_args.k"] == 8
    assert rows["seed0"]["codec_args.k"] is None
    assert rows["x"]["hr@10"] == 1.0
    assert rows["seed0"]["hr@10"] == 0.5
    assert rows["bad"]["hr@10"] is None
    assert rows["seed0"]["payload.up_bytes_mean"] == 100.0
    assert rows["seed0"]["clients.total"] == 3
    assert rows["seed0"]["env.device"] == "cpu"
    assert (rows["bad"]["diverged.round"], rows["bad"]["diverged.message"]) == tuple(
        DIVERGED.values()
    )
    assert table.schema.field("client_lr").type == pa.float64()
    assert table.schema.field("min_rating").type == pa.float64()
    assert table.schema.field("validation").type == pa.bool_()
    assert table.schema.field("seed").type == pa.int64()


def test_arguments_whose_types_clash_are_strings(tmp_path):
    finished(tmp_path / "a", ACTIONS.replace(budget_args={"k": 2}))
    schedule = {"budget": "schedule", "budget_args": {"k": [2, 4], "until": [1]}}
    finished(tmp_path / "b", ACTIONS.replace(**schedule))
    table = results.load(tmp_path)
    assert table["budget_args.k"].to_pylist() == ["2", "[2, 4]"]


def test_rounds_are_those_of_unfinished_and_diverged_runs_too(four):
    rows = by_folder(results.load(four, "rounds"))
    assert {name: len(of) for name, of in rows.items()} == {
        "seed0": 4,
        "x": 4,
        "bad": 3,
        "half": 3,
    }
    assert [row["round"] for row in rows["half"]] == [1, 2, 3]
    assert {row["seed"] for row in rows["x"]} == {1}
    assert {row["digest"] for row in rows["seed0"]} == {DENSE.digest()}
    assert [row["hr@10"] for row in rows["seed0"]] == [None, 0.5, None, 0.5]


def test_parts_that_overlap_with_what_came_before_count_once(tmp_path):
    half = claimed(tmp_path / "half", DENSE)
    results.write_table(half / "rounds.parquet", rounds_of(3))
    (half / "rounds.parts").mkdir()
    results.write_table(half / "rounds.parts" / "00000004.parquet", rounds_of(3, 2))
    assert results.load(half, "rounds")["round"].to_pylist() == [1, 2, 3, 4]


def test_newer_parts_win_over_an_older_finished_table_by_both_roads(tmp_path):
    """As after a run over a finished one that was killed: it is read, and it goes on."""
    folder = finished(tmp_path / "run", DENSE)
    (folder / "rounds.parts").mkdir()
    for first in (1, 3):  # a part that was written again
        newer = rounds_of(2 if first == 1 else 1, first) | {"loss": [9.0, 8.0][: 4 - first]}
        last = newer["round"][-1]
        results.write_table(folder / "rounds.parts" / f"{last:08d}.parquet", newer)
    read = results.load(folder, "rounds").select(["round", "loss", "hr@10"])
    assert read["round"].to_pylist() == [1, 2, 3]
    assert read["loss"].to_pylist() == [9.0, 8.0, 9.0]
    assert results.Log(folder, "rounds").resume(4).equals(read)
    # What is kept is on disk, and read again.
    assert results.load(folder, "rounds")["loss"].to_pylist() == [9.0, 8.0, 9.0]
    assert results.Log(folder, "rounds").resume(2)["loss"].to_pylist() == [9.0, 8.0]


def test_ranks_are_those_of_finished_runs_and_clients_those_that_were_logged(four):
    rows = by_folder(results.load(four, "ranks"))
    assert {name: [row["rank"] for row in of] for name, of in rows.items()} == {
        "seed0": [1, 0, 30],
        "x": [2, 0, 2],
    }
    assert results.load(four, "clients").num_rows == 0
    columns = {"round": [1, 1], "client": [2, 0], "up_bytes": [5.0, 6.0]}
    results.write_table(four / "bad" / "clients.parquet", columns)
    assert results.load(four, "clients")["up_bytes"].to_pylist() == [5.0, 6.0]


def test_several_paths_count_a_run_once(four):
    twice = results.load([four / "dense", four, four / "dense" / "seed0"])
    assert twice.num_rows == 4


def test_a_run_that_was_taken_up_again_is_not_finished(four):
    results.write_json(four / "dense/seed0/spec.json", DENSE.replace(rounds=9).to_json())
    row = by_folder(results.load(four))["seed0"][0]
    assert (row["status"], row["rounds"], row["hr@10"]) == ("unfinished", 9, None)


def test_older_results_without_a_clock_are_read(tmp_path):
    folder = finished(tmp_path / "old", DENSE)
    summary = json.loads((folder / "summary.json").read_text())
    for content in (summary, summary["spec"]):
        content.pop("clock", None)
        content.pop("profile", None)
    results.write_json(folder / "summary.json", summary)
    results.write_json(folder / "spec.json", summary["spec"])
    row = results.load(tmp_path).to_pylist()[0]
    assert (row["status"], row["profile"], row["digest"]) == ("finished", "ideal", DENSE.digest())


def _no_run(folder):
    (folder / "dense/seed0/spec.json").unlink()


def _unknown_field(folder):
    spec = DENSE.to_json() | {"flavour": "sweet"}
    results.write_json(folder / "dense/seed0/spec.json", spec)


def _no_metrics(folder):
    summary = json.loads((folder / "dense/seed0/summary.json").read_text())
    del summary["metrics"]["hr@10"]
    results.write_json(folder / "dense/seed0/summary.json", summary)


def _no_group(folder):
    summary = json.loads((folder / "dense/seed0/summary.json").read_text())
    del summary["payload"]
    results.write_json(folder / "dense/seed0/summary.json", summary)


def _other_spec(folder):
    results.write_json(folder / "dense/seed0/spec.json", DENSE.replace(dim=8).to_json())


def _torn(name):
    def damage(folder):
        path = folder / "dense/seed0" / name
        path.write_bytes(path.read_bytes()[:-20])

    return damage


def _gone(folder):
    (folder / "dense/seed0/ranks.parquet").unlink()


@pytest.mark.parametrize(
    ("damage", "table", "message"),
    [
        (_no_run, "runs", "no run below"),
        (_unknown_field, "runs", r"spec\.json holds no Spec of this version: unknown field 'flav"),
        (_no_metrics, "runs", r"summary\.json has no 'metrics\.hr@10': written by another version"),
        (_no_group, "runs", r"summary\.json has no 'payload'"),
        (_other_spec, "runs", r"summary\.json is not of the experiment in spec\.json \(dim"),
        (_torn("summary.json"), "runs", r"summary\.json cannot be read"),
        (_torn("rounds.parquet"), "rounds", r"rounds\.parquet cannot be read, it may be half-wr"),
        (_torn("ranks.parquet"), "ranks", r"ranks\.parquet cannot be read, it may be half-wr"),
        (_gone, "ranks", r"ranks\.parquet is not there, though the run has ended"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, damage, table, message):
    finished(tmp_path / "dense/seed0", DENSE)
    damage(tmp_path)
    with pytest.raises(ResultsError, match=message):
        results.load(tmp_path, table)


def test_other_bad_requests_are_errors(tmp_path):
    with pytest.raises(ResultsError, match="no table 'run': choose one of runs, rounds"):
        results.load(tmp_path, "run")
    with pytest.raises(ResultsError, match="is no folder"):
        results.load(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="no path given"):
        results.load([])


@pytest.fixture
def indexed(four, monkeypatch):
    """As `four`, where two runs are many."""
    monkeypatch.setattr(index, "WORTH", 2)
    return four


def _count_reads(monkeypatch):
    """Folders of which a table is read."""
    from fedras_jax.results import find

    read, table = [], find.table
    monkeypatch.setattr(
        find, "table", lambda run, *a, **k: read.append(run.name) or table(run, *a, **k)
    )
    return read


@pytest.mark.parametrize("name", ["runs", "rounds", "ranks"])
def test_an_index_gives_the_same_rows(indexed, name, monkeypatch):
    monkeypatch.setattr(index, "WORTH", 1000)
    plain = by_folder(results.load(indexed, name))
    monkeypatch.setattr(index, "WORTH", 2)
    for _ in range(2):
        assert by_folder(results.load(indexed, name)) == plain
    assert (indexed / f"{name}-index.parquet").exists()


def test_an_index_saves_reading_until_files_change(indexed, monkeypatch):
    results.load(indexed, "rounds")
    read = _count_reads(monkeypatch)
    results.load(indexed, "rounds")
    assert read == ["half"]  # it has not ended
    results.write_table(indexed / "dense/seed0/rounds.parquet", rounds_of(3))
    del read[:]
    rows = by_folder(results.load(indexed, "rounds"))
    assert sorted(read) == ["dense/seed0", "half"]
    assert len(rows["seed0"]) == 3
    # A run that has gone is in no table, though the index knows it.
    for path in (indexed / "bad").iterdir():
        path.unlink()
    assert set(by_folder(results.load(indexed, "rounds"))) == {"seed0", "x", "half"}


def test_an_index_follows_many_changes(indexed):
    results.load(indexed, "rounds")
    for seed in range(2, 5):
        finished(indexed / f"more{seed}", DENSE.replace(seed=seed))
    (indexed / "dense/seed0/summary.json").unlink()
    rows = by_folder(results.load(indexed, "rounds"))
    assert {name: len(of) for name, of in rows.items()} == {
        **{"seed0": 4, "x": 4, "bad": 3, "half": 3},
        **{f"more{seed}": 4 for seed in range(2, 5)},
    }
    known = pq.read_table(indexed / "rounds-index.parquet")
    assert known.num_rows == 4 + 3 + 3 * 4  # no longer the one that runs again


def test_a_damaged_index_is_written_again(indexed):
    expected = by_folder(results.load(indexed))
    path = indexed / "runs-index.parquet"
    path.write_bytes(path.read_bytes()[:-8])
    assert by_folder(results.load(indexed)) == expected
    assert pq.read_table(path).num_rows == 3


def test_an_index_that_cannot_be_written_does_no_harm(indexed, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    assert results.load(indexed).num_rows == 4
    assert results.load(indexed, "rounds").num_rows == 14
    assert not list(indexed.glob("*-index*"))


duckdb = pytest.importorskip("duckdb", reason="the extra 'sql' is not installed")


@pytest.mark.parametrize("worth", [2, 1000])
def test_sql_sees_every_table(four, monkeypatch, worth):
    monkeypatch.setattr(index, "WORTH", worth)
    for _ in range(2):
        counts = results.query(
            four,
            "select status, count(*) as n, sum(r.n) as rounds from runs "
            "join (select folder, count(*) as n from rounds group by all) r using (folder) "
            "group by status order by status",
        )
        assert counts.to_pylist() == [
            {"status": "diverged", "n": 1, "rounds": 3},
            {"status": "finished", "n": 2, "rounds": 8},
            {"status": "unfinished", "n": 1, "rounds": 3},
        ]
        best = results.query(four, "select seed, max(rank) as r from ranks group by all order by 1")
        assert best.to_pylist() == [{"seed": 0, "r": 30}, {"seed": 1, "r": 2}]


def test_sql_over_two_folders_and_a_quote_in_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "WORTH", 1)
    finished(tmp_path / "it's" / "a", DENSE)
    finished(tmp_path / "other" / "a", DENSE.replace(seed=1))
    paths = [tmp_path / "it's", tmp_path / "other"]
    got = results.query(paths, "select seed, count(*) as n from rounds group by all order by seed")
    assert got.to_pylist() == [{"seed": 0, "n": 4}, {"seed": 1, "n": 4}]


def test_without_duckdb_the_extra_is_named(four, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ResultsError, match=r"pip install 'fedras_jax\[sql\]'"):
        results.query(four, "select 1")


def test_sql_that_makes_no_sense_is_an_error(four):
    with pytest.raises(ResultsError, match=r"DuckDB cannot answer: .*flavour"):
        results.query(four, "select flavour from runs")
    with pytest.raises(ResultsError, match=r"DuckDB cannot answer: .*clients"):
        results.query(four, "select * from clients")
    with pytest.raises(ResultsError, match="the statement asks for nothing"):
        results.query(four, "")
