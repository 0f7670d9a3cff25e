"""A binary that is killed or told to stop, and the same command again."""

import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from absl import flags as absl_flags
from binaries import binary

from benchmarks import kills
from fedras_jax import results


def wait_for(child, folder, checkpoints):
    """Until there are so many finished checkpoints."""
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        found = [p for p in folder.glob("checkpoints/*") if p.name.isdecimal()]
        if len(found) >= checkpoints:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {checkpoints} checkpoints: exit code {child.poll()}")


SMALL = (
    *("--dataset=synthetic:40x60x8", "--dim=4", "--rounds=4", "--eval_every=2", "--devices=1"),
    *("--cohort_size=6", "--candidates=10", "--arm=dense", "--arm=rows", "--noprogress"),
)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a binary in this process; returns its exit code and errors."""
    monkeypatch.setattr("experiments.flags.start_devices", lambda: None)

    def calling(name, told, *arguments):
        """`told`: whether it is told to stop, one question after another, and no more."""
        answers = iter(told)

        def asked():
            return next(answers, False)

        monkeypatch.setattr("experiments.flags.stop_when_told", lambda: asked)
        with binary(name) as found:
            try:
                found.main(absl_flags.FLAGS([name, *SMALL, *map(str, arguments)]))
            except SystemExit as end:
                return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return calling


@pytest.mark.parametrize("name", ["compare", "pareto"])
def test_arms_that_are_told_to_stop_go_on_where_they_were(name, call, tmp_path):
    assert call(name, [], f"--workdir={tmp_path}/whole")[0] == 0
    folder = f"--workdir={tmp_path}/told"
    # Before the first arm; after two of four rounds of it; before the second one.
    code, told = call(name, [True], folder)
    assert (code, told) == (
        75,
        "stopped between runs, as asked: the same command goes on from there\n",
    )
    code, told = call(name, [False, True], folder)
    assert (code, told[:33]) == (75, "stopped after round 2 of 4, as as")
    assert (tmp_path / "told/dense/seed0/checkpoints/2").exists()
    assert call(name, [False, True], folder)[0] == 75
    assert (tmp_path / "told/dense/seed0/summary.json").exists()
    assert not (tmp_path / "told/rows").exists()

    assert call(name, [], folder)[0] == 0
    for arm in ("dense", "rows"):
        one, other = (tmp_path / name / arm / "seed0" for name in ("whole", "told"))
        for table in ("rounds", "ranks"):
            tables = [pq.read_table(folder / f"{table}.parquet") for folder in (one, other)]
            assert tables[0].equals(tables[1])
        digests = [results.read_summary(folder)["state_digest"] for folder in (one, other)]
        assert digests[0] == digests[1]
        assert (one / "checkpoints").exists() == (other / "checkpoints").exists()


def test_without_a_folder_nothing_is_kept(call):
    code, told = call("compare", [True])
    assert (code, told) == (75, "stopped between runs, as asked: nothing kept\n")


@pytest.mark.long
def test_sigterm_has_compare_save_and_end(tmp_path):
    run = [flag for flag in kills.DENSE if not flag.startswith(("--codec", "--checkpoint"))]
    run += ["--arm=dense", "--checkpoint_every=50", f"--workdir={tmp_path}/c"]
    command = [sys.executable, "-m", "experiments.compare", *run]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        wait_for(child, tmp_path / "c/dense/seed0", 1)
        child.send_signal(signal.SIGTERM)
        _, told = child.communicate()
    assert child.returncode == 75, told
    assert "as asked: the same command goes on from there" in told


@pytest.mark.long
def test_killed_and_told_to_stop_it_ends_as_if_nothing_had_happened(tmp_path):
    """`python -m benchmarks.kills` does this at a hundred random moments."""
    programs = os.environ["JAX_COMPILATION_CACHE_DIR"]
    kills.finish(tmp_path / "whole", programs, kills.DENSE)

    folder = tmp_path / "run"
    with kills.start(folder, programs, kills.DENSE) as child:
        wait_for(child, folder, 1)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (folder / "summary.json").exists()

    with kills.start(folder, programs, kills.DENSE) as child:
        wait_for(child, folder, 2)
        child.send_signal(signal.SIGTERM)
        _, told = child.communicate()
    assert child.returncode == 75, told
    assert "as asked: the same command goes on from there" in told

    kills.finish(folder, programs, kills.DENSE)
    assert kills.differences(folder, tmp_path / "whole") == []
