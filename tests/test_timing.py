"""Time to the same quality, and who took part in getting there."""

import numpy as np
import pytest

from fedras_jax import network, pareto, timing, timing_plot
from fedras_jax.spec import Spec

SPEC = Spec(profile="mobile")


def rounds(quality, *, seconds=2.0, every=1):
    """Columns of `rounds.parquet` of a run with this quality at every evaluation."""
    n = len(quality) * every
    metric = np.full(n, np.nan)
    metric[every - 1 :: every] = quality
    return {
        "round": np.arange(1, n + 1),
        "clients": np.full(n, 10),
        "clock_s": seconds * np.arange(1, n + 1),
        "seconds": np.full(n, seconds),
        "n_actions": np.full(n, 4.0),
        "up_bytes": np.full(n, 500.0),
        "down_bytes": np.full(n, 9000.0),
        timing.METRIC: metric,
        **{f"{p}_s": np.full(n, seconds / 5) for p in network.PHASES},
    }


def log(client, *, k=4, seconds=1.0):
    """Columns of `clients.parquet`."""
    client = np.asarray(client)
    ones = np.ones(client.size)
    return {
        "round": np.arange(client.size) // 2 + 1,
        "client": client,
        "n_actions": ones * k,
        "seconds": ones * seconds,
    }


def test_a_curve_is_a_centred_mean_of_evaluations():
    quality = np.array([0.1, 0.2, 0.6, 0.4, 0.5, 0.3])
    seconds, smooth = timing.curve(rounds(quality, every=3))
    np.testing.assert_allclose(seconds, 2.0 * np.arange(3, 19, 3))
    expected = [quality[max(i - 2, 0) : i + 3].mean() for i in range(6)]
    np.testing.assert_allclose(smooth, expected)


def test_time_to_a_target():
    seconds, quality = np.array([10.0, 20, 30, 40]), np.array([0.1, 0.3, 0.2, 0.5])
    assert timing.time_to(seconds, quality, 0.2) == pytest.approx(15)
    assert timing.time_to(seconds, quality, 0.3) == pytest.approx(20)
    assert timing.time_to(seconds, quality, 0.35) == pytest.approx(35)
    assert timing.time_to(seconds, quality, 0.05) == 10
    assert np.isnan(timing.time_to(seconds, quality, 0.6))


def arm(name, ranks, **changed):
    quality = np.linspace(0.1, 0.6, 20)
    curves = [rounds(quality, **changed), rounds(quality + 0.01, **changed)]
    ones = np.ones((2, 8), int)
    logs = [log(range(8)), log(range(8))]
    return timing.Timed(name, SPEC, curves, logs, np.asarray(ranks), ones, ones)


def test_a_table_of_arms():
    ranks = np.tile([1, 1, 2, 5, 20, 30, 3, 1], (2, 1))
    worse = np.where(ranks == 1, 40, ranks)
    base, fast, bad = (
        arm("dense", ranks),
        arm("fast", ranks, seconds=0.5),
        arm("bad", worse),
    )
    never = arm("never", ranks)._replace(rounds=[rounds(np.full(20, 0.1))] * 2)
    rows = {row["arm"]: row for row in timing.table([base, fast, bad, never], "dense")}
    goal = 0.95 * np.mean(np.where(ranks[0] <= 10, 1 / np.log2(1 + ranks[0]), 0))
    hours = np.mean([timing.time_to(*timing.curve(r), goal) for r in base.rounds]) / 3600
    assert rows["dense"]["hours"] == pytest.approx(hours)
    assert rows["fast"]["speedup"] == pytest.approx(4)
    assert rows["fast"]["rounds"] == pytest.approx(rows["dense"]["rounds"])
    assert [rows[a]["no_loss"] for a in rows] == ["baseline", *["2 seeds: not a claim"] * 3]
    assert pareto.verdict(True, np.ones((5, 8))) == "yes"
    assert pareto.verdict(False, np.ones((5, 8))) == "no"
    assert rows["dense"]["hr_bound"] is rows["dense"]["ndcg_bound"] is None
    assert rows["fast"]["hr_bound"] == rows["fast"]["ndcg_bound"] == 0
    lost = [np.mean(ranks == 1), np.mean(np.where(ranks == 1, 1, 0))]
    for name, mean in zip(("hr_bound", "ndcg_bound"), lost, strict=True):
        assert rows["bad"][name] < -mean  # the mean difference, less what it may be off
    assert rows["never"]["hours"] is rows["never"]["speedup"] is None
    assert rows["fast"]["up_bytes"] == 50
    assert sum(rows["fast"][f"{p}_share"] for p in network.PHASES) == pytest.approx(1)


def test_tiers():
    tier = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    ranks = np.array([[1, 1, 20, 20, 1, 1, 1, 20]])
    ones = np.ones((1, 8), int)
    base = timing.Timed("dense", SPEC, [], [log(range(8))], ranks, ones, ones)
    drawn, counted = np.zeros((2, 1, 8), int)
    drawn[0, [0, 1, 4]] = 1, 1, 2
    counted[0, 4] = 2  # the others were late
    worse = np.array([[20, 20, 20, 20, 1, 1, 1, 20]])
    left = timing.Timed("left", SPEC, [], [log([0, 1, 4, 4], k=2)], worse, drawn, counted)
    rows = {(r["arm"], r["tier"]): r for r in timing.tiers([base, left], "dense", tier)}
    assert rows["dense", 0]["hr@10"] == 0.5
    assert rows["left", 0]["difference"] == -0.5
    assert rows["left", 1]["difference"] == 0
    assert (rows["left", 0]["drawn"], rows["left", 0]["counted"]) == (0.5, 0)
    assert (rows["left", 1]["drawn"], rows["left", 1]["counted"]) == (0.5, 1)
    assert rows["left", 0]["n_actions"] == 2
    assert rows["dense", 1]["clients"] == 4
    assert (rows["dense", 0]["never"], rows["left", 0]["never"], rows["left", 1]["never"]) == (
        0,
        1,
        0.75,
    )


def test_for_whom_the_server_waits():
    """The slowest of each round, the first of several; a share of the clock, not of rounds."""
    tier = np.array([0, 0, 1, 1])
    seconds = [np.array([4.0, 1, 5, 5, 2, 3]), np.array([1.0, 9, 1, 1, 1, 1])]
    logs = [
        {
            "round": np.array([1, 1, 2, 2, 3, 3]),
            "client": np.array([0, 2, 1, 3, 0, 2]),
            "n_actions": np.ones(6),
            "seconds": s,
        }
        for s in seconds
    ]
    ones, ranks = np.ones((2, 4), int), np.ones((2, 4), int)
    arm = timing.Timed("dense", SPEC, [], logs, ranks, ones, ones)
    # 4 of tier 0, 5 of tier 0, 3 of tier 1; 9 of tier 1, 1 and 1 of tier 0.
    found = [row["waited"] for row in timing.tiers([arm], "dense", tier)]
    assert found == pytest.approx([11 / 23, 12 / 23])
    hasty = arm._replace(spec=SPEC.replace(arrival="over_commit", arrival_args={"wanted": 2}))
    assert [row["waited"] for row in timing.tiers([hasty], "dense", tier)] == [None, None]


def spending(name, seconds, **spec):
    """An arm whose clock is spent like that, by phase."""
    one = arm(name, np.ones((2, 8), int))
    curves = [r | {f"{p}_s": np.full(20, x) for p, x in seconds.items()} for r in one.rounds]
    return one._replace(rounds=curves, spec=SPEC.replace(**spec))


def test_what_rules_the_clock():
    shares = {"latency": 0, "download": 0, "train": 0, "encode": 0, "upload": 0}
    arms = [
        spending("dense", shares | {"download": 1.0, "upload": 3.0}),
        spending("far", shares | {"latency": 5.0, "upload": 5.0 - 1e-6}),
        spending("slow", shares | {"train": 1.0, "encode": 2.0, "upload": 2.0}),
        spending("even", {"latency": 1.0, "download": 1, "train": 1, "encode": 0.5, "upload": 0}),
        spending("free", shares),
    ]
    rows = {row["arm"]: row for row in timing.table(arms, "dense")}
    assert [row["rules"] for row in rows.values()] == [
        "upload",
        "latency",
        "encode",
        "latency",
        None,
    ]
    assert rows["dense"]["free_upload"] == pytest.approx(4)
    assert rows["dense"]["free_download"] == pytest.approx(4 / 3)
    assert rows["free"]["free_upload"] == 1
    assert timing.verdict(list(rows.values())) == [
        "transfers are half of the clock or more: dense",
        "computing is half of it or more: slow",
        "latency is half of it or more: far",
        "nothing is half of it: even, free",
    ]
    hasty = spending("dense", shares, arrival="deadline", arrival_args={"seconds": 1.0})
    assert timing.table([hasty], "dense")[0]["free_upload"] is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "dense"),
        ({"snapshot_bits": 5}, "table in 5 bits"),
        ({"downlink": "rows"}, "rows"),
        (
            {"downlink": "directional", "downlink_args": {"k": 4}, "downlink_trend": 0.1},
            "directional:k=4, trend 0.1",
        ),
        (
            {"downlink": "top_rows", "downlink_args": {"rows": 9}, "snapshot_bits": 8},
            "top_rows:rows=9, table in 8 bits",
        ),
    ],
)
def test_what_clients_fetch_in_words(fields, words):
    assert timing.downlink(SPEC.replace(**fields)) == words


def test_how_a_clock_came_about():
    base = arm("dense", np.ones((2, 8), int))
    arms = [base, *(base._replace(name=str(n), retimed=n) for n in (1, 2))]
    found = [row["clock"] for row in timing.table(arms, "dense")]
    assert found == ["run", "1 of 2 re-timed", "re-timed"]


def test_plots(tmp_path):
    """Some send different K in a round, or none does."""
    tier = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    ranks = np.ones((2, 8), int)
    arms = [arm("dense", ranks), *(arm(f"actions:k={k}", ranks) for k in range(5))]
    rows, by_tier = timing.table(arms, "dense"), timing.tiers(arms, "dense", tier)
    timing_plot.plot(tmp_path / "timing.png", arms, rows, goal=0.4, title="all")
    timing_plot.plot_tiers(tmp_path / "fixed.png", arms, by_tier, tier, title="fixed")
    varied = [log(range(8)) | {"n_actions": np.arange(8)}] * 2
    arms[1:] = [one._replace(clients=varied) for one in arms[1:]]
    timing_plot.plot_tiers(tmp_path / "varied.png", arms, by_tier, tier, title="varied")
    sizes = [(tmp_path / f"{n}.png").stat().st_size for n in ("timing", "fixed", "varied")]
    assert min(sizes) > 10_000
    assert sizes[2] > sizes[1]  # histograms
