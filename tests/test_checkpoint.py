"""A run that is stopped and goes on ends as one that was not."""

import gc
import json
import logging
import shutil
import tempfile
from pathlib import Path

import absl.logging
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

import fedras_jax
from fedras_jax import checkpoint, cohort
from fedras_jax.errors import ResultsError, SpecError, StoppedError
from fedras_jax.options import Options
from fedras_jax.programs import Kept
from fedras_jax.run import run_group
from fedras_jax.spec import Spec

# Sixty clients, each slower and rarely there after its first seconds, again and again.
FOLDER = tempfile.TemporaryDirectory()  # removed when the process ends
TRACE = Path(FOLDER.name) / "trace.csv"
TRACE.write_text(
    "client,time,compute,up,down,latency,availability,failure,jitter\n"
    + "".join(
        f"{u},0,1e5,{1e6 * (1 + u % 3)},5e6,0.03,1,0.1,0.3\n"
        f"{u},{0.1 + u / 100},5e4,2e5,1e6,0.1,0.8,0.1,0.3\n"
        for u in range(60)
    )
)

SPEC = Spec(
    dataset="synthetic:60x90x12",
    dim=8,
    rounds=8,
    eval_every=3,
    cohort_size=10,
    batch_size=32,
    candidates=20,
    # What a state may hold: feedback, payloads in flight, a velocity, a server's moments, a clock.
    codec="directional",
    codec_args={"k": 8},
    feedback_rows=4,
    budget="schedule",
    budget_args={"k": [8, 4], "until": [3]},
    profile=str(TRACE),
    profile_args={"period": 2.0},
    arrival="buffered",
    arrival_args={"in_flight": 20},
    downlink="directional",
    downlink_args={"k": 8},
    downlink_trend=0.1,
    server_optimizer="adam",
    server_lr=0.01,
)
OPTIONS = {"log_clients": True, "checkpoint_every": 2, "keep": 3}


# Reads of empty files that fail side by side outlive the event loop of Orbax that started them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
KEPT = Kept()  # one program for the whole file


def run(spec, workdir, devices=2, **options):
    (result,) = run_group(
        [spec],
        workdirs=[workdir],
        mesh=cohort.client_mesh(devices) if devices > 1 else None,
        options=Options(devices=devices, **options),
        kept=KEPT if devices == 2 else None,
    )
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has happened to: its folder and its result."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, run(SPEC, workdir, log_clients=True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of one that was stopped after round 4, two segments before its end."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    asked = iter([False, False, True])  # after rounds 2, 3 and 4
    with pytest.raises(StoppedError, match="stopped after round 4 of 8"):
        run(SPEC, workdir, stop=lambda: next(asked), **OPTIONS)
    return workdir


@pytest.fixture
def folder(stopped, tmp_path):
    """A copy of it to do things to."""
    return shutil.copytree(stopped, tmp_path / "run")


def assert_same(workdir, result, whole):
    """Metrics, payload, digest, every row and every file of both runs."""
    other, expected = whole
    assert result.rounds == expected.rounds
    np.testing.assert_array_equal(result.ranks, expected.ranks)
    for entry in ("metrics", "payload", "clock", "clients", "state_digest"):
        assert result.summary[entry] == expected.summary[entry]
    for name in ("rounds", "clients", "ranks"):
        mine, theirs = (pq.read_table(f / f"{name}.parquet") for f in (workdir, other))
        assert mine.equals(theirs), name
    assert not list(workdir.glob("*.parts"))


def test_a_run_goes_on_where_it_was_stopped(folder, whole):
    assert not (folder / "summary.json").exists()
    assert checkpoint.rounds_in(folder) == [2, 4]
    result = run(SPEC, folder, **OPTIONS)
    assert_same(folder, result, whole)
    assert checkpoint.rounds_in(folder) == [4, 6, 8]


@pytest.mark.long
def test_a_run_goes_on_on_another_number_of_devices(folder, whole):
    """Payloads in flight lie on the devices that made them, and go on from wherever they are put.

    One round from the same state, and then rounds whose clients have nearly the same tables: so
    sums differ in their last places, and who is drawn, what is sent and when it arrives does not.
    """
    result = run(SPEC, folder, devices=1, **OPTIONS)
    for row, other in zip(result.rounds, whole[1].rounds, strict=True):
        assert row["up_bytes"] == other["up_bytes"]
        assert row["seconds"] == pytest.approx(other["seconds"], rel=1e-5)
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
    np.testing.assert_allclose(result.state.items, whole[1].state.items, atol=1e-4)


@pytest.mark.long
def test_a_group_goes_on_with_all_that_is_in_flight(tmp_path):
    """Its runs are dealt to the devices whole, so each has payloads on one alone."""
    kept, mesh = Kept(), cohort.client_mesh(2)

    def group(name, **options):
        specs = [SPEC, SPEC.replace(seed=1)]
        places = [tmp_path / name / str(spec.seed) for spec in specs]
        options = Options(log_clients=True, **options)
        return places, run_group(specs, workdirs=places, mesh=mesh, options=options, kept=kept)

    expected = group("whole")
    asked = iter([False, False, True])
    with pytest.raises(StoppedError, match="stopped after round 4 of 8"):
        group("stopped", checkpoint_every=2, stop=lambda: next(asked))
    found = group("stopped", checkpoint_every=2)
    for place, result, *whole in zip(*found, *expected, strict=True):
        assert_same(place, result, whole)
        assert result.state.flight.present.any()


def test_rows_after_the_last_checkpoint_are_run_again(folder, whole):
    """As after `kill -9`: rows of round 3 are there, its checkpoint is not."""
    shutil.rmtree(folder / "checkpoints/4")
    parts = sorted((folder / "rounds.parts").iterdir())
    assert [part.name for part in parts] == [f"{r:08d}.parquet" for r in (2, 3, 4)]
    (folder / "checkpoints/4.orbax-checkpoint-tmp").mkdir()  # it was being written
    result = run(SPEC, folder, log_clients=True)
    assert_same(folder, result, whole)


def _spoil(step):
    """Empty the files that hold a checkpoint's arrays."""
    files = [path for path in step.rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"")


def test_a_torn_checkpoint_falls_back_to_the_one_before(folder, whole, caplog):
    _spoil(folder / "checkpoints/4")
    with caplog.at_level(logging.WARNING):
        result = run(SPEC, folder, **OPTIONS)
    assert_same(folder, result, whole)
    assert "checkpoints/4 is torn, and set aside" in caplog.text
    assert (folder / "checkpoints/torn-4").exists()
    gc.collect()


def test_arrays_that_a_disk_has_changed_are_noticed(folder, caplog):
    about = next((folder / "checkpoints/4/about").glob("metadata"))
    content = json.loads(about.read_text())
    about.write_text(json.dumps(content | {"digest": "0" * 64}))
    with caplog.at_level(logging.WARNING):
        run(SPEC, folder)
    assert "its arrays are not those that were saved" in caplog.text


def test_if_all_are_torn_nothing_is_overwritten(folder):
    for step in (2, 4):
        _spoil(folder / f"checkpoints/{step}")
    with pytest.raises(ResultsError, match=r"no checkpoint in .* can be read \(round 4: .*round 2"):
        run(SPEC, folder)
    assert checkpoint.rounds_in(folder) == [2, 4]
    gc.collect()


def test_more_rounds_extend_a_finished_run(tmp_path, whole):
    short = SPEC.replace(rounds=4)
    run(short, tmp_path / "run", **OPTIONS)
    result = run(SPEC, tmp_path / "run", **OPTIONS)
    # It was evaluated where it ended first, too.
    assert result.rounds[3].pop("hr@10") > 0
    expected = [dict(row) for row in whole[1].rounds]
    assert {k: v for k, v in result.rounds[3].items() if "@" not in k} == expected[3]
    assert result.rounds[:3] + result.rounds[4:] == expected[:3] + expected[4:]
    assert result.summary["state_digest"] == whole[1].summary["state_digest"]
    assert result.summary["rounds"] == 8


def test_fewer_rounds_than_there_are_are_refused(folder):
    with pytest.raises(ResultsError, match="is at round 4, beyond rounds=3: ask for more rounds"):
        run(SPEC.replace(rounds=3), folder)


def test_a_finished_run_is_left_as_it_is(folder, whole):
    first = run(SPEC, folder, **OPTIONS)
    again = run(SPEC, folder, **OPTIONS)
    assert_same(folder, again, whole)
    speed = ("clients_per_s", "runs")
    assert [again.summary["speed"][k] for k in speed] == [first.summary["speed"][k] for k in speed]


class AgainError(Exception):
    """A run goes on, or begins."""


@pytest.fixture
def no_programs(monkeypatch):
    """Runs have no programs, and must do without."""

    def refuse(*args, **kwargs):
        raise AgainError

    monkeypatch.setattr(Kept, "programs", refuse)


def assert_equal(result, other):
    assert (result.spec, result.summary, result.rounds) == (other.spec, other.summary, other.rounds)
    np.testing.assert_array_equal(result.ranks, other.ranks)
    assert result.split is other.split


def test_a_finished_run_is_read_with_its_state(folder, monkeypatch, request):
    first = run(SPEC, folder, **OPTIONS)
    request.getfixturevalue("no_programs")
    before = (folder / "summary.json").stat().st_mtime_ns
    again = run(SPEC, folder, **OPTIONS)
    assert_equal(again, first)
    assert jax.tree.structure(again.state) == jax.tree.structure(first.state)
    assert checkpoint.digest(again.state) == first.summary["state_digest"]
    assert (folder / "summary.json").stat().st_mtime_ns == before
    # Neither the last checkpoint nor the one before it is of this end.
    shutil.rmtree(folder / "checkpoints/8")
    with pytest.raises(AgainError):
        run(SPEC, folder, log_clients=True)


@pytest.mark.usefixtures("no_programs")
def test_a_finished_run_is_read_if_nothing_else_is_asked_for(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    again = run(SPEC, folder, keep_states=False)
    assert again.state is None
    assert_equal(again, whole[1])
    for spec, options in (
        (SPEC, {}),  # the state, of which there is no checkpoint
        (SPEC, {"keep_states": False, "checkpoint_every": 500}),
        (SPEC, {"keep_states": False, "tensorboard": True}),
        (SPEC.replace(eval_every=4), {"keep_states": False}),
        (SPEC.replace(rounds=9), {"keep_states": False}),
    ):
        with pytest.raises(AgainError):
            run(spec, folder, **options)
    folder = shutil.copytree(whole[0], tmp_path / "other")
    (folder / "ranks.parquet").write_text("torn")
    with pytest.raises(AgainError):
        run(SPEC, folder, keep_states=False)


@pytest.mark.usefixtures("no_programs")
def test_a_finished_run_is_read_that_knew_fewer_fields(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    of_before = {k: v for k, v in SPEC.to_json().items() if k != "reducer_args"}
    (folder / "spec.json").write_text(json.dumps(of_before))
    (folder / "summary.json").write_text(json.dumps(summary | {"spec": of_before}))
    assert run(SPEC, folder, keep_states=False).ranks.size == whole[1].ranks.size
    with pytest.raises(AgainError):
        run(SPEC.replace(eval_every=4), folder, keep_states=False)


def test_checkpoints_of_another_spec_are_refused_with_the_difference(folder, tmp_path):
    other = SPEC.replace(seed=5)
    data = fedras_jax.results.read_data(folder)
    fedras_jax.results.claim(tmp_path / "other", other, data)
    shutil.copytree(folder / "checkpoints", tmp_path / "other/checkpoints")
    with pytest.raises(ResultsError, match=r"of another experiment \(seed: 0, not 5\)"):
        run(other, tmp_path / "other")


def test_checkpoints_of_another_version_are_refused(folder, monkeypatch):
    then, now = checkpoint.VERSION, checkpoint.VERSION + 1
    monkeypatch.setattr(checkpoint, "VERSION", now)
    told = f"holds checkpoints of version {then}, this is version {now}"
    with pytest.raises(ResultsError, match=told):
        run(SPEC, folder)


def test_a_checkpoint_without_its_rows_is_refused(folder):
    (folder / "rounds.parts/00000002.parquet").unlink()
    with pytest.raises(ResultsError, match="but not the rows of all rounds until then"):
        run(SPEC, folder)


def test_a_part_that_is_half_written_is_named(folder):
    (folder / "rounds.parts/00000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResultsError, match=r"00000002\.parquet cannot be read"):
        run(SPEC, folder)


def test_a_full_disk_stops_the_run_and_leaves_what_is_whole(folder, whole, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full)
        with pytest.raises(ResultsError, match=r"cannot be written \(.*No space left on device"):
            run(SPEC, folder, **OPTIONS)
    assert checkpoint.rounds_in(folder) == [2, 4]
    assert_same(folder, run(SPEC, folder, **OPTIONS), whole)


def test_a_log_of_clients_is_whole_or_none(folder, tmp_path):
    """Switched off it leaves nothing of fewer rounds, and it cannot be switched on midway."""
    run(SPEC, folder)
    assert not (folder / "clients.parts").exists()
    assert not (folder / "clients.parquet").exists()
    asked = iter([True])
    with pytest.raises(StoppedError):
        run(SPEC, tmp_path / "bare", stop=lambda: next(asked), checkpoint_every=2)
    with pytest.raises(ResultsError, match="was run for 2 rounds without log_clients"):
        run(SPEC, tmp_path / "bare", log_clients=True)


def test_parts_are_newer_than_the_table_of_an_earlier_run(tmp_path):
    log = fedras_jax.results.Log(tmp_path, "rounds")
    log.write({"round": [1, 2, 3], "x": ["old"] * 3})
    log.finish()
    log.write({"round": [1, 2], "x": ["new"] * 2})
    log.flush()
    found = fedras_jax.results.Log(tmp_path, "rounds").resume(3)
    assert found["x"].to_pylist() == ["new", "new"]
    log.write({"round": [], "x": []})  # nobody was drawn
    log.flush()


def test_a_folder_that_was_claimed_by_half_is_claimed(tmp_path):
    (tmp_path / "spec.json.123.part").write_text("{")
    assert fedras_jax.results.claim(tmp_path, SPEC, {}) == tmp_path


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    saving = checkpoint.Checkpoints(tmp_path, SPEC)
    with pytest.raises(ResultsError, match=r"cannot be written .*earlier checkpoints are whole"):
        saving.save(1, {"x": np.zeros(3)})


def test_event_files_hold_every_round(tmp_path):
    board = pytest.importorskip("tensorboardX")
    run(SPEC.replace(rounds=2), tmp_path / "r", tensorboard=True)
    (path,) = (tmp_path / "r/tensorboard").iterdir()
    records = []
    data = path.read_bytes()
    while data:  # TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        records.append(board.proto.event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    told = {(e.step, v.tag): v.simple_value for e in records for v in e.summary.value}
    assert {step for step, _ in told} == {1, 2}
    assert (2, "ndcg_10") in told  # TensorBoard allows no @


def test_orbax_is_quiet_and_others_are_heard_through_its_logger(tmp_path, caplog):
    level = logging.getLogger("absl").level
    saving = checkpoint.Checkpoints(tmp_path, SPEC)
    with caplog.at_level(logging.INFO, logger="absl"):
        saving.save(1, {"x": np.zeros(3)})
        saving.close()
        absl.logging.info("mine")
    assert [each.getMessage() for each in caplog.records if each.name == "absl"] == ["mine"]
    assert logging.getLogger("absl").level == level


@pytest.mark.parametrize("option", [{"checkpoint_every": -1}, {"keep": 0}, {"devices": 0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(SpecError, match="must be at least"):
        fedras_jax.run(SPEC, **option)


def test_what_is_torn_a_second_time_is_set_aside_too(tmp_path):
    for _ in range(2):
        saving = checkpoint.Checkpoints(tmp_path, SPEC)
        saving.save(1, {"x": np.zeros(3)})
        saving.save(2, {"x": np.ones(3)})
        saving.close()
        for path in (tmp_path / "checkpoints/2").rglob("*"):
            if path.is_file():
                path.write_bytes(b"torn")
        found = checkpoint.restore(tmp_path, SPEC, {"x": np.zeros(3)})
        assert found.round == 1
    assert (tmp_path / "checkpoints/torn-2").is_dir()
