"""What flags make of an experiment, and which a binary refuses."""

import re
from pathlib import Path

import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver
from binaries import binary

from experiments import flags
from fedras_jax import registry, transforms
from fedras_jax.errors import SpecError

ROOT = Path(__file__).parents[2]
FLAGFILES = sorted((ROOT / "experiments/configs").glob("*.flags"))


@pytest.fixture
def spec_of():
    """Parses flags, in this process, and returns the Spec that they describe."""

    def parse(*arguments):
        absl_flags.FLAGS.unparse_flags()
        absl_flags.FLAGS(["run", *arguments])
        return flags.spec_from_flags()

    with flagsaver.flagsaver():
        yield parse


def test_reducers_and_optimizers_take_arguments(spec_of):
    spec = spec_of(
        *("--server_optimizer=adam", "--server_optimizer_arg=b1=0.5"),
        *("--server_optimizer_arg=eps=1e-3", "--client_optimizer=adamw"),
        "--client_optimizer_arg=b2=0.9",
    )
    assert spec.server_optimizer_args == {"b1": 0.5, "eps": 1e-3}
    assert spec.client_optimizer_args == {"b2": 0.9}
    with pytest.raises(SpecError, match=r"reducer 'touched_mean': .*; its arguments are: none"):
        spec_of("--reducer_arg=share=0.5")


def test_registered_transforms_are_chosen_by_flag(spec_of, monkeypatch):
    monkeypatch.setitem(registry.TRANSFORMS, "own", lambda: transforms.clip_norm(1.0))
    spec = spec_of("--transform=own", "--transform=pseudo_items:share=0.5,rows=zero")
    assert spec.transforms == (
        {"name": "own"},
        {"name": "pseudo_items", "share": 0.5, "rows": "zero"},
    )


def test_transforms_come_after_those_with_flags_of_their_own(spec_of):
    spec = spec_of("--transform=clip_norm:max_norm=2.0", "--pseudo_items=1", "--clip_norm=3")
    assert [entry["name"] for entry in spec.transforms] == [
        *("clip_norm", "pseudo_items", "clip_norm")
    ]
    assert spec.transforms[0]["max_norm"] == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise", "unknown transform 'noise': choose one of clip_norm, pseudo_items"),
        ("clip_norm", "its arguments are: max_norm"),
        ("clip_norm:2", "--transform=2: expected NAME=VALUE"),
    ],
)
def test_mistakes_in_a_transform(spec_of, text, message):
    with pytest.raises(SpecError, match=message):
        spec_of(f"--transform={text}")


REFUSED = [
    ("compare", "--codec=svd", "--codec has no effect here: arms name codecs"),
    ("compare", "--codec_arg=rank=99 --codec=svd", "--codec, --codec_arg have no effect here"),
    ("compare", "--seed=1 --seeds=0,1", "--seed has no effect here: --seeds names all of them"),
    ("pareto", "--codec=svd", "arms name codecs, as in --arm=actions:k=16"),
    ("pareto", "--checkpoint_every=50", "--checkpoint_every has no effect here"),
    ("pareto", "--log_clients", "--log_clients has no effect here"),
    ("pareto", "--arm=rows --grid=full", "--grid has no effect here: --arm names the arms"),
    ("pareto", "--lrs=0.5", "--lrs has no effect here: they are for --tune"),
    ("heterogeneity", "--codec=svd", "--codec has no effect here"),
    ("heterogeneity", "--checkpoint_every=50", "--checkpoint_every has no effect here"),
    ("heterogeneity", "--nolog_clients", "clients are logged in any case"),
    ("heterogeneity", "--profile=mobile", "scenarios name profiles, as in --scenario=mobile"),
    ("inference", "--codec=svd", "--codec has no effect here"),
    ("inference", "--budget=fixed", "payloads hold as many actions as codecs do"),
    ("inference", "--tensorboard", "--tensorboard has no effect here: nothing is kept of the run"),
    ("inference", "--seeds=0,1", "--seeds has no effect here: one run is attacked"),
    (
        "convert",
        "--store=s --rounds=3 --codec_arg=k=3",
        "--rounds, --codec_arg have no effect here: of an experiment's flags --dataset, "
        "--dataset_arg, --min_rating, --k_core, --validation, --data_seed, --data_dir, --progress "
        "have",
    ),
    ("recommend", "--client=1 --codec=rows", "of an experiment's flags --workdir, --data_dir have"),
    ("report", "--workdir=w", "--workdir has no effect here: no experiment is run"),
    ("sweep", "--axis=seed=[0] --seed=1", "--seed has no effect here: seed is an axis"),
    ("sweep", "--axis=codec_args.k=[4] --codec_arg=k=2", "codec_args.k is an axis, leave one of"),
    ("sweep", "--axis=transforms=[[]] --clip_norm=2", "--clip_norm has no effect here"),
    ("sweep", "--axis=seed=[0] --cpus=2", "--cpus has no effect here: --engine=local does without"),
]


@pytest.mark.parametrize(("name", "given", "message"), REFUSED)
def test_flags_without_effect_are_refused(name, given, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.flags.start_devices", lambda: pytest.fail("not refused"))
    needed = ("--workdir=w",) if name == "sweep" else ()
    with binary(name) as found, pytest.raises(SystemExit) as end:
        found.main(absl_flags.FLAGS([name, *given.split(), *needed]))
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert message in told
    assert len(told.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_entry_of_arguments_beside_an_axis_is_none_of_its_values(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("experiments.flags.start_devices", lambda: None)
    monkeypatch.setattr("experiments.flags.stop_when_told", lambda: lambda: False)
    given = ("--axis=codec_args.k=[4]", "--codec_arg=dtype=float16", "--dataset=synthetic:99x60x8")
    with binary("sweep") as sweep:
        sweep.main(absl_flags.FLAGS(["sweep", *given, f"--workdir={tmp_path}/w", "--dry_run"]))
    assert "'dtype': 'float16', 'k': 4" in capsys.readouterr().out


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_a_flagfile_is_not_refused(path, capsys, monkeypatch):
    def start():
        raise SpecError("started")

    monkeypatch.setattr("experiments.flags.start_devices", start)
    calls = f"{path.read_text()} {(ROOT / 'Makefile').read_text()}"
    name = re.search(rf"experiments.(\w+) --flagfile=\S*{path.name}", calls)[1]
    with binary(name) as found, pytest.raises(SystemExit):
        found.main(absl_flags.FLAGS([name, f"--flagfile={path}"]))
    assert re.match("error: (started|--workdir is needed)", capsys.readouterr().err)


CHOICES = {
    "model": registry.MODELS,
    "sampler": registry.SAMPLERS,
    "client_optimizer": registry.CLIENT_OPTIMIZERS,
    "codec": registry.CODECS,
    "budget": registry.BUDGETS,
    "profile": registry.PROFILES,
    "arrival": registry.ARRIVALS,
    "downlink": registry.DOWNLINKS,
    "reducer": registry.REDUCERS,
    "server_optimizer": registry.SERVER_OPTIMIZERS,
    "transform": registry.TRANSFORMS,
}


@pytest.mark.parametrize("name", CHOICES)
def test_help_gives_the_choices(name):
    assert ", ".join(CHOICES[name]) in absl_flags.FLAGS[name].help


@pytest.mark.parametrize(
    ("asked", "message"),
    [(0, "--devices must be at least 1"), (100_000, "--devices=100000, but there are")],
)
def test_devices_that_cannot_be(asked, message, monkeypatch):
    """Refused before JAX makes any: XLA would wait for so many threads, and then abort."""
    monkeypatch.setattr("experiments.flags.compiled.keep", lambda: None)
    monkeypatch.setattr("jax.config.update", lambda *_: pytest.fail("not refused"))
    absl_flags.FLAGS(["run"])
    with flagsaver.flagsaver(devices=asked), pytest.raises(SpecError, match=message):
        flags.start_devices()


EXPERIMENT = ("codec", "codec_arg", "reducer_arg", "transform", "workdir", "compilation_cache")
SHOWN = {
    "run": (*EXPERIMENT, "distributed", "spread_items"),
    "stream": (*EXPERIMENT, "distributed", "memory"),
    "compare": (*EXPERIMENT, "arm", "seeds"),
    "pareto": (*EXPERIMENT, "arm", "grid"),
    "heterogeneity": (*EXPERIMENT, "arm", "scenario"),
    "inference": (*EXPERIMENT, "arm", "shares"),
    "sweep": (*EXPERIMENT, "axis"),
    "convert": (
        *("dataset", "min_rating", "k_core", "validation", "data_seed", "data_dir", "progress"),
        *("store", "memory", "dataset_arg"),
    ),
    "recommend": ("workdir", "data_dir", "client", "top", "history"),
    "report": ("output", "baseline", "margin"),
}


def test_the_help_of_every_binary_is_looked_at():
    binaries = [p.stem for p in (ROOT / "experiments").glob("*.py") if "app.run" in p.read_text()]
    assert set(SHOWN) == set(binaries)


@pytest.mark.parametrize("name", SHOWN)
def test_help_shows_a_binarys_flags(name):
    with binary(name):
        told = absl_flags.FLAGS.module_help(f"experiments.{name}")
    shown = re.findall(r"^ +--(?:\[no\])?(\w+):", told, re.MULTILINE)
    assert set(SHOWN[name]) <= set(shown)
    if "codec" not in SHOWN[name]:  # nothing but its own
        assert set(shown) == set(SHOWN[name])
