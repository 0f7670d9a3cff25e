"""Time to the same quality: codecs and budgets on different devices and networks.

    python -m experiments.heterogeneity --flagfile=experiments/configs/heterogeneity.flags \
        --data_dir=DATA_DIR --workdir=results/heterogeneity

A scenario is PROFILE or PROFILE:NAME=VALUE,...; an arm is as in `experiments.pareto`, and
`spec.budget`, `spec.downlink`, `spec.snapshot_bits` and `spec.arrival` say what it does. The arm
`dense`, dense both ways, is the baseline of every scenario. Runs that `--workdir` already holds are
loaded. Prints and writes, for each scenario, time-to-target, a breakdown of the clock, who took
part by tier, and a plot.
"""

import time
from pathlib import Path

import numpy as np
from absl import app
from absl import flags as absl_flags

from experiments import arms, flags, grids
from experiments.executor import Executor, all_of
from fedras_jax import metrics, report, results, timing, timing_plot
from fedras_jax.errors import DivergedError, SpecError
from fedras_jax.spec import Spec

absl_flags.adopt_module_key_flags(flags)  # so that --help shows them
absl_flags.adopt_module_key_flags(arms)

SCENARIO = absl_flags.DEFINE_multi_string(
    "scenario", None, "PROFILE or PROFILE:NAME=VALUE,...; repeatable. Default: all presets' grid."
)
TARGET = absl_flags.DEFINE_float(
    "target", timing.TARGET, "Target, as a share of the final NDCG@10 of the baseline."
)

BASELINE = "dense"


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.no_arguments(argv)
        base = flags.spec_from_flags()
        scenarios = {name: _scenario(base, name) for name in SCENARIO.value or grids.SCENARIOS}
        names = list(dict.fromkeys([BASELINE, *(arms.ARM.value or grids.TIMED)]))
        specs = {s: {a: arms.parse(spec, a) for a in names} for s, spec in scenarios.items()}
        seeds = arms.seeds(base.seed)
        if not 0 < TARGET.value <= 1:
            raise SpecError(f"--target must be in (0, 1], not {TARGET.value}")
        if flags.WORKDIR.value is None:
            raise SpecError("--workdir is needed: a grid is too long to be lost")
        workdir = Path(flags.WORKDIR.value)
        execute = Executor(workdir / "programs", log_clients=True)
        started, left = time.monotonic(), len(scenarios) * len(names)
        for scenario, arms_of in specs.items():
            folder = workdir / report.folder_name(scenario)
            finished, diverged = [], []
            for arm, spec in arms_of.items():
                left -= 1
                before = execute.ran
                try:
                    finished.append(_timed(arm, spec, seeds, folder, execute))
                except DivergedError:
                    if arm == BASELINE:
                        raise
                    diverged.append(arm)
                if flags.PROGRESS.value and execute.ran > before:
                    spent = (time.monotonic() - started) / 60
                    print(f"{scenario} {arm}: {spent:.0f} min, {left} arms to go", flush=True)
            _report(scenario, scenarios[scenario], finished, diverged, folder)


def _scenario(base: Spec, text: str) -> Spec:
    """The base Spec on the devices and networks of a scenario.

    Raises:
      SpecError: no such profile, or an argument that it does not have.
    """
    name, _, args = text.partition(":")
    return base.replace(
        profile=name, profile_args=flags.parse_args("scenario", flags.split_args(args))
    )


def _timed(arm: str, spec: Spec, seeds: list[int], folder: Path, execute: Executor) -> timing.Timed:
    """An arm in a scenario, run or loaded."""
    rounds, clients, finals = [], [], []
    places = {
        folder / report.folder_name(arm) / f"seed{seed}": spec.replace(seed=seed) for seed in seeds
    }
    all_of(execute(places))
    for here in places:
        finals.append(results.read_columns(here / "ranks.parquet"))
        rounds.append(results.read_columns(here / "rounds.parquet"))
        clients.append(results.read_columns(here / "clients.parquet"))
    ranks, drawn, counted = (
        np.stack([f[name] for f in finals]) for name in ("rank", "drawn", "counted")
    )
    return timing.Timed(arm, rounds, clients, ranks, drawn, counted)


def _report(
    scenario: str, spec: Spec, finished: list[timing.Timed], diverged: list[str], folder: Path
) -> None:
    """Tables and the plot of a scenario, on the screen and in its folder."""
    from fedras_jax.assembly import profile_of

    rows = timing.table(finished, BASELINE, target=TARGET.value)
    profile = profile_of(spec, finished[0].ranks.shape[1])
    tier = np.zeros(finished[0].ranks.shape[1], int) if profile is None else profile.tier
    by_tier = timing.tiers(finished, BASELINE, np.asarray(tier))
    goal = TARGET.value * float(
        np.mean([metrics.summarise(r)[timing.METRIC] for r in finished[0].ranks])
    )
    print(
        f"\n{scenario}: {spec.rounds} rounds of {spec.cohort_size}, {len(finished[0].ranks)} seeds;"
    )
    print(f"target NDCG@10 {goal:.4f}. Shares: what the client did that the server waited for.\n")
    print(report.render(rows, timing.COLUMNS))
    print()
    print(report.render(by_tier, timing.TIER_COLUMNS))
    for arm in diverged:
        print(f"\n{arm} diverged, and is left out")
    report.write_csv(folder / "timing.csv", rows)
    report.write_csv(folder / "tiers.csv", by_tier)
    timing_plot.plot(
        folder / "timing.png",
        finished,
        by_tier,
        np.asarray(tier),
        goal=goal,
        title=f"{spec.dataset} on {scenario}, D={spec.dim}, {spec.rounds} rounds",
    )
    print(f"\nresults: {folder}/timing.csv, tiers.csv, timing.png and a folder a run", flush=True)


if __name__ == "__main__":
    app.run(main)
