"""Sweeps on other engines than this process: real Ray workers, real submitit jobs."""

import concurrent.futures
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from fedras_jax import engines, results, sweeps
from fedras_jax.errors import SpecError
from fedras_jax.options import Options
from fedras_jax.spec import Spec

BASE = Spec(
    dataset="synthetic:40x60x8",
    dim=4,
    rounds=2,
    eval_every=2,
    cohort_size=6,
    candidates=10,
    codec="dense",
)
AXES = [
    {"zip": {"codec": ["dense", "rows"]}},
    {"grid": {"seed": [0, 1], "client_lr": [0.5, 1e9]}},
]
FIGURES = ("status", "codec", "seed", "client_lr", "hr@10", "payload.up_bytes_mean")


@pytest.fixture(scope="module")
def ray():
    """A Ray of this machine, which takes ten seconds to start."""
    found = pytest.importorskip("ray")
    found.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The same sweep in this process."""
    return sweeps.sweep(BASE, AXES, workdir=tmp_path_factory.mktemp("here"), devices=2)


def _plan(workdir):
    return sweeps.plan(sweeps.expand(BASE, AXES), workdir)


def _devices(table):
    """Of the runs that have finished."""
    return {row["env.devices"] for row in table.to_pylist()} - {None}


def _rows(table):
    """Figures in an order of their own."""
    return sorted(map(str, table.select(FIGURES).to_pylist()))


# Sockets that Ray leaves to the end of the process.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.long
def test_ray_spreads_groups_over_workers(tmp_path, here, ray):
    engine = engines.ray(cpus=1)
    done = list(sweeps.execute(_plan(tmp_path), tmp_path, engine=engine, options=Options()))
    workers = {one.where for one in done}
    assert len(workers) == 2
    assert not any(where.endswith(f":{os.getpid()}") for where in workers)
    assert _rows(results.load(tmp_path)) == _rows(here)


def _workers():
    """Processes of Ray that run a group now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"ray::_in_a_process" in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the worker in /proc")
def test_ray_tries_again_where_a_worker_dies(tmp_path, ray):
    specs = sweeps.expand(BASE.replace(rounds=600), {"seed": [0, 1, 2]})
    options = Options(checkpoint_every=100)
    engine = engines.ray(cpus=1)
    planned = sweeps.plan(specs, tmp_path)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        ended = pool.submit(
            lambda: list(sweeps.execute(planned, tmp_path, engine=engine, options=options))
        )
        while not list(tmp_path.glob("runs/*/checkpoints/100")) and not ended.done():
            time.sleep(0.01)
        (worker,) = _workers()
        os.kill(worker, signal.SIGKILL)
        (done,) = ended.result()
    assert done.error is None
    assert not done.where.endswith(f":{worker}")
    assert results.load(tmp_path)["status"].to_pylist() == ["finished"] * 3


@pytest.mark.long
def test_submitit_runs_groups_as_jobs(tmp_path, here):
    pytest.importorskip("submitit")
    engine = engines.slurm(str(tmp_path / "logs"), cluster="local", timeout_min=5, cpus=2)
    table = sweeps.sweep(BASE, AXES, workdir=tmp_path / "sweep", engine=engine, devices=1)
    assert _rows(table) == _rows(here)
    assert (_devices(table), _devices(here)) == ({1}, {2})  # of two, and of eight


def test_a_group_that_fails_is_told_and_stops_no_other(tmp_path):
    pytest.importorskip("submitit")
    planned = _plan(tmp_path)
    blocked = sweeps.folder_of(tmp_path, planned.groups[0].specs[0])
    blocked.mkdir(parents=True)
    (blocked / "thesis.tex").write_text("irreplaceable")
    engine = engines.slurm(str(tmp_path / "logs"), cluster="local", timeout_min=5)
    first, second = sweeps.execute(planned, tmp_path, engine=engine, options=Options())
    assert "is not empty and holds no run" in first.error
    assert second.error is None
    assert len(second.diverged) == 2
    assert (blocked / "thesis.tex").exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_ray_cluster_that_cannot_be_reached_is_an_error(tmp_path, monkeypatch):
    # Another test's may be here, and would be taken.
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: False)
    engine = engines.ray("127.0.0.1:1")
    with pytest.raises(SpecError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        sweeps.sweep(BASE, {"seed": [0]}, workdir=tmp_path, engine=engine)


@pytest.mark.parametrize(("make", "module"), [(engines.ray, "ray"), (engines.slurm, "submitit")])
def test_a_missing_extra_is_named(monkeypatch, make, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(SpecError, match=rf"needs {module}: pip install 'fedras_jax\["):
        make(*(["logs"] if module == "submitit" else []))
