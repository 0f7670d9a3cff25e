"""`python -m experiments.recommend` as a user calls it, in this process."""

import shutil

import pytest
from absl import flags
from absl.testing import flagsaver

import fedras_jax
from experiments import recommend as binary
from fedras_jax import cohort
from fedras_jax.recommend import recommend

SPEC = fedras_jax.Spec(
    dataset="ml-latest-small-2016",
    dim=4,
    rounds=1,
    cohort_size=2,
    codec="rows",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one round: 2 of 671 clients have taken part."""
    workdir = tmp_path_factory.mktemp("recommend") / "run"
    mesh = cohort.client_mesh(1)
    fedras_jax.run(SPEC, workdir=workdir, mesh=mesh, checkpoint_every=500)
    return workdir


@pytest.fixture
def call(capsys):
    """(exit code, standard output, standard error) of a call with these arguments."""

    def calling(*args):
        code = 0
        with flagsaver.flagsaver():
            left = flags.FLAGS(["recommend", *map(str, args)])
            try:
                binary.main(left)
            except SystemExit as e:
                code = e.code
        return code, *capsys.readouterr()

    return calling


def test_history_and_recommendations_go_by_titles(folder, call):
    code, out, err = call(folder, "--client=1", "--top=3")
    assert (code, err) == (0, "")
    found = recommend(folder, 1, 3)
    head, history, items, held_out = out.rstrip().split("\n\n")
    assert head.startswith(f"client 1 of ml-latest-small-2016, {folder} (mf, D=4, rows, 1 rounds; ")
    assert history.splitlines()[0] == f"History: {len(found.history)} items, the last 10"
    shown = [line.strip() for line in history.splitlines()[1:]]
    assert shown[:-1] == [item.title for item in found.history[-10:-1]]
    assert shown[-1] == f"{found.history[-1].title}  (held out for validation)"
    lines = [line.split("  ") for line in items.splitlines()[1:]]
    assert [line[-1] for line in lines] == [entry.item.title for entry in found.items]
    assert [line.split()[0] for line in items.splitlines()[1:]] == ["1", "2", "3"]
    expected = f"Held out for testing: {found.held_out.item.title}, at place "
    assert held_out.startswith(expected + f"{found.held_out.rank:,} of {found.held_out.of:,} un")
    assert held_out.endswith("the run's metrics rank it among 99 drawn ones")


def test_a_client_that_was_never_drawn_is_told(folder, call):
    outs = [call(folder, f"--client={client}", "--history=0")[1] for client in range(1, 6)]
    never = [out for out in outs if "the client took part in 0)" in out]
    assert never  # 2 of 671 were drawn
    assert all("was never drawn: its parameters are random" in out for out in never)
    # No items of it were asked for.
    assert all("the last 0\n\nRecommended: " in out for out in outs)


def test_the_folder_may_be_a_flag(folder, call):
    assert call(f"--workdir={folder}", "--client=5") == call(folder, "--client=5")


def test_a_dataset_without_titles_says_so(tmp_path, call):
    mesh = cohort.client_mesh(1)
    spec = SPEC.replace(dataset="synthetic:40x60x8", candidates=0)
    fedras_jax.run(spec, workdir=tmp_path / "r", mesh=mesh, checkpoint_every=500)
    code, out, _ = call(tmp_path / "r", "--client=7", "--top=2")
    assert code == 0
    assert "The dataset has no titles: items go by their ids." in out
    first = recommend(tmp_path / "r", 7, 2).items[0]
    assert f"   1  {first.score:8.3f}  item {first.item.id}" in out
    assert out.rstrip().endswith("unseen items")


def test_drawn_items_are_as_many_as_there_are(tmp_path, call):
    mesh = cohort.client_mesh(1)
    spec = SPEC.replace(dataset="synthetic:40x60x8")
    done = fedras_jax.run(spec, workdir=tmp_path / "r", mesh=mesh, checkpoint_every=500)
    drawn = int((done.split.candidates[7] >= 0).sum())
    assert drawn < 60
    _, out, _ = call(tmp_path / "r", "--client=7")
    assert out.rstrip().endswith(f"the run's metrics rank it among {drawn} drawn ones")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["RUN"], "--client is needed: the id of a client in the dataset, as in 17"),
        (["--client=5"], "name the folder of one run, as in results/ours"),
        (["RUN", "other", "--client=5"], "name the folder of one run, not 2: "),
        (["RUN", "--workdir=other", "--client=5"], "name the folder of one run, not 2: "),
        (["RUN", "--client=5", "--top=0"], "--top must be at least 1, not 0"),
        (["RUN", "--client=5", "--history=-1"], "--history must be at least 0, not -1"),
        (["RUN", "--client=672"], "no client '672': there are 671, such as 1, 2, 3, 4, 5"),
        (["RUN/nowhere", "--client=5"], "nowhere is no folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(folder, call, args, message):
    code, out, err = call(*(arg.replace("RUN", str(folder)) for arg in args))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_run_without_checkpoints_says_how_to_get_them(folder, tmp_path, call):
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    code, _, err = call(tmp_path / "run", "--client=5")
    assert code == 2
    assert "--checkpoint_every=500; a sweep needs --keep_models too" in err
