"""The binaries as a user calls them: exit codes, messages, files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
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


def test_compare_writes_table_plot_and_runs(tmp_path):
    done = call(
        "compare",
        *SMALL,
        "--arm=dense",
        "--arm=actions:k=4,dtype=float16",
        f"--workdir={tmp_path}/c",
    )
    assert done.returncode == 0, done.stderr
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--codec=zip"], "unknown codec 'zip': choose one of actions, dense, directional, rows"),
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
