"""Several processes that run one experiment: the same result, the same end, clear errors."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from hosts_worker import BUFFERED, SPEC

import fedras_jax
from benchmarks import kills
from experiments import distributed
from fedras_jax import cohort, hosts
from fedras_jax.errors import FedrasError, SpecError

WORKER = Path(__file__).with_name("hosts_worker.py")
FLAGS = (
    *("--dataset=synthetic:40x60x8", "--dim=4", "--rounds=8", "--eval_every=4"),
    *("--negatives=1", "--cohort_size=10", "--candidates=20", "--codec=dense"),
    *("--devices=1", "--checkpoint_every=2", "--log_clients"),
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(command) -> subprocess.Popen:
    # Each finds the library of this tree, whatever is installed.
    path = os.pathsep.join([str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_pair(what, folder):
    port = free_port()
    return [start([WORKER, what, i, port, folder]) for i in (0, 1)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes found, and their ends; the second one killed itself in the end."""
    folder = tmp_path_factory.mktemp("pair")
    one, other = start_pair("everything", folder)
    with one, other:
        _, error = other.communicate(timeout=120)
        killed = time.monotonic()
        _, told = one.communicate(timeout=120)
        seconds = time.monotonic() - killed
    assert other.returncode == -signal.SIGKILL, error
    found = [json.loads((folder / f"{i}.json").read_text()) for i in (0, 1)]
    return {"folder": folder, "found": found, "code": one.returncode, "told": told, "s": seconds}


def test_what_one_process_does_all_know(pair):
    one, other = (found["exchanges"] for found in pair["found"])
    assert [one["from_first"], other["from_first"]] == [0, 0]
    assert [one["together"], other["together"]] == [0, 1]
    assert one["any_of"] == other["any_of"] == [True, False]
    assert one["first_fails"] == other["first_fails"] == ["FedrasError", "0 cannot"]
    assert other["other_fails"] == ["FedrasError", "1 cannot"]
    assert one["bug"] == ["FedrasError", "process 1 of 2 has stopped: KeyError('absent')"]
    assert other["bug"] == ["KeyError", "'absent'"]
    assert one["other_fails"] == ["FedrasError", "process 1 of 2 has stopped: 1 cannot"]
    assert [one["own_part"], other["own_part"]] == [[[0, 1]], [[2, 3], [4, 5]]]


def test_processes_with_different_numbers_of_devices_share_clients(pair):
    for found in pair["found"]:
        assert found["shares"] == [3, 55, [2 * i for i in range(11)]]


def test_two_processes_agree_with_one_of_two_devices(pair):
    """What is counted is equal, tables to rounding; and both processes hold the same bits."""
    expected = fedras_jax.run(SPEC, mesh=cohort.client_mesh(2))
    one, other = pair["found"]
    for entry in ("rounds", "ranks"):
        assert one[entry] == other[entry]
    for entry in ("metrics", "payload", "clock", "clients", "state_digest", "env"):
        assert one["summary"][entry] == other["summary"][entry], entry
    for row, wanted in zip(one["rounds"], expected.rounds, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
        for name in ("clients", "up_bytes", "down_bytes"):
            assert row[name] == wanted[name]
    items = np.load(pair["folder"] / "items.npy")
    np.testing.assert_allclose(items, expected.state.items, rtol=0, atol=1e-5)
    assert one["summary"]["payload"] == expected.summary["payload"]
    assert one["summary"]["metrics"] == pytest.approx(expected.summary["metrics"], abs=0.005)
    assert one["summary"]["env"]["processes"] == 2
    assert one["summary"]["env"]["devices"] == 2


def test_two_processes_hold_payloads_in_flight(pair):
    """As one of two devices: seconds are those of clients, and all else is counted."""
    expected = fedras_jax.run(BUFFERED, mesh=cohort.client_mesh(2))
    one, other = (found["buffered"] for found in pair["found"])
    assert one == other
    assert len(one) == 4
    for row, wanted in zip(one, expected.rounds, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)


def test_each_reads_its_part_of_a_segment_and_has_all_of_it(pair):
    one, other = (found["segment"] for found in pair["found"])
    assert one["whole"] == other["whole"] == [True, True]
    assert one["read"] + other["read"] <= one["clients"] + 2  # one at each border is read twice
    assert 0 < one["read"] < one["clients"]
    assert 0 < other["read"] < one["clients"]


def test_without_a_cluster_all_must_be_given(pair):
    text = (
        "JAX finds no cluster here (SLURM, Open MPI, Kubernetes, TPU), so coordinator_address and "
    )
    for found in pair["found"]:
        assert found["nowhere"] == ["SpecError", text + "num_processes must be given"]


def test_only_the_first_writes_and_a_finished_run_is_read(pair):
    summary = json.loads((pair["folder"] / "whole/summary.json").read_text())
    assert summary == pair["found"][0]["summary"]
    assert pair["found"][1]["summary"]["state_digest"] == summary["state_digest"]
    assert [found["again"] for found in pair["found"]] == [True, True]


def test_processes_that_differ_are_refused(pair):
    one, other = (found["refused"] for found in pair["found"])
    for name, text in {
        "spec": "processes differ: client_lr is 0.5 on process 0 and 1.5 on process 1",
        "rounds": "processes differ: rounds is 8 on process 0 and 9 on process 1",
        "options": "processes differ: checkpoint_every is 2 on process 0 and 3 on process 1",
        "store": "processes differ: the store's digest is ",
        "data": "processes differ: the digest of the interactions is ",
        "group": "2 runs in a group, but several processes run one together",
        "mesh": "a mesh with devices of 1 of 2 processes: every process needs one",
    }.items():
        assert one[name] == other[name]
        assert one[name][0] == "SpecError"
        assert one[name][1].startswith(text)
    assert not (pair["folder"] / "refused").exists()
    assert one["devices"] == ["SpecError", "devices=2, but there are 1"]
    assert other["devices"][1] == "process 0 of 2 has stopped: devices=2, but there are 1"
    assert one["folder"] == other["folder"]
    assert "already holds another experiment (seed: 0, not 5)" in one["folder"][1]


def test_one_that_is_told_to_stop_stops_all(pair):
    for found in pair["found"]:
        kind, text = found["stopped"]
        assert kind == "StoppedError"
        assert text.startswith("stopped after round 4 of 8, as asked: the same command goes on")
    assert (pair["folder"] / "stopped/checkpoints/4").exists()


def test_when_one_is_killed_the_others_end_and_the_same_command_goes_on(pair, tmp_path):
    assert pair["code"] == 75
    assert (
        "process 0 of 2 has lost another one, which has died or cannot be reached" in pair["told"]
    )
    assert pair["s"] < 20  # the heartbeats' timeout
    folder = pair["folder"] / "killed"
    assert not (folder / "summary.json").exists()
    assert (folder / "checkpoints/4").exists()
    port = free_port()
    command = ("-m", "experiments.run", *FLAGS, "--distributed", "--num_processes=2")
    where = f"--coordinator_address=127.0.0.1:{port}"
    # The others need no folder, and a bar is shown by the first one only.
    one = start([*command, where, "--process_id=0", f"--workdir={folder}"])
    other = start([*command, where, "--process_id=1", f"--workdir={tmp_path / 'nowhere'}"])
    with one, other:
        (out, told), (nothing, also) = (each.communicate(timeout=120) for each in (one, other))
    assert (one.returncode, other.returncode) == (0, 0), told + also
    assert json.loads(out)["env"]["processes"] == 2
    assert nothing == ""
    assert "8/8" in told
    assert "8/8" not in also
    assert not (tmp_path / "nowhere").exists()
    assert kills.differences(folder, pair["folder"] / "whole") == []


def test_one_that_is_silent_counts_as_dead(tmp_path):
    one, other = start_pair("silent", tmp_path)
    with one, other:
        try:
            assert "silent\n" in iter(other.stdout.readline, "")
            _, told = one.communicate(timeout=60)
        finally:
            other.kill()
    assert one.returncode == -signal.SIGABRT
    assert "another task died" in told


def test_when_the_first_one_is_killed_the_others_end(tmp_path):
    """It held the connection between them, so the runtime may end them before they can tell."""
    one, other = start_pair("headless", tmp_path)
    with one, other:
        assert one.wait(timeout=60) == -signal.SIGKILL
        killed = time.monotonic()
        _, told = other.communicate(timeout=60)
        seconds = time.monotonic() - killed
    assert other.returncode in (75, -signal.SIGABRT), told
    assert told
    assert seconds < 20  # ten times the heartbeats' timeout


def test_processes_that_do_not_come_together_end():
    command = ("-m", "experiments.run", "--distributed", "--initialization_timeout_s=1")
    where = f"--coordinator_address=127.0.0.1:{free_port()}"
    with start([*command, where, "--num_processes=2", "--process_id=1"]) as alone:
        _, told = alone.communicate(timeout=60)
    assert alone.returncode == 75
    assert f"not all processes have come together at {where[22:]} within 1 s" in told


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"coordinator_address": "host"}, "coordinator_address=host: expected HOST:PORT"),
        ({"num_processes": 0}, "num_processes must be at least 1, not 0"),
        ({"process_id": -1}, "process_id must be at least 0, not -1"),
        ({"num_processes": 2, "process_id": 2}, "at least 0 and below num_processes=2, not 2"),
        ({"heartbeat_timeout_s": 0}, "heartbeat_timeout_s must be at least 1, not 0"),
        ({"initialization_timeout_s": 0}, "initialization_timeout_s must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(given, text):
    with pytest.raises(SpecError, match=text):
        hosts.start(**given)


def test_a_port_in_use_is_refused():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SpecError, match=f"cannot listen on port {port}"):
            hosts.start(f"127.0.0.1:{port}", 2, 0)


def test_an_address_without_distributed_is_refused():
    with flagsaver.flagsaver():
        flags.FLAGS(["run", "--coordinator_address=127.0.0.1:1"])
        with pytest.raises(SpecError, match="--coordinator_address needs --distributed"):
            distributed.start()


def test_alone_it_is_as_if_it_were_not_there():
    assert hosts.count() == 1
    assert hosts.is_first()
    assert hosts.from_first(lambda: 3) == hosts.together(lambda: 3) == 3
    assert [hosts.any_of(True), hosts.any_of(False)] == [True, False]
    hosts.require_same({"x": 1})
    hosts.leave(1)  # returns
    with pytest.raises(RuntimeError, match="UNAVAILABLE"), hosts.watched():
        raise RuntimeError("UNAVAILABLE")
    assert isinstance(hosts.put(np.ones(2), None), jax.Array)


class Picky(Exception):
    """Can be pickled, and not be read again."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def test_an_error_that_cannot_be_read_elsewhere_is_told():
    told = pickle.loads(hosts._pickled(hosts._Outcome(None, Picky(1, 2))))
    assert isinstance(told.error, FedrasError)
    assert "1 2" in str(told.error)
