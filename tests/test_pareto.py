"""The table, the rivals and the picture, from summaries and ranks made by hand."""

import collections

import numpy as np
import pytest

from experiments import arms, grids
from fedras_jax import metrics, pareto, pareto_plot, registry, report
from fedras_jax.spec import Spec

CLIENTS = 400
rng = np.random.default_rng(0)
BASE = rng.integers(1, 40, (5, CLIENTS))


def _arm(name, up, ranks, *, down=1000.0):
    codec = name.partition(":")[0]
    summaries = [
        {
            "metrics": metrics.summarise(r),
            "payload": {
                "up_bytes_mean": up,
                "down_bytes_mean": down,
                "up_reduction": 0.0,
                "up_reduction_against_rows": 0.0,
                "down_reduction": 0.0,
            },
            "speed": {"clients_per_s": 1.0},
            "spec": {"client_lr": 0.5},
        }
        for r in ranks
    ]
    return pareto.Arm(name, codec, codec, summaries, ranks)


def _worse(ranks, clients):
    """These clients' held-out items fall out of the list."""
    ranks = ranks.copy()
    ranks[:, clients] = 40
    return ranks


ARMS = [
    _arm("dense", 1000.0, BASE),
    _arm("directional:k=4", 50.0, BASE),
    _arm("directional:k=16", 100.0, BASE),
    _arm("sign", 20.0, _worse(BASE, slice(0, CLIENTS // 2))),
    _arm("svd", 99.0, _worse(BASE, slice(0, CLIENTS // 4))),
    _arm("actions", 300.0, BASE, down=10.0),
]


@pytest.mark.parametrize("seed", range(5))
def test_front_is_its_definition(seed):
    cost, quality = np.random.default_rng(seed).integers(0, 6, (2, 12)).astype(float)
    for i, member in enumerate(pareto.front(cost, quality)):
        beaten = any(
            cost[j] <= cost[i]
            and quality[j] >= quality[i]
            and (cost[j] < cost[i] or quality[j] > quality[i])
            for j in range(12)
        )
        assert member != beaten


def test_front_by_hand():
    cost = np.array([1.0, 2.0, 3.0, 2.0, 2.0])
    quality = np.array([0.1, 0.3, 0.3, 0.2, 0.3])
    assert pareto.front(cost, quality).tolist() == [True, True, False, False, True]


def test_table_is_sorted_marked_and_compared():
    rows = pareto.table(ARMS, "dense")
    assert [row["up_bytes"] for row in rows] == [20, 50, 99, 100, 300, 1000]
    by_arm = {row["arm"]: row for row in rows}
    assert by_arm["actions"]["total_bytes"] == 310
    assert by_arm["dense"]["ndcg@10"] == pytest.approx(np.mean([metrics.ndcg(r, 10) for r in BASE]))
    # Of arms as good as dense the cheapest is on the front; a worse one must be cheaper still.
    assert [arm for arm, row in by_arm.items() if row["front_up"]] == ["sign", "directional:k=4"]
    assert [arm for arm, row in by_arm.items() if row["front_total"]] == ["actions"]
    assert by_arm["sign"]["mark"] == "up"
    assert by_arm["actions"]["mark"] == "total"
    assert by_arm["dense"]["mark"] is None


def test_no_loss_is_claimed_where_it_holds():
    by_arm = {row["arm"]: row for row in pareto.table(ARMS, "dense")}
    assert by_arm["directional:k=4"]["verdict"] == "yes"
    assert by_arm["svd"]["verdict"] == "no"
    lost = by_arm["svd"]["ndcg@10"] - by_arm["dense"]["ndcg@10"]
    assert by_arm["svd"]["ndcg@10_difference"] == pytest.approx(lost)
    assert by_arm["svd"]["ndcg@10_lower"] < lost
    assert by_arm["dense"]["verdict"] is by_arm["dense"]["ndcg@10_difference"] is None
    assert pareto.table(ARMS, "dense", margin=1.0)[0]["no_loss"] is True


def test_a_loss_in_one_metric_is_a_loss():
    """From rank 9 to 11 a client loses a whole hit, and little NDCG."""
    base = np.tile(np.repeat([1, 9], CLIENTS // 2), (5, 1))
    ours = base.copy()
    ours[:, -20:] = 11
    two = [_arm("dense", 9.0, base), _arm("svd", 1.0, ours)]
    row = pareto.table(two, "dense", margin=0.03)[0]
    assert row["ndcg@10_lower"] > -0.03 > row["hr@10_lower"]
    assert row["no_loss"] is False


def test_few_seeds_are_no_claim():
    few = [_arm(a.name, 10.0, a.ranks[:4]) for a in ARMS]
    assert {r["verdict"] for r in pareto.table(few, "dense")} == {None, "4 seeds: not a claim"}
    assert pareto.count_of_seeds(BASE[:1]) == "1 seed"


def test_tables_print_and_are_written(tmp_path):
    rows, against = pareto.table(ARMS, "dense"), pareto.rivals(ARMS)
    for table, columns in ((rows, pareto.COLUMNS), (against, pareto.RIVAL_COLUMNS)):
        lines = report.render(table, columns).splitlines()
        assert len(lines) == 2 + len(table)
        assert len({len(line) for line in lines}) == 1
        assert "None" not in "".join(lines)
        report.write_csv(tmp_path / "t.csv", table)
        assert len((tmp_path / "t.csv").read_text().splitlines()) == 1 + len(table)


def test_rivals_meet_each_form_just_below_their_bytes():
    rows = {(row["rival"], row["form"]): row for row in pareto.rivals(ARMS)}
    assert list(rows) == [
        ("sign", "directional"),
        ("sign", "actions"),
        ("directional:k=4", "actions"),
        ("svd", "directional"),
        ("svd", "actions"),
        ("directional:k=16", "actions"),
        ("actions", "directional"),
        ("dense", "directional"),
        ("dense", "actions"),
    ]
    compared = {pair: row["arm"] for pair, row in rows.items() if row["arm"] is not None}
    assert compared == {
        ("svd", "directional"): "directional:k=4",  # 100 bytes are more than 99
        ("actions", "directional"): "directional:k=16",
        ("dense", "directional"): "directional:k=16",
        ("dense", "actions"): "actions",
    }
    assert rows["sign", "directional"]["adjusted_p"] is None  # nothing is that small
    assert rows["svd", "directional"]["difference"] > 0
    assert rows["svd", "directional"]["p_value"] < 0.001


def test_p_values_are_adjusted_over_both_forms_together():
    rows = [row for row in pareto.rivals(ARMS) if row["arm"] is not None]
    found = {(row["rival"], row["form"]): row for row in rows}
    # Four tests are made: the smallest p-value is multiplied by 4.
    smallest = found["svd", "directional"]
    assert smallest["adjusted_p"] == pytest.approx(4 * smallest["p_value"])
    assert found["dense", "actions"]["adjusted_p"] == 1


def test_an_arm_with_another_experiment_is_a_rival_of_the_other_form_alone():
    other = ARMS[2]._replace(name="directional:k=16,spec.snapshot_bits=5", series="directional, x")
    rows = pareto.rivals([*ARMS[:3], other])
    assert {row["rival"] for row in rows} == {"dense"}
    rows = pareto.rivals([other, ARMS[0], _arm("actions", 10.0, BASE)])
    assert [(row["rival"], row["form"]) for row in rows] == [
        (other.name, "actions"),
        ("dense", "actions"),
    ]


def test_without_arms_of_a_form_there_are_no_comparisons():
    assert pareto.rivals([ARMS[0], ARMS[3]]) == []
    assert {row["form"] for row in pareto.rivals([ARMS[0], ARMS[5]])} == {"actions"}


def test_a_baseline_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="the baseline 'rows' is none of the arms"):
        pareto.table(ARMS, "rows")


def test_arms_of_other_seeds_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        pareto.table([ARMS[0], _arm("sign", 1.0, BASE[:3])], "dense")


def test_plot_is_drawn(tmp_path):
    pareto_plot.plot(
        tmp_path / "p.png", pareto.table(ARMS, "dense"), "dense", title="t", margin=0.008
    )
    png = (tmp_path / "p.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    width, height = np.frombuffer(png[16:24], ">u4")
    assert width > 1500
    assert height > 1000


@pytest.mark.parametrize(
    ("size", "text"), [(800, "800 B"), (1000, "1 kB"), (1.25e6, "1.25 MB"), (3e9, "3 GB")]
)
def test_sizes_are_readable(size, text):
    assert pareto_plot.human(size) == text


def test_grids_name_every_arm_once_and_dense_first():
    for names in grids.GRIDS.values():
        assert len(set(names)) == len(names)
        assert names[0] == "dense"
        assert len({report.folder_name(name) for name in names}) == len(names)
    assert set(grids.GRIDS["core"]) < set(grids.GRIDS["full"])
    assert set(grids.GRIDS["published"]) < set(grids.GRIDS["full"])


def test_the_core_grid_has_every_codec_in_four_sizes_and_more_of_the_two_forms():
    one_bit = {"sign": "quantized"}  # one bit an entry, by other means
    codecs = [name.partition(":")[0] for name in grids.BUDGETS]
    sizes = collections.Counter(one_bit.get(codec, codec) for codec in codecs)
    assert len(sizes) == 10
    assert min(sizes.values()) == 4
    assert {codec for codec, n in sizes.items() if n == max(sizes.values())} >= {*pareto.FORMS}
    assert not set(grids.BUDGETS) & set(grids.REFERENCES)


def test_published_rivals_are_not_tuned_and_have_a_tuned_arm_beside_them():
    pinned = [name for name in grids.PUBLISHED if "client_lr" in arms.fields_of(name)]
    assert len(pinned) == 3
    for name in pinned:
        plain = name.partition(",spec.")[0]
        assert plain in grids.PUBLISHED
        assert not arms.fields_of(plain)


@pytest.mark.parametrize("arm", grids.GRIDS["full"])
def test_arms_of_the_grids_exist(arm):
    spec = arms.parse(Spec(), arm)
    assert spec.codec in registry.CODECS
