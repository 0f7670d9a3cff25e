"""Sweeps as a user calls them: plans, files, flags on top, mistakes."""

import pytest
from absl import app, flags

from experiments import sweep
from fedras_jax import results

SMALL = (
    *("--dataset=synthetic:40x60x8", "--dim=4", "--rounds=2", "--eval_every=2"),
    *("--cohort_size=6", "--candidates=10", "--codec=dense", "--noprogress", "--devices=1"),
)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the binary in this process; returns its exit code, output and errors."""
    monkeypatch.setattr("experiments.flags.start_devices", lambda: None)
    monkeypatch.setattr("experiments.flags.stop_when_told", lambda: lambda: False)
    flags.FLAGS.unparse_flags()
    saved = {name: flags.FLAGS[name].value for name in flags.FLAGS}

    def run(*arguments):
        flags.FLAGS.unparse_flags()
        for name, value in saved.items():
            flags.FLAGS[name].value = value
            flags.FLAGS[name].present = 0
        with pytest.raises(SystemExit) as end:
            app.run(sweep.main, argv=["sweep", *SMALL, *map(str, arguments)])
        told = capsys.readouterr()
        return end.value.code or 0, told.out, told.err

    yield run
    flags.FLAGS.unparse_flags()
    for name, value in saved.items():
        flags.FLAGS[name].value = value
        flags.FLAGS[name].present = 0


def test_a_file_with_flags_on_top(call, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("base: {codec: rows, rounds: 5}\naxes:\n  - grid: {seed: [0, 1]}\n")
    arguments = (f"--file={path}", "--axis=client_lr=[0.25,0.5]", f"--workdir={tmp_path}/s")
    code, out, err = call(*arguments, "--dry_run")
    assert code == 0, err
    # SMALL gives a codec and rounds, and flags come after the file.
    assert "4 runs: 0 finished, 0 diverged, 4 to run in 1 groups with 1 programs" in out
    assert "4 runs of synthetic:40x60x8, dense" in out
    assert "2 rounds; program 0;" in out
    assert not (tmp_path / "s").exists()

    code, out, err = call(*arguments)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[-6].split()[:4] == ["status", "seed", "client_lr", "hr@10"]
    assert [line.split()[:3] for line in lines[-4:]] == [
        ["finished", seed, lr] for seed in "01" for lr in ("0.25", "0.5")
    ]
    assert not list((tmp_path / "s").glob("runs/*/checkpoints"))
    # Eight are there, and SMALL asks for one.
    assert set(results.load(tmp_path / "s")["env.devices"].to_pylist()) == {1}

    code, out, _ = call(*arguments, "--dry_run")
    assert "4 runs: 4 finished, 0 diverged, 0 to run in 0 groups" in out


def test_an_axis_is_written_as_in_a_sweep_file(call, tmp_path):
    arguments = ("--axis=reducer=[touched_mean,cohort_mean]", f"--workdir={tmp_path}/s")
    code, out, err = call(*arguments, "--dry_run")
    assert code == 0, err
    assert "2 runs: 0 finished" in out


def test_finished_models_are_kept_where_asked_for(call, tmp_path):
    code, _, err = call("--axis=seed=[0,1]", f"--workdir={tmp_path}/s", "--keep_models")
    assert code == 0, err
    assert len(list((tmp_path / "s").glob("runs/*/checkpoints/2"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=w"], "no axes: give --file or --axis=FIELD=[VALUE,...]"),
        (["--axis=seed=[0]"], "--workdir is needed: a sweep is too long to be lost"),
        (["--axis=seed", "--workdir=w"], "--axis=seed: expected FIELD=[VALUE,...]"),
        (["--axis=seed=[0]", "--axis=seed=[1]", "--workdir=w"], "seed is there twice"),
        (["--axis==[0]", "--workdir=w"], "--axis==[0]: expected FIELD=[VALUE,...]"),
        (["--axis=seed=[0", "--workdir=w"], "axis seed: '[0' is neither Python nor YAML"),
        (["--axis=sed=[0]", "--workdir=w"], "unknown axis 'sed'"),
        (["--axis=seed=0", "--workdir=w"], "axis seed: expected a list of values, not 0"),
        (["--axis=seed=[0]", "--shard=2", "--workdir=w"], "--shard=2: expected i/n"),
        (
            ["--axis=seed=[0]", "--engine=ray", "--cpus=2", "--devices=3", "--workdir=w"],
            "--devices=3, but a group on ray has 2: raise --cpus or --gpus",
        ),
        (["--file=none.yaml", "--workdir=w"], "sweep file none.yaml cannot be read"),
        (["--axis=seed=[0]", "--memory_gib=0.1", "--workdir=w"], "above memory_gib=0.1"),
    ],
)
def test_mistakes_are_one_line(call, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "w").exists()
    assert "Traceback" not in err


def test_an_unknown_field_in_a_files_base_is_named(call, tmp_path):
    (tmp_path / "s.json").write_text('{"base": {"colour": 3}, "axes": [{"grid": {"seed": [0]}}]}')
    code, _, err = call(f"--file={tmp_path}/s.json", f"--workdir={tmp_path}/w")
    assert code == 2
    assert "unknown field 'colour' in a Spec" in err
