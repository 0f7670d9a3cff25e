"""The page says what the runs say: arms, pairs, fronts, and everything that is missing."""

import json
import re
import sys

import numpy as np
import pytest
from fake_runs import SPEC, ranks_of, write_run, write_sweep

from fedras_jax import axes, metrics, page, results, stats
from fedras_jax.errors import ResultsError, SpecError
from fedras_jax.page import cells, commands, compare, curves, figures
from fedras_jax.page.collect import METRICS, Arm, Run, collect
from fedras_jax.page.page import _sentence

DIRECTIONAL = SPEC.replace(codec="directional", codec_args={"k": 4})


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def study(sweep):
    return page.collect(sweep)


@pytest.fixture(scope="module")
def text(study):
    pytest.importorskip("plotly", reason="the extra 'report' is not installed")
    pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
    return page.render(study)


def resolved(value, state):
    """A figure with its choices made and its colours replaced, as the page's script does it."""
    if isinstance(value, str):
        return "#123456" if value.startswith("@") else value
    if isinstance(value, list):
        return [resolved(v, state) for v in value]
    if not isinstance(value, dict):
        return value
    if "$" in value:
        return resolved(value["|".join(state[axis] for axis in value["$"])], state)
    return {k: resolved(v, state) for k, v in value.items()}


def data_of(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def test_runs_that_differ_in_the_seed_alone_are_one_arm(study):
    (group,) = study.groups
    assert {arm.name: arm.seeds for arm in group.arms} == {
        "dense": (0, 1),
        "dense, client_lr=9": (0,),
        "directional k=4": (0, 1),
        "directional k=16, client_lr=0.25": (0, 1),
        "sign": (0,),
    }
    assert [arm.name for arm in group.arms if not arm.finished] == ["dense, client_lr=9", "sign"]
    assert group.baseline.name == "dense"
    assert group.varying["codec_args.k"] == [4, 16]
    assert group.common["profile"] == "three_tiers"


def test_an_arms_spec_comes_back(study):
    for arm in study.groups[0].arms:
        for run in arm.runs:
            assert run.spec.digest() == run.row["digest"]
            assert run.spec.rounds == SPEC.rounds


def test_other_data_and_other_devices_are_other_groups(tmp_path):
    write_run(tmp_path / "a", SPEC, ranks_of(0))
    write_run(tmp_path / "b", SPEC.replace(candidates=0), ranks_of(0, 100))
    write_run(tmp_path / "c", SPEC.replace(profile="mobile"), ranks_of(0))
    write_run(tmp_path / "d", DIRECTIONAL, ranks_of(0))
    groups = page.collect(tmp_path).groups
    assert [group.title.split(", ", 1)[1] for group in groups] == [
        "candidates=99, ideal",
        "candidates=0, ideal",
        "candidates=99, mobile",
    ]
    assert [len(group.arms) for group in groups] == [2, 1, 1]


def test_names_leave_out_what_is_usual(tmp_path):
    rates, decays = (0.1, 0.2, 0.5, 0.5, 0.5), (0.0, 0.0, 0.0, 0.0, 0.1)
    for i, (lr, decay) in enumerate(zip(rates, decays, strict=True)):
        spec = SPEC.replace(client_lr=lr, weight_decay=decay, rounds=8 + i % 4)
        write_run(tmp_path / str(i), spec, ranks_of(0))
    names = [arm.name for arm in page.collect(tmp_path).groups[0].arms]
    assert "rounds=10" in names
    assert "rounds=8, weight_decay=0.1" in names
    assert len(set(names)) == 5


def test_the_same_experiment_twice_counts_once_and_is_told(sweep, tmp_path, text):
    write_run(tmp_path / "copy", SPEC.replace(profile="three_tiers"), ranks_of(0))
    study = page.collect([sweep, tmp_path])
    assert study.repeated == (str(tmp_path / "copy"),)
    assert [a.seeds for a in study.groups[0].arms if a.name == "dense"] == [(0, 1)]


def test_a_baseline_can_be_named(sweep):
    (group,) = page.collect(sweep, baseline="directional k=4").groups
    assert group.baseline.fields["codec_args.k"] == 4
    with pytest.raises(
        ResultsError, match=r"no finished arm is named 'sign': there are dense; dir"
    ):
        page.collect(sweep, baseline="sign")  # it has not finished


def test_comparisons_are_those_of_stats_over_shared_seeds(study):
    rows = {row["arm"]: row for row in compare.table(study.groups[0], n_boot=300)}
    assert set(rows) == {"dense", "directional k=4", "directional k=16, client_lr=0.25"}
    base = np.stack([ranks_of(0), ranks_of(1)])
    ours = np.stack([ranks_of(0, lift=5), ranks_of(1, lift=5)])
    found = stats.non_inferiority(ours, base, metric="hr@10", n_boot=300)
    row = rows["directional k=4"]
    assert row["hr@10_difference"] == found.difference > 0
    assert (row["hr@10_low"], row["hr@10_high"]) == (found.low, found.upper)
    # Two arms that are the same: Holm doubles both.
    assert row["hr@10_holm"] == pytest.approx(min(2 * found.p_value, 1))
    assert row["verdict"] == "yes?"  # two seeds are no claim
    assert row["hr@10"] == np.mean([metrics.summarise(r)["hr@10"] for r in ours])
    # The baseline's interval is of its own mean.
    own = rows["dense"]
    assert own["hr@10_low"] < own["hr@10"] < own["hr@10_high"]
    assert own.get("hr@10_difference") is None


def test_time_to_the_target_is_told_against_the_baselines(tmp_path):
    timed = {"profile": "mobile", "rounds": 40, "eval_every": 1}
    write_run(tmp_path / "d", SPEC.replace(**timed), ranks_of(0))
    write_run(tmp_path / "k", DIRECTIONAL.replace(**timed), ranks_of(0))
    dense, ours = compare.table(page.collect(tmp_path).groups[0], n_boot=50)
    assert ours["round_s"] == pytest.approx(0.1)
    assert dense["hours"] == pytest.approx(100 * ours["hours"])
    assert (dense["sooner"], ours["sooner"]) == (pytest.approx(1), pytest.approx(100))
    assert ours["upload_share"] == pytest.approx(1 / 5)


def test_seeds_that_the_baseline_lacks_are_not_paired(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"d{seed}", SPEC.replace(seed=seed), ranks_of(seed))
    for seed in (1, 2):
        write_run(tmp_path / f"k{seed}", DIRECTIONAL.replace(seed=seed), ranks_of(seed, lift=3))
    write_run(tmp_path / "r", SPEC.replace(codec="rows", seed=7), ranks_of(7))
    rows = {row["arm"]: row for row in compare.table(page.collect(tmp_path).groups[0], n_boot=50)}
    one = stats.non_inferiority(ranks_of(1, lift=3)[None], ranks_of(1)[None], metric="ndcg@10")
    assert rows["directional k=4"]["paired"] == 1
    assert rows["directional k=4"]["ndcg@10_difference"] == one.difference
    assert rows["rows"]["note"] == "no seed in common with the baseline"
    assert rows["rows"]["verdict"] is None


def test_arms_of_other_clients_are_said_not_to_compare(tmp_path):
    write_run(tmp_path / "d", SPEC, ranks_of(0))
    write_run(tmp_path / "k", DIRECTIONAL, ranks_of(0, 150))
    rows = compare.table(page.collect(tmp_path).groups[0], n_boot=50)
    assert "cannot be compared: ranks must be two" in rows[1]["note"]


def test_draws_are_fewer_where_arms_are_many(study):
    assert compare.draws(study.groups) == 2000
    assert compare.draws(study.groups * 100_000) == 64


def test_curves_are_means_over_seeds_at_shared_evaluations(study):
    arm = next(arm for arm in study.groups[0].arms if arm.name == "directional k=4")
    line = curves.curve(arm, 100)
    finals = [metrics.summarise(ranks_of(s, lift=5))["ndcg@10"] for s in (0, 1)]
    assert line["rounds"].tolist() == [2, 4, 6, 8]
    assert line["ndcg@10"][-1] == pytest.approx(np.mean(finals))
    assert (line["ndcg@10 low"][-1], line["ndcg@10 high"][-1]) == (min(finals), max(finals))
    assert line["up"].tolist() == [20, 40, 60, 80]
    assert line["total"].tolist() == [2020, 4040, 6060, 8080]
    assert line["loss"][1] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert line["hours"][-1] == pytest.approx(8 * 0.1 / 3600)
    assert curves.curve(arm, 2)["rounds"].tolist() == [2, 8]


def test_every_choice_of_every_figure_is_one_that_plotly_takes(text):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    (group,) = data_of(text).values()
    assert set(group["figures"]) == {"curves", "front", "reach", "boxes"}
    for figure in group["figures"].values():
        states = [dict(figure.get("state", {}))]
        for control in figure["controls"]:
            states = [s | {control["axis"]: key} for s in states for key, _ in control["options"]]
        for state in states:
            traces = [{k: v for k, v in trace.items() if k != "arm"} for trace in figure["traces"]]
            graph_objects.Figure(resolved({"data": traces, "layout": figure["layout"]}, state))


def test_the_front_is_drawn_where_it_is(text):
    (group,) = data_of(text).values()
    steps = resolved(group["figures"]["front"]["traces"][0], {"x": "up_bytes", "y": "hr@10"})
    best = max(np.mean([metrics.summarise(ranks_of(s, lift=5))["hr@10"] for s in (0, 1)]), 0)
    assert steps["x"] == [10.0, 10.0]  # both directional arms, equally good
    assert steps["y"] == pytest.approx([best, best], abs=1e-4)


def test_boxes_hold_quantiles_by_tier(text):
    (group,) = data_of(text).values()
    names = [arm["name"] for arm in group["arms"]]
    traces = group["figures"]["boxes"]["traces"]
    boxes = [trace for trace in traces if names[trace["arm"]] == "directional k=4"]
    assert [box["name"] for box in boxes] == ["tier 0", "tier 1", "tier 2"]
    medians = [box["median"]["up_bytes"][0] for box in boxes]
    assert all(1 < m < 200 for m in medians)
    assert boxes[0]["median"]["n_actions"] == [4]


def test_runs_that_have_not_finished_are_listed_and_text_is_escaped(text):
    table = text[text.index("Runs that have not finished") :]
    assert re.search(r"/wild</td><td class=\"bad\">diverged</td><td>4</td><td>8</td>", table)
    assert "&lt;b&gt;nan&lt;/b&gt;" in table
    assert re.search(r"/late</td><td class=\"bad\">unfinished</td><td>4</td><td>8</td>", table)
    assert "<b>2</b> unfinished" not in text
    assert "<b>1</b> unfinished" in text


def test_chips_say_which_arms_have_no_figures(text):
    assert "dense, client_lr=9 <i>(diverged)</i>" in text
    assert "sign <i>(not finished)</i>" in text
    assert "dense <i>(baseline)</i>" in text


def test_the_page_asks_nothing_of_a_network(text):
    head = text.replace(text[text.index("/**\n* plotly.js") : text.index('id="data"')], "")
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", head)
    assert "@import" not in head
    assert "default-src 'none'" in head


def test_a_page_without_finished_runs_says_so(tmp_path):
    pytest.importorskip("jinja2")
    write_run(tmp_path / "a", SPEC, ranks_of(0), status="unfinished")
    text = page.render(page.collect(tmp_path))
    assert "No run of this group has finished" in text
    assert set(next(iter(data_of(text).values()))["figures"]) == {"curves"}


def test_names_and_data_cannot_end_a_script(tmp_path):
    pytest.importorskip("jinja2")
    path = "</script><script>alert(1)</script>.csv"
    write_run(tmp_path / "a", SPEC.replace(dataset=path), ranks_of(0))
    text = page.render(page.collect(tmp_path))
    assert path not in text
    assert "alert(1)" in text


def test_a_page_is_written_whole_or_not_at_all(study, tmp_path):
    pytest.importorskip("jinja2")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot be written"):
        page.write(tmp_path / "file" / "x.html", study)
    assert page.write(tmp_path / "new" / "x.html", study).stat().st_size > 1e6
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.html"]


def test_the_least_p_values_are_not_told_apart():
    assert cells._cell({"hr@10_holm": 1e-9}, "hr@10_holm", "{:.2g}")["text"] == "<1e-06"
    assert cells._cell({"hr@10_holm": 0.5}, "hr@10_holm", "{:.2g}")["text"] == "0.5"


def test_a_missing_library_is_named(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(SpecError, match=r"pip install 'fedras_jax\[report\]'"):
        page.render(study)


def test_styles_differ_for_many_arms():
    styles = [tuple(figures.style(i).values()) for i in range(-1, 5 * figures.COLOURS)]
    assert len(set(styles)) == len(styles)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC.replace(seed=3, min_rating=4.0, validation=False, profile="mobile"),
        DIRECTIONAL.replace(
            budget="schedule", budget_args={"k": [2, 4], "until": [3]}, dataset="my data.csv"
        ),
        SPEC.replace(transforms=({"name": "clip_norm", "max_norm": 1.0},)),
        SPEC.replace(transforms=({"name": "pseudo_items", "share": 0.5},), evaluate_on="valid"),
        SPEC.replace(
            transforms=(
                {"name": "pseudo_items", "share": 0.5, "rows": "zero"},
                {"name": "clip_norm", "max_norm": 1.0},
            )
        ),
        SPEC.replace(server_optimizer="adam", server_optimizer_args={"b1": 0.5, "eps": 1e-3}),
        SPEC.replace(
            dataset="own.csv", dataset_args={"user": "visitor", "item": "1", "time": None}
        ),
    ],
)
def test_commands_give_the_spec_back(spec):
    import shlex

    from absl import flags as absl_flags

    from experiments import flags

    words = shlex.split(commands.command(spec))
    assert words[:3] == ["python", "-m", "experiments.run"]
    values = absl_flags.FLAGS
    values.unparse_flags()
    values(["run", *words[3:]])
    try:
        assert flags.spec_from_flags() == spec
    finally:
        for name in values:
            values[name].unparse()


def test_a_sweep_file_gives_all_runs_back(study, tmp_path):
    arms = [[run.spec for run in arm.runs] for arm in study.groups[0].arms]
    both = [arms, [specs for specs in arms if len(specs) == 2]]
    for wanted in both:
        (tmp_path / "sweep.json").write_text(commands.told(commands.sweep_file(wanted)))
        base, blocks = axes.read(tmp_path / "sweep.json")
        found = axes.expand(SPEC.from_json(base), blocks)
        assert {s.digest() for s in found} == {s.digest() for of in wanted for s in of}
        assert {s.rounds for s in found} == {SPEC.rounds}
    assert blocks[1] == {"grid": {"seed": [0, 1]}}
    longer = [[SPEC], [SPEC.replace(rounds=9)]]
    assert commands.sweep_file(longer) is None


def test_several_seeds_are_a_loop():
    line = commands.command(SPEC, seeds=(0, 2))
    assert line.startswith("for seed in 0 2; do python -m experiments.run --rounds=8")
    assert line.endswith("--seed=$seed; done")


def test_means_end_at_the_last_evaluation():
    log = {"round": np.arange(1, 11), **{name: np.ones(10) for name in ("clients", "loss")}}
    log |= {name: np.ones(10) for name in ("up_bytes", "down_bytes")}
    log["n_actions"] = np.arange(1.0, 11.0)
    seen = np.isin(log["round"], (4, 8))
    log |= {name: np.where(seen, 0.5, np.nan) for name in METRICS}
    arm = Arm("arm", {}, (Run({}, log, None),))
    line = curves.curve(arm, 100)
    assert line["rounds"].tolist() == [4, 8]
    assert line["loss"].tolist() == [1, 1]
    assert line["n_actions"].tolist() == [2.5, 6.5]


def test_groups_say_among_how_many_items_there_are(tmp_path):
    spec = SPEC.replace(candidates=99)
    write_run(tmp_path / "a", spec, ranks_of(0))
    assert "item ranked among 99 sampled items." in _sentence(page.collect(tmp_path).groups[0])
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    summary["clients"] |= {"candidates_mean": 45.25, "candidates_least": 38}
    results.write_json(tmp_path / "a/summary.json", summary)
    told = _sentence(page.collect(tmp_path).groups[0])
    assert "item ranked among 45.2 sampled items on average, 38 at least." in told


def test_unfinished_arms_have_curves(study):
    late = next(arm for arm in study.groups[0].arms if arm.name == "sign")
    assert curves.curve(late, 100)["rounds"].tolist() == [2, 4]
    assert results.load(late.runs[0].row["folder"])["status"].to_pylist() == ["unfinished"]


def test_runs_on_data_of_the_same_name_are_kept_apart(tmp_path):
    """What lay there may have changed: such runs are neither paired nor repeated."""
    for name, spec, data in (
        ("old", SPEC, "1"),
        ("new", SPEC, "2"),
        ("rows", SPEC.replace(codec="rows"), "2"),
    ):
        write_run(tmp_path / name, spec, [1, 2, 3], data={"interactions": data})
    study = collect(tmp_path)
    assert study.repeated == ()
    assert [len(group.arms) for group in study.groups] == [2, 1]
    titles = [group.title for group in study.groups]
    assert len(set(titles)) == 2
    assert all(", data " in title for title in titles)
