"""The binaries as a user calls them: exit codes, messages, files."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fedras_jax.data.store import open_store

ROOT = Path(__file__).parents[2]
SMALL = (
    "--dataset=synthetic:40x60x8",
    "--dim=4",
    "--rounds=2",
    "--eval_every=1",
    "--cohort_size=6",
    "--candidates=10",
    "--noprogress",
)


def call(binary, *flags):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{binary}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_run_prints_and_writes_its_summary(tmp_path):
    done = call("run", *SMALL, "--codec=directional", "--codec_arg=k=4", f"--workdir={tmp_path}/r")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "r/summary.json").read_text())
    assert json.loads(done.stdout)["spec"]["codec_args"] == {"k": 4}


def test_run_takes_policies_and_logs_clients(tmp_path):
    done = call(
        *("run", *SMALL, "--codec=directional", "--codec_arg=k=4", "--rounds=3"),
        *("--budget=schedule", "--budget_arg=k=[2,4]", "--budget_arg=until=[1]"),
        *("--profile=mobile", "--profile_arg=failure=0.1"),
        *("--arrival=buffered", "--arrival_arg=in_flight=12"),
        *("--log_clients", f"--workdir={tmp_path}/r"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clock"]["seconds"] > 0
    log = pq.read_table(tmp_path / "r/clients.parquet").to_pydict()
    assert log["round"] == [1] * 6 + [2] * 6 + [3] * 6
    assert set(log["n_actions"][:6]) <= {2}
    assert set(log["n_actions"][6:]) <= {4}
    # Twelve are at work at once, nobody twice.
    assert len(set(log["client"][:12])) == 12


def test_compare_writes_table_plot_and_runs(tmp_path):
    done = call(
        "compare",
        *SMALL,
        "--arm=dense",
        "--arm=actions:k=4,dtype=float16",
        "--seeds=0,1",
        f"--workdir={tmp_path}/c",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "c/dense/seed1/summary.json").read_text())["speed"]["runs"] == 2
    table = done.stdout.splitlines()
    assert any(line.startswith("dense") for line in table)
    assert any(line.startswith("actions:k=4,dtype=float16") for line in table)
    found = {str(p.relative_to(tmp_path / "c")) for p in (tmp_path / "c").rglob("*.*")}
    assert {
        "comparison.csv",
        "comparison.png",
        "dense/seed0/summary.json",
        "actions-k4-dtypefloat16/seed0/rounds.parquet",
    } <= found


def test_pareto_writes_its_tables_and_goes_on_where_it_stopped(tmp_path):
    flags = [
        *(flag for flag in SMALL if flag != "--noprogress"),
        "--arm=directional:k=4",
        "--arm=dense:spec.dim=2",
        "--seeds=0,1",
        f"--workdir={tmp_path}/p",
    ]
    done = call("pareto", *flags)
    assert done.returncode == 0, done.stderr
    assert "[1/3] dense: NDCG@10" in done.stdout  # the baseline, though it was not named
    assert "2 seeds: not a claim" in done.stdout
    folder = tmp_path / "p"
    assert {"pareto.csv", "rivals.csv", "pareto.png"} <= {f.name for f in folder.iterdir()}
    assert "\n6 runs in " in done.stdout
    with (folder / "pareto.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"dense", "directional:k=4", "dense:spec.dim=2"}
    assert float(rows["dense"]["up_bytes"]) == 20 + 60 * 4 * 4
    assert float(rows["dense:spec.dim=2"]["up_bytes"]) == 20 + 60 * 2 * 4

    tables = [(folder / name).read_bytes() for name in ("pareto.csv", "rivals.csv")]
    removed = folder / "dense-spec.dim2/seed1"
    kept = (folder / "dense/seed0/summary.json").stat().st_mtime_ns
    (removed / "summary.json").unlink()
    again = call("pareto", *flags)
    assert again.returncode == 0, again.stderr
    assert (removed / "summary.json").exists()
    # What earlier calls ran counts, what this one loads does not.
    assert "\n7 runs in " in again.stdout
    with (folder / "wall_time.csv").open() as file:
        times = [(row["arm"], row["runs"]) for row in csv.DictReader(file)]
    assert times == [
        ("dense", "2"),
        ("directional:k=4", "2"),
        ("dense:spec.dim=2", "2"),
        ("dense:spec.dim=2", "1"),
    ]
    assert (folder / "dense/seed0/summary.json").stat().st_mtime_ns == kept
    assert [(folder / name).read_bytes() for name in ("pareto.csv", "rivals.csv")] == tables


@pytest.mark.long
def test_pareto_tunes_on_the_validation_item_and_leaves_out_what_diverges(tmp_path):
    done = call(
        "pareto",
        *SMALL,
        "--arm=dense:spec.client_lr=1e9",
        "--tune",
        "--lrs=0.25,1e9",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    assert "dense:spec.client_lr=1e9 diverged, and is left out" in done.stdout
    tried = json.loads((tmp_path / "tune/dense/lr0.25/summary.json").read_text())["spec"]
    assert (tried["evaluate_on"], tried["client_lr"]) == ("valid", 0.25)
    chosen = json.loads((tmp_path / "dense/seed0/summary.json").read_text())["spec"]
    assert (chosen["evaluate_on"], chosen["client_lr"]) == ("test", 0.25)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seeds=0", "--workdir is needed"),
        ("--seeds=0,0", "--seeds=0,0: expected different seeds"),
        ("--margin=-1", "--margin must not be negative"),
        ("--arm=dense:spec.seed=1", "spec.seed names no field that arms may differ in"),
    ],
)
def test_mistakes_of_pareto_are_one_line(flag, message):
    done = call("pareto", *SMALL, flag)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--codec=zip"], "unknown codec 'zip': choose one of actions, colr, count_sketch, dense"),
        (["--codec_arg=k"], "--codec_arg=k: expected NAME=VALUE"),
        (["--dataset=ml-2m"], "ml-2m"),
        (["--dataset=/no/such/ratings.csv"], "/no/such/ratings.csv"),
        ([*SMALL, "--cohort_size=41"], "cohort of 41 clients, but there are 40"),
        (["actions"], "unexpected argument 'actions'"),
        (["--devices=0"], "--devices must be at least 1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(flags, message):
    done = call("run", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().startswith("error: ")
    assert done.stdout == ""


def test_divergence_exits_with_code_2_and_keeps_the_rounds(tmp_path):
    done = call("run", *SMALL, "--codec=dense", "--client_lr=1e9", f"--workdir={tmp_path}/r")
    assert done.returncode == 2
    assert "diverged" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "r/rounds.parquet").exists()


def test_help_lists_the_flags_of_an_experiment():
    done = call("run", "--help")
    for flag in ("--codec", "--codec_arg", "--cohort_size", "--workdir", "--chunk_size"):
        assert flag in done.stdout


@pytest.mark.long
def test_inference_attacks_payloads(tmp_path):
    done = call(
        "inference",
        *SMALL,
        "--model=mf",
        "--arm=rows",
        "--arm=colr:rank=2",
        "--shares=0,1",
        "--clients=10",
        f"--workdir={tmp_path}/i",
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(",") for line in (tmp_path / "i/inference.csv").read_text().splitlines()]
    attacks = ["touched", "history", "known_side", "repeats_precision", "repeats_recall"]
    assert rows[0] == ["arm", "share", "rows", "bytes", *attacks]
    # All that is sent was touched; with a pseudo-item each, as much of it as there are others,
    # unless they give themselves away.
    touched = {(row[0], row[1], row[2]): float(row[4]) for row in rows[1:]}
    for arm in ("rows", "colr:rank=2"):
        assert touched[arm, "0.0", "none"] == touched[arm, "1.0", "zero"] == 1.0
        assert touched[arm, "1.0", "mixed"] < 0.7
    # All of a history is sent each time, and of all else a part by chance: of what a payload holds
    # a fifth or less is of it.
    for *_, history, known_side, precision, recall in rows[1:]:
        assert float(known_side) >= float(history)
        assert float(recall) > 0.95
        assert float(precision) > 0.4


def test_inference_takes_plain_arms():
    done = call("inference", *SMALL, "--arm=rows:spec.dim=8")
    assert done.returncode == 2
    assert "here an arm is a codec and its settings alone" in done.stderr


@pytest.mark.long
def test_heterogeneity_times_arms_on_scenarios(tmp_path):
    churn = ":failure=0.2,availability=0.7,session=2"
    flags = [
        *SMALL,
        "--rounds=4",
        f"--scenario=mobile{churn}",
        f"--scenario=constrained{churn}",
        "--arm=directional:k=4,spec.budget=adaptive,spec.snapshot_bits=5",
        f"--workdir={tmp_path}",
    ]
    done = call("heterogeneity", *flags)
    assert done.returncode == 0, done.stderr
    # Dense trains the same on both; what adapts to speeds does not.
    assert done.stdout.startswith("0 of 4 runs are there; 3 have to be run, and 1 are re-timed")
    for name, clock in (("mobile", "run"), ("constrained", "re-timed")):
        here = tmp_path / f"{name}-failure0.2-availability0.7-session2"
        with (here / "timing.csv").open() as file:
            dense, ours = csv.DictReader(file)
        assert float(dense["round_s"]) > float(ours["round_s"]) > 0
        assert float(ours["up_bytes"]) < 200
        assert (dense["downlink"], ours["downlink"]) == ("dense", "table in 5 bits")
        assert (dense["clock"], ours["clock"]) == (clock, "run")
        assert (here / "tiers.csv").exists()
        for plot in ("timing.png", "tiers.png"):
            assert (here / plot).stat().st_size > 10_000
    # A part of the grid, and an arm that has not been run.
    flags.remove(f"--scenario=mobile{churn}")
    again = call("heterogeneity", *flags, "--norun", "--arm=rows")
    assert again.stdout.startswith("2 of 3 runs are there; 1 have to be run")
    assert "rows is not there yet for all seeds" in again.stdout
    ours = "adaptive,spec.snapshot_bits=5"
    shown = [line for line in done.stdout.splitlines() if ours in line]
    assert set(shown[-3:]) <= set(again.stdout.splitlines())
    assert call("heterogeneity", *SMALL).returncode == 2  # no workdir


def test_a_store_is_made_and_streamed(tmp_path):
    made = call("convert", "--dataset=synthetic:40x60x8", f"--store={tmp_path}/s", "--noprogress")
    assert made.returncode == 0, made.stderr
    assert "40 clients, 60 items" in made.stdout
    again = call("convert", "--dataset=synthetic:40x60x8", f"--store={tmp_path}/s", "--noprogress")
    assert again.returncode == 2
    assert "already holds a store" in again.stderr
    flags = (
        "--codec=dense",
        "--sampler=rotation",
        "--sampler_arg=size=20",
        f"--dataset={tmp_path}/s",
    )
    done = call("stream", *SMALL, *flags, f"--workdir={tmp_path}/r", "--private_on=disk")
    assert done.returncode == 0, done.stderr
    assert "private state (0.000 GiB) on disk" in done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "r/summary.json").read_text())
    assert pq.read_table(tmp_path / "r/ranks.parquet")["drawn"].to_pylist() == [1] * 40


def test_the_default_dataset_can_be_converted(tmp_path):
    made = call("convert", f"--store={tmp_path}/s", "--noprogress")
    assert made.returncode == 0, made.stderr
    assert "671 clients, 9,066 items" in made.stdout
    assert open_store(tmp_path / "s").name == "ml-latest-small-2016"


def test_columns_are_named_and_ignored_when_converting(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("1,item,rating,time\n7,8,,yesterday\n7,9,,\n")
    flags = ("convert", f"--dataset={path}", f"--store={tmp_path}/s", "--dataset_arg=user=1")
    refused = call(*flags, "--noprogress")
    assert refused.returncode == 2
    assert "time values are not numbers" in refused.stderr
    made = call(*flags, "--dataset_arg=time=", "--noprogress")
    assert made.returncode == 0, made.stderr
    assert open_store(tmp_path / "s").client_ids.tolist() == [7]
