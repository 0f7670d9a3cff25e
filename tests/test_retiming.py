"""A run on other devices, from the tables of one: against the run itself."""

import math

import numpy as np
import pytest
from fake_runs import SPEC, ranks_of, write_run

from fedras_jax import cohort, registry, results, retiming
from fedras_jax.errors import ResultsError
from fedras_jax.options import Options
from fedras_jax.run import run_group
from fedras_jax.spec import Spec
from fedras_jax.types import Outlook, Tally

# A downlink of small changes: what a client fetches tells when it did so last. Encoding is slow, so
# that downloads end late in a client's round on `constrained`, and early on `mobile`.
BASE = Spec(
    dataset="synthetic:40x60x8",
    dim=16,
    rounds=24,
    eval_every=8,
    cohort_size=9,
    batch_size=32,
    candidates=10,
    codec="actions",
    codec_args={"k": 4, "iterations": 1},
    budget="schedule",
    budget_args={"k": [2, 4], "until": [5]},
    downlink="top_rows",
    downlink_args={"rows": 12},
    encode_work=20.0,
    seed=3,
)
CHURN = {"failure": 0.3, "availability": 0.7, "session": 2}
SPECS = {
    (profile, bool(fate)): BASE.replace(profile=profile, profile_args=fate)
    for fate in ({}, CHURN)
    for profile in ("constrained", "mobile")
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    folders = {key: root / f"{key[0]}-{key[1]}" for key in SPECS}
    done = run_group(
        list(SPECS.values()),
        workdirs=list(folders.values()),
        mesh=cohort.client_mesh(1),
        options=Options(log_clients=True, keep_states=False),
    )
    assert not any(isinstance(result, Exception) for result in done)
    return folders


# Budgets that all have the time for on `mobile`, and the slow tiers of `constrained` have not.
PATIENT = {"bandwidth": {"seconds": 0.05}, "round_time": {"seconds": 1.0}}
FIXED = BASE.replace(budget="fixed", budget_args={}, profile="constrained", profile_args=CHURN)


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A run without a budget on slow devices, and one with each of these on fast ones."""
    root = tmp_path_factory.mktemp("patient")
    specs = {"fixed": FIXED} | {
        name: FIXED.replace(budget=name, budget_args=args, profile="mobile")
        for name, args in PATIENT.items()
    }
    for name, spec in specs.items():
        run_group(
            [spec],
            workdirs=[root / name],
            mesh=cohort.client_mesh(1),
            options=Options(log_clients=True, keep_states=False),
        )
    return {name: (spec, root / name) for name, spec in specs.items()}


def rows_of(folder):
    return results.rows_in(results.read_log(folder, "rounds"))


@pytest.mark.parametrize("fails", [False, True], ids=["everyone", "failures"])
@pytest.mark.parametrize("to", ["constrained", "mobile"])
def test_a_retimed_run_is_the_run(runs, tmp_path, to, fails):
    there = next(name for name, _ in SPECS if name != to)
    spec = SPECS[to, fails]
    source = retiming.source(spec, [runs[there, fails]])
    retiming.write(source, spec, tmp_path)
    real = runs[to, fails]
    # Seconds are sums of five float32, added over rounds; a failing client's bytes are whole.
    seconds = {"rtol": 2e-6, "atol": 1e-5}
    rows, expected = rows_of(tmp_path), rows_of(real)
    assert [list(row) for row in rows] == [list(row) for row in expected]
    timed = {"seconds", "clock_s", *(n for n in expected[0] if n.endswith("_s"))}
    for found, row in zip(rows, expected, strict=True):
        for name in timed:
            np.testing.assert_allclose(found[name], row[name], **seconds, err_msg=name)
        for name in ("up_bytes", "down_bytes"):
            assert abs(found.pop(name) - row.pop(name)) <= row["failed"]
        # Training itself, to the last bit.
        assert {k: v for k, v in found.items() if k not in timed} == {
            k: v for k, v in row.items() if k not in timed
        }
    found, log = (results.read_columns(f / "clients.parquet") for f in (tmp_path, real))
    assert list(found) == list(log)
    for name in log:
        if name == "seconds":
            np.testing.assert_allclose(found[name], log[name], **seconds)
        elif name in ("up_bytes", "down_bytes"):
            np.testing.assert_allclose(found[name], log[name], atol=1)
        else:
            np.testing.assert_array_equal(found[name], log[name], err_msg=name)
    assert (~log["finished"]).any() == fails
    ranks, truth = (results.read_columns(f / "ranks.parquet") for f in (tmp_path, real))
    assert {k: v.tolist() for k, v in ranks.items()} == {k: v.tolist() for k, v in truth.items()}


@pytest.mark.parametrize("name", sorted(PATIENT))
def test_who_has_the_time_needs_no_budget(patient, tmp_path, name):
    spec, real = patient[name]
    source = retiming.source(spec, [patient["fixed"][1]])
    retiming.write(source, spec, tmp_path)
    assert results.read_summary(tmp_path)["retimed"]["profile"] == "constrained"
    rows, expected = rows_of(tmp_path), rows_of(real)
    for found, row in zip(rows, expected, strict=True):
        assert found["n_actions"] == row["n_actions"]
        # Another program: sums in float32 may come in another order.
        for field in ("seconds", "clock_s", "loss", "distortion"):
            np.testing.assert_allclose(found[field], row[field], rtol=1e-4, err_msg=field)
        assert abs(found["up_bytes"] - row["up_bytes"]) <= row["failed"]
    ranks, truth = (results.read_columns(f / "ranks.parquet") for f in (tmp_path, real))
    np.testing.assert_array_equal(ranks["rank"], truth["rank"])


@pytest.mark.parametrize("name", sorted(PATIENT))
def test_where_somebody_has_not_the_time_it_is_run(patient, name):
    slow = FIXED.replace(budget=name, budget_args=PATIENT[name])
    assert retiming.may_tell(FIXED, slow)
    assert retiming.source(slow, [patient["fixed"][1]]) is None
    rich = slow.replace(budget_args={"seconds": 1e4})
    assert retiming.source(rich, [patient["fixed"][1]]) is not None
    # What a budget may have cut short is no source, even where it has not.
    there = patient[name]
    assert not retiming.may_tell(there[0], there[0].replace(profile="wifi"))
    assert retiming.source(FIXED, [there[1]]) is None


def test_sizes_that_a_budget_only_knows_a_bound_of_are_not_retimed():
    coded = FIXED.replace(codec_args={"k": 4, "labels": "entropy"})
    assert not retiming.may_tell(
        coded, coded.replace(budget="bandwidth", budget_args={"seconds": 9.0})
    )


def test_scenarios_differ_in_time_and_in_what_failures_leave(runs):
    """Else the test above would show nothing."""
    clocks = {key: rows_of(folder)[-1]["clock_s"] for key, folder in runs.items()}
    assert clocks["constrained", False] > 10 * clocks["mobile", False]
    held = [
        results.read_columns(runs[name, True] / "clients.parquet")
        for name in ("constrained", "mobile")
    ]
    alive = held[0]["finished"]
    # Some fail while they send.
    assert any(((x["up_bytes"] > 0) & (x["up_bytes"] < x["payload_bytes"])).any() for x in held)
    # Where a client fails before it has fetched depends on the network, and so do later fetches.
    assert (held[0]["down_bytes"][alive] != held[1]["down_bytes"][alive]).any()
    everyone = results.read_columns(runs["mobile", False] / "clients.parquet")
    assert len(np.unique(everyone["down_bytes"])) > 3


def test_summary_of_a_retimed_run(runs, tmp_path):
    spec = SPECS["mobile", True]
    results.claim(tmp_path, spec, results.read_data(runs["constrained", True]))
    (tmp_path / "rounds.parts").mkdir()  # killed before
    retiming.write(retiming.source(spec, [runs["constrained", True]]), spec, tmp_path)
    summary, ranks = results.read_finished(tmp_path, spec)
    real, real_ranks = results.read_finished(runs["mobile", True], spec)
    assert summary["retimed"] == {"profile": "constrained", "profile_args": CHURN}
    assert summary["spec"] == real["spec"]
    assert summary["metrics"] == real["metrics"]
    np.testing.assert_array_equal(ranks, real_ranks)
    assert summary["payload"] == pytest.approx(real["payload"], rel=1e-3)
    assert summary["clock"] == pytest.approx(real["clock"], rel=1e-5)
    assert not (tmp_path / "rounds.parts").exists()
    table = results.load(tmp_path)
    assert table["status"].to_pylist() == ["finished"]
    # Rounding does not pile up: what was re-timed is no source.
    assert retiming.source(SPECS["constrained", True], [tmp_path]) is None


def test_sources(runs, tmp_path):
    spec = SPECS["mobile", False]
    places = [tmp_path / "none", runs["constrained", True], runs["constrained", False]]
    found = retiming.source(spec, places)
    assert found.spec == SPECS["constrained", False]
    assert retiming.source(spec, places[:2]) is None
    assert retiming.source(spec.replace(seed=4), places) is None
    # A run of a version that logged less.
    write_run(tmp_path / "old", SPEC.replace(profile="mobile"), ranks_of(0), log={"round": [1]})
    assert retiming.source(SPEC.replace(profile="wifi"), [tmp_path / "old"]) is None


def test_a_run_that_its_tables_do_not_explain_is_no_source(runs, tmp_path):
    spec = SPECS["mobile", False]
    real = runs["constrained", False]
    for path in real.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert retiming.source(spec, [tmp_path]) is not None
    log = results.read_columns(real / "clients.parquet")
    results.write_table(tmp_path / "clients.parquet", log | {"examples": log["examples"] + 40})
    assert retiming.source(spec, [tmp_path]) is None
    results.write_table(tmp_path / "clients.parquet", log | {"finished": ~log["finished"]})
    assert retiming.source(spec, [tmp_path]) is None


def test_shared_parameters_are_fetched_too(runs):
    """As if the model had 100 of them."""
    spec = SPECS["mobile", False]
    run = retiming.source(spec, [runs["constrained", False]])
    summary = run.summary | {"payload": run.summary["payload"] | {"shared_bytes": 400.0}}
    _, plain = retiming.retime(run, spec)
    _, found = retiming.retime(run._replace(summary=summary), spec)
    fetched = plain["down_bytes"] > 0
    assert 0 < fetched.sum() < fetched.size
    np.testing.assert_array_equal(found["down_bytes"], plain["down_bytes"] + 400 * fetched)
    assert (found["seconds"] > plain["seconds"])[fetched].all()
    np.testing.assert_array_equal(found["seconds"][~fetched], plain["seconds"][~fetched])


def test_devices_on_which_others_fail(runs):
    run = retiming.source(SPECS["mobile", True], [runs["constrained", True]])
    with pytest.raises(ResultsError, match="others would have failed"):
        retiming.retime(run, SPECS["mobile", False])


# ---------------------------------------------------------------- the predicate

TIMED = Spec(profile="mobile", codec="directional")


def test_what_trains_the_same():
    for name in registry.PROFILES:
        assert retiming.exact(TIMED, TIMED.replace(profile=name))
    slow = {"seed": 7, "jitter": 0.9, "correlation": 0.5}
    assert retiming.exact(TIMED, TIMED.replace(profile_args=slow))
    churn = {"failure": 0.05, "availability": 0.7, "session": 20}
    away = TIMED.replace(profile_args=churn)
    assert retiming.exact(away, away.replace(profile="wifi"))
    # Left out or said, 1 or 1.0.
    assert retiming.exact(TIMED, TIMED.replace(profile_args={"availability": 1, "session": 1}))


@pytest.mark.parametrize(
    "changed",
    [
        *({"profile_args": x} for x in ({"failure": 0.1}, {"availability": 0.5}, {"session": 3})),
        {"profile": "ideal"},
        {"profile": "mine.csv"},
        {"seed": 1},
        {"rounds": 100},
        {"eval_every": 7},
        {"encode_work": 0.3},
        {"snapshot_bits": 5},
        {"codec_args": {"k": 4}},
        {"client_lr": 0.4},
    ],
    ids=str,
)
def test_what_does_not(changed):
    other = TIMED.replace(profile="wifi").replace(**changed)
    assert not retiming.exact(TIMED, other)
    assert not retiming.exact(other, TIMED)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"arrival": "deadline", "arrival_args": {"seconds": 9.0}}, "arrival deadline"),
        ({"arrival": "over_commit", "arrival_args": {"wanted": 5}}, "arrival over_commit"),
        ({"arrival": "buffered", "arrival_args": {"in_flight": 99}}, "arrival buffered"),
        ({"budget": "adaptive"}, "budget adaptive"),
        ({"budget": "bandwidth", "budget_args": {"seconds": 1.0}}, "budget bandwidth"),
        ({"budget": "round_time", "budget_args": {"seconds": 1.0}}, "budget round_time"),
        ({"transforms": ({"name": "pseudo_items", "share": 0.5},)}, "transforms"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_what_depends_on_speeds_says_so(fields, reason):
    spec = TIMED.replace(**fields)
    assert retiming.obstacle(spec).startswith(reason)
    assert not retiming.exact(spec, spec.replace(profile="wifi"))
    assert retiming.obstacle(TIMED) is None


BUDGETS = {
    "fixed": {},
    "by_client": {"k": np.array([1, 2])},
    "schedule": {"k": [1, 2], "until": [3]},
    "bandwidth": {"seconds": 1.0},
    "distortion": {"tolerance": 0.1},
    "round_time": {"seconds": 1.0},
    "joint": {"bytes_mean": 100},
    "adaptive": {},
}


@pytest.mark.parametrize("name", sorted(registry.BUDGETS))
def test_blind_budgets_do_without_speeds_and_clock(name):
    """They are not even there: whoever looks at them fails."""
    budget = registry.BUDGETS[name](**BUDGETS[name])
    sizes = np.linspace(100, 900, 5, dtype=np.float32)
    outlook = Outlook(
        round=np.int32(1),
        client=np.int32(1),
        error=1 / (1 + sizes),
        bits=sizes,
        seconds=None,
        encode_s=None,
        pace=None,
    )
    try:
        k = budget.allocate(outlook, budget.init())
        budget.update(budget.init(), Tally(None, np.float32(300.0), None, None, None, None))
        blind = math.isfinite(k)
    except (TypeError, AttributeError):
        blind = False
    assert blind == (name in retiming.BLIND)
