"""Finished runs are found again, and nothing else is taken for one."""

import numpy as np
import pytest

from fedras_jax import metrics, results
from fedras_jax.errors import ResultsError
from fedras_jax.spec import Spec

SPEC = Spec(codec="dense", rounds=6)
RANKS = np.array([3, 0, 12, 1], np.int32)


@pytest.fixture
def folder(tmp_path):
    """A finished run of SPEC, as `run` writes it."""
    here = results.claim(tmp_path / "here", SPEC, {})
    results.write_table(here / "ranks.parquet", {"client": np.arange(4), "rank": RANKS})
    summary = {"spec": SPEC.to_json(), "metrics": metrics.summarise(RANKS)}
    results.write_json(here / "summary.json", summary)
    return here


def test_a_finished_run_is_read_back(folder):
    summary, ranks = results.read_finished(folder, SPEC)
    assert summary["metrics"] == metrics.summarise(RANKS)
    assert ranks.dtype == np.int32
    np.testing.assert_array_equal(ranks, RANKS)
    # How often it was evaluated on the way does not matter.
    assert results.read_finished(folder, SPEC.replace(eval_every=3)) is not None


def test_other_runs_are_not_taken_for_it(folder, tmp_path):
    assert results.read_finished(folder, SPEC.replace(seed=1)) is None
    assert results.read_finished(folder, SPEC.replace(rounds=7)) is None
    assert results.read_finished(tmp_path / "nowhere", SPEC) is None
    (folder / "summary.json").unlink()
    assert results.read_finished(folder, SPEC) is None


def test_ranks_of_a_later_run_that_was_killed_are_not_taken_for_it(folder):
    results.write_table(folder / "ranks.parquet", {"client": np.arange(4), "rank": RANKS[::-1] + 1})
    assert results.read_finished(folder, SPEC) is None


@pytest.mark.parametrize("name", ["summary.json", "ranks.parquet"])
def test_files_that_cannot_be_read_are_an_error(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(ResultsError, match="cannot be read"):
        results.read_finished(folder, SPEC)


def test_how_a_run_diverged_is_read_back(tmp_path):
    assert results.read_diverged(tmp_path) is None
    results.write_json(tmp_path / "diverged.json", {"round": 3, "message": "loss nan"})
    assert results.read_diverged(tmp_path) == (3, "loss nan")
    for content in ({"round": 3}, {"round": "soon", "message": ""}):
        results.write_json(tmp_path / "diverged.json", content)
        with pytest.raises(ResultsError, match="has no 'round' or no 'message'"):
            results.read_diverged(tmp_path)


def test_missing_ranks_are_an_error(folder):
    (folder / "ranks.parquet").unlink()
    with pytest.raises(ResultsError, match="cannot be read as a finished run"):
        results.read_finished(folder, SPEC)
