"""Which runs of the grid have to be made, and which arms tell which."""

from pathlib import Path

import pytest

from experiments import grids, heterogeneity
from fedras_jax.spec import Spec

FIXED = Spec(codec="directional", profile="mobile")
SPECS = {
    "16": FIXED,
    "slow": FIXED.replace(profile="constrained"),
    "bandwidth": FIXED.replace(budget="bandwidth", budget_args={"seconds": 1.0}),
    "adaptive": FIXED.replace(budget="adaptive"),
    "actions": FIXED.replace(codec="actions"),
}


def test_a_budget_of_time_is_told_by_the_arm_without_it_wherever_that_was_run():
    assert heterogeneity._tellers("bandwidth", SPECS) == ("bandwidth", "16", "slow")
    assert heterogeneity._tellers("16", SPECS) == ("16", "slow")
    for alone in ("adaptive", "actions"):
        assert heterogeneity._tellers(alone, SPECS) == (alone,)


def test_a_plan_counts_a_run_once():
    places = {Path(name): SPECS[name] for name in ("16", "slow", "adaptive")}
    first, told = heterogeneity._split(places, [])
    assert (list(first), list(told)) == ([Path("16"), Path("adaptive")], [Path("slow")])
    patient = {Path("bandwidth"): SPECS["bandwidth"]}
    assert heterogeneity._split(patient, []) == (patient, {})
    assert heterogeneity._split(patient, [SPECS["16"]]) == ({}, patient)


@pytest.mark.parametrize("scenario", grids.SCENARIOS)
def test_every_scenario_has_dense_both_forms_and_the_default_policy(scenario):
    arms = grids.timed(scenario)
    assert len(set(arms)) == len(arms)
    assert arms[0] == heterogeneity.BASELINE
    for form in ("directional", "actions"):
        mine = [arm for arm in arms if arm.startswith(form)]
        assert f"{form}:k=16,spec.snapshot_bits=5,spec.budget=adaptive" in mine
        assert sum("budget" not in arm for arm in mine) >= 4  # fixed K, one with a dense downlink
        assert f"{form}:k=16" in mine
    policies = {arm.split("spec.budget=")[1].split(",")[0] for arm in arms if "budget=" in arm}
    assert len(policies) == 6
