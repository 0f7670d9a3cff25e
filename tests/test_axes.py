"""Which runs a sweep consists of, and what is refused."""

import json

import numpy as np
import pytest

from fedras_jax import axes
from fedras_jax.errors import SpecError
from fedras_jax.spec import Spec

BASE = Spec(codec="actions", codec_args={"k": 8, "dtype": "float16"})


def test_a_mapping_is_a_grid_whose_first_axis_changes_slowest():
    specs = axes.expand(BASE, {"seed": range(2), "client_lr": np.array([0.25, 0.5])})
    assert [(s.seed, s.client_lr) for s in specs] == [(0, 0.25), (0, 0.5), (1, 0.25), (1, 0.5)]
    assert all(type(s.seed) is int and type(s.client_lr) is float for s in specs)


def test_blocks_multiply_and_zip_pairs_up():
    blocks = [
        {"zip": {"codec": ["dense", "actions"], "codec_args": [{}, {"k": 4}]}},
        {"grid": {"seed": [0, 1]}},
    ]
    found = [(s.codec, dict(s.codec_args), s.seed) for s in axes.expand(BASE, blocks)]
    assert found == [
        ("dense", {}, 0),
        ("dense", {}, 1),
        ("actions", {"k": 4}, 0),
        ("actions", {"k": 4}, 1),
    ]


def test_an_entry_of_arguments_leaves_the_others():
    specs = axes.expand(BASE, {"codec_args.k": [2, 4]})
    assert [dict(s.codec_args) for s in specs] == [
        {"k": 2, "dtype": "float16"},
        {"k": 4, "dtype": "float16"},
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[dense,rows]", ["dense", "rows"]),
        ("[dense, 'rows']", ["dense", "rows"]),
        ("[{}, {k: 16}]", [{}, {"k": 16}]),
        ("[null, 4]", [None, 4]),
        ("[true, false]", [True, False]),
        ("[1e-3, 0.5]", [0.001, 0.5]),
        ("['dense', None, True]", ["dense", None, True]),
        ("(0, 1)", (0, 1)),
    ],
)
def test_values_on_a_command_line_are_python_or_yaml(text, values):
    assert axes.parse("codec", text) == values


def test_values_that_are_neither_are_refused():
    with pytest.raises(SpecError, match=r"axis seed: '\[0, 1' is neither Python nor YAML: while"):
        axes.parse("seed", "[0, 1")


def test_random_axes_are_drawn_with_a_seed_and_stay_in_range():
    drawn = {
        "samples": 60,
        "seed": 3,
        "client_lr": {"log": [0.01, 1.0]},
        "weight_decay": {"uniform": [0.0, 0.1]},
        "codec_args.k": {"integer": [2, 4]},
        "negatives": {"choice": [1, 4]},
    }
    specs = axes.expand(BASE, [{"random": drawn}])
    assert specs == axes.expand(BASE, [{"random": drawn}])
    rates = np.array([s.client_lr for s in specs])
    assert rates.min() >= 0.01
    assert rates.max() <= 1
    # Half of them below the geometric mean of the ends, give or take four standard errors.
    assert abs((rates < 0.1).mean() - 0.5) < 4 * 0.5 / np.sqrt(60)
    assert 0 <= min(s.weight_decay for s in specs) <= max(s.weight_decay for s in specs) <= 0.1
    assert {s.codec_args["k"] for s in specs} == {2, 3, 4}
    assert {s.negatives for s in specs} == {1, 4}
    # Another axis beside it does not change what an axis draws.
    fewer = {k: drawn[k] for k in ("samples", "seed", "client_lr")}
    again = axes.expand(BASE, [{"random": fewer}])
    assert [s.client_lr for s in again] == [s.client_lr for s in specs]


def test_a_run_is_there_once():
    drawn = {"random": {"samples": 12, "negatives": {"choice": [1, 2]}}}
    assert len(axes.expand(BASE, [drawn])) == 2


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_holds_a_base_and_axes(tmp_path, suffix):
    path = tmp_path / f"sweep.{suffix}"
    content = {"base": {"rounds": 7}, "axes": [{"grid": {"seed": [0, 1]}}]}
    yaml = "base: {rounds: 7}\naxes:\n  - grid: {seed: [0, 1]}\n"
    path.write_text(json.dumps(content) if suffix == "json" else yaml)
    base, blocks = axes.read(path)
    assert base == {"rounds": 7}
    assert [s.seed for s in axes.expand(BASE, blocks)] == [0, 1]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([{"grid": {"sed": [1]}}], r"unknown axis 'sed': a Spec has dataset, .*codec_args\.k"),
        ([{"grid": {"codec.k": [1]}}], "unknown axis 'codec.k'"),
        ([{"grid": {"rounds": [1, 2]}}], "rounds cannot be an axis"),
        ([{"grid": {"seed": 3}}], "axis seed: expected a list of values, not 3"),
        ([{"grid": {"codec": "dense"}}], "axis codec: expected a list of values, not 'dense'"),
        ([{"grid": {"seed": []}}], "axis seed is empty"),
        ([{"grid": {"seed": [0, 1, 0]}}], "axis seed holds 0 twice"),
        ([{"grid": {}}], "grid: expected axes and their values"),
        ([{"table": {"seed": [1]}}], "a block of axes must be one of grid, zip, random"),
        ([{"grid": {}, "zip": {}}], "a block of axes must be one of grid, zip, random"),
        ([{"grid": {"seed": [0]}}, {"grid": {"seed": [1]}}], "conflicting axes: seed is in two"),
        (
            [{"grid": {"codec_args": [{}]}}, {"grid": {"codec_args.k": [1]}}],
            "conflicting axes: codec_args and codec_args.k set the same arguments",
        ),
        ([{"zip": {"seed": [0, 1], "dim": [8]}}], r"zip: axes of different lengths .*'seed': 2"),
        ([{"grid": {"seed": [0.5]}}], "with seed=0.5: seed must be an integer"),
        (
            [{"grid": {"codec": ["dense"], "dim": [8]}}],
            r"with codec='dense', dim=8: codec 'dense': got an unexpected keyword argument 'k'",
        ),
        ([{"random": {"client_lr": {"log": [0.1, 1]}}}], "random: samples must be an integer"),
        ([{"random": {"samples": 2, "seed": [1]}}], "random: seed, an integer, says what is drawn"),
        ([{"random": {"samples": 2}}], "random: expected axes and what to draw"),
        (
            [{"random": {"samples": 2, "client_lr": [1, 2]}}],
            "axis client_lr: expected one of uniform, log, integer, choice",
        ),
        (
            [{"random": {"samples": 2, "client_lr": {"log": [0, 1]}}}],
            "axis client_lr: log takes numbers above 0",
        ),
        (
            [{"random": {"samples": 2, "client_lr": {"uniform": [1, 0]}}}],
            "axis client_lr: uniform takes two ascending numbers",
        ),
        (
            [{"random": {"samples": 2, "dim": {"integer": [1.5, 2]}}}],
            "axis dim: integer takes integers",
        ),
        ([{"random": {"samples": 2, "dim": {"choice": []}}}], "axis dim: choice takes a list"),
    ],
)
def test_axes_that_do_not_fit_are_refused(blocks, message):
    with pytest.raises(SpecError, match=message):
        axes.expand(BASE, blocks)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.yaml", "base: {", "is no YAML"),
        ("s.json", "{", "is no JSON"),
        ("s.yaml", "axis: []", r"expected the entries base and axes, found \['axis'\]"),
        ("s.yaml", "- 1", "expected the entries base and axes, found list"),
        ("s.yaml", "axes: {seed: [1]}", "base must be a mapping of fields, axes a list"),
    ],
)
def test_files_that_are_no_sweeps_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=message):
        axes.read(tmp_path / name)
    with pytest.raises(SpecError, match="cannot be read"):
        axes.read(tmp_path / "nowhere.yaml")
