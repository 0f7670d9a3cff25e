"""Time to the same quality: codecs and budgets on different devices and networks.

    python -m experiments.heterogeneity --flagfile=experiments/configs/heterogeneity.flags \
        --data_dir=DATA_DIR --workdir=results/heterogeneity

A scenario is PROFILE or PROFILE:NAME=VALUE,...; an arm is as in `experiments.pareto`, and
`spec.budget`, `spec.downlink`, `spec.snapshot_bits` and `spec.arrival` say what it does. The arm
`dense`, dense both ways, is the baseline of every scenario. Runs that `--workdir` already holds are
loaded. Where training does not depend on how fast devices and networks are, an arm is run in one
scenario, and re-timed for those others in which the same clients are there and fail
(`fedras_jax/retiming.py`); so is a budget that nobody is too slow for, from the arm without it.
Prints and writes, for each scenario, time-to-target, a breakdown of the
clock, who took part by tier, and two plots. `--norun` shows what is there of the arms that it is
asked for.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app
from absl import flags as absl_flags

from experiments import arms, flags, grids
from experiments.executor import Executor, stop_if_told
from fedras_jax import metrics, report, results, retiming, timing, timing_plot
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
RUN = absl_flags.DEFINE_bool(
    "run", True, "Run what is not there; --norun shows what --workdir holds, and what it lacks."
)

BASELINE = "dense"

# Folders of runs, and what is to be in them.
Places = dict[Path, Spec]


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.no_arguments(argv)
        arms.refuse()
        flags.refuse(["checkpoint_every"], "what is done is kept a run at a time")
        flags.refuse(["log_clients"], "clients are logged in any case")
        flags.refuse(("profile", "profile_arg"), "scenarios name profiles, as in --scenario=mobile")
        base = flags.spec_from_flags()
        scenarios = {name: _scenario(base, name) for name in SCENARIO.value or grids.SCENARIOS}
        asked = {s: [BASELINE, *(arms.ARM.value or grids.timed(s))] for s in scenarios}
        specs = {s: {a: arms.parse(scenarios[s], a) for a in names} for s, names in asked.items()}
        seeds = arms.seeds(base.seed)
        if not 0 < TARGET.value <= 1:
            raise SpecError(f"--target must be in (0, 1], not {TARGET.value}")
        if flags.WORKDIR.value is None:
            raise SpecError("--workdir is needed: a grid is too long to be lost")
        workdir = Path(flags.WORKDIR.value)
        execute = Executor(log_clients=True, loads=RUN.value)
        places = {
            (scenario, arm): {
                workdir
                / report.folder_name(scenario)
                / report.folder_name(arm)
                / f"seed{seed}": spec.replace(seed=seed)
                for seed in seeds
            }
            for scenario, arms_of in specs.items()
            for arm, spec in arms_of.items()
        }
        of_arms: dict[str, dict[Path, Spec]] = {}
        for (_, arm), here in places.items():
            of_arms.setdefault(arm, {}).update(here)
        alike = {arm: next(iter(here.values())) for arm, here in of_arms.items()}
        tellers = {arm: _tellers(arm, alike) for arm in of_arms}
        lost = _fill_all(of_arms, tellers, execute)
        for scenario, spec in scenarios.items():
            mine = {arm: places[scenario, arm] for arm in specs[scenario]}
            _show(scenario, spec, mine, lost, workdir / report.folder_name(scenario), execute)


def _scenario(base: Spec, text: str) -> Spec:
    """The base Spec on the devices and networks of a scenario.

    Raises:
      SpecError: no such profile, or an argument that it does not have.
    """
    name, _, args = text.partition(":")
    return base.replace(
        profile=name, profile_args=flags.parse_args("scenario", flags.split_args(args))
    )


def _tellers(arm: str, specs: Mapping[str, Spec]) -> tuple[str, ...]:
    """The arms whose runs may tell this one's, itself first.

    Args:
      arm: which.
      specs: one of each arm's.
    """
    wanted = specs[arm]
    place = {"profile": wanted.profile, "profile_args": wanted.profile_args, "seed": wanted.seed}
    others = (a for a in specs if a != arm)
    return (arm, *(a for a in others if retiming.may_tell(specs[a].replace(**place), wanted)))


def _fill_all(
    of_arms: Mapping[str, Places], tellers: Mapping[str, tuple[str, ...]], execute: Executor
) -> set[Path]:
    """All arms' runs in their folders, as far as they may be run; returns those that diverge.

    Args:
      of_arms: an arm's runs in all scenarios.
      tellers: the arms whose runs may tell an arm's, itself first.

    Raises:
      DivergedError: the baseline does.
    """
    lost: set[Path] = set()
    plans = {}
    n_there = 0
    # An arm that others tell comes after them.
    order = sorted(of_arms, key=lambda arm: len(tellers[arm]) > 1)
    for arm in order:
        stop_if_told(execute.stop)
        places = of_arms[arm]
        stored = {folder: execute.stored(folder, spec) for folder, spec in places.items()}
        lost |= {folder for folder, found in stored.items() if isinstance(found, DivergedError)}
        absent = {f: s for f, s in places.items() if stored[f] is None}
        elsewhere = [s for a in tellers[arm][1:] for s in of_arms[a].values()]
        plans[arm] = _split(_retimed(absent, tellers[arm], execute), elsewhere)
        n_there += len(places) - sum(map(len, plans[arm]))
    to_run, others = (sum(len(plan[i]) for plan in plans.values()) for i in range(2))
    print(
        f"{n_there} of {n_there + to_run + others} runs are there; {to_run} have to be run, and "
        f"{others} are re-timed from them",
        flush=True,
    )
    started = time.monotonic()
    for arm, (first, rest) in plans.items() if RUN.value else ():
        before = execute.ran
        lost |= _fill(first, rest, tellers[arm], execute)
        if flags.PROGRESS.value and execute.ran > before:
            spent = (time.monotonic() - started) / 60
            left = spent / execute.ran * max(to_run - execute.ran, 0)
            print(f"{arm}: {spent:.0f} min, some {left:.0f} left", flush=True)
        if arm == BASELINE and lost & set(of_arms[arm]):
            raise DivergedError(f"{BASELINE} diverges, and all others are compared with it")
    return lost


def _fill(first: Places, rest: Places, tellers: tuple[str, ...], execute: Executor) -> set[Path]:
    """An arm's runs, and those that they tell; returns those that diverge."""
    found = execute(first)
    lost = {folder for folder, one in found.items() if isinstance(one, DivergedError)}
    # What trains like a run that diverges diverges too.
    spoilt = [first[folder] for folder in lost]
    lost |= {f for f, s in rest.items() if any(retiming.exact(t, s) for t in spoilt)}
    left = _retimed({f: s for f, s in rest.items() if f not in lost}, tellers, execute)
    found = execute(left)  # where a run's tables do not explain its seconds, or time is short
    return lost | {folder for folder, one in found.items() if isinstance(one, DivergedError)}


def _split(places: Places, others: Sequence[Spec]) -> tuple[Places, Places]:
    """Runs that nothing else may tell, and those that one of these, or of other arms, may."""
    first: Places = {}
    told: Places = {}
    for folder, spec in places.items():
        tellers = (*first.values(), *others)
        known = any(retiming.may_tell(other, spec) for other in tellers)
        (told if known else first)[folder] = spec
    return first, told


def _retimed(places: Places, tellers: tuple[str, ...], execute: Executor) -> Places:
    """Re-times what a run of these arms on disk tells; returns the others."""
    left: Places = {}
    for folder, spec in places.items():
        stop_if_told(execute.stop)
        run = retiming.source(spec, _siblings(folder, tellers), execute.data_of(spec))
        if run is None:
            left[folder] = spec
        else:
            retiming.write(run, spec, folder)
    return left


def _siblings(folder: Path, arms_of: tuple[str, ...]) -> list[Path]:
    """The same seed of these arms in all scenarios that the results folder holds."""
    scenario, _, seed = folder.parts[-3:]
    root = folder.parents[2]
    found = [
        path for arm in arms_of for path in sorted(root.glob(f"*/{report.folder_name(arm)}/{seed}"))
    ]
    return sorted(found, key=lambda path: path.parts[-3] != scenario)


def _timed(arm: str, places: Places) -> timing.Timed:
    """An arm in a scenario, loaded."""
    rounds, clients, finals, retimed = [], [], [], 0
    for here in places:
        finals.append(results.read_columns(here / "ranks.parquet"))
        rounds.append(results.read_columns(here / "rounds.parquet"))
        clients.append(results.read_columns(here / "clients.parquet"))
        retimed += "retimed" in results.read_summary(here)
    ranks, drawn, counted = (
        np.stack([f[name] for f in finals]) for name in ("rank", "drawn", "counted")
    )
    spec = next(iter(places.values()))
    return timing.Timed(arm, spec, rounds, clients, ranks, drawn, counted, retimed)


def _show(
    scenario: str,
    spec: Spec,
    places: Mapping[str, Places],
    lost: set[Path],
    folder: Path,
    execute: Executor,
) -> None:
    """Tables and plots of a scenario, on the screen and in its folder."""
    stop_if_told(execute.stop)
    diverged = [arm for arm, here in places.items() if lost & set(here)]
    lacking = [
        arm
        for arm, here in places.items()
        if arm not in diverged and any(execute.stored(f, s) is None for f, s in here.items())
    ]
    if BASELINE in lacking:
        print(f"\n{scenario}: {BASELINE} is not there yet, so there is nothing to compare with")
        return
    finished = [
        _timed(arm, here) for arm, here in places.items() if arm not in (*diverged, *lacking)
    ]
    _report(scenario, spec, finished, folder)
    for arm in diverged:
        print(f"{arm} diverged, and is left out")
    for arm in lacking:
        print(f"{arm} is not there yet for all seeds, and is left out")
    print(
        f"\nresults: {folder}/timing.csv, tiers.csv, timing.png, tiers.png and a folder a run",
        flush=True,
    )


def _report(scenario: str, spec: Spec, finished: Sequence[timing.Timed], folder: Path) -> None:
    from fedras_jax.assembly import tiers_of

    rows = timing.table(finished, BASELINE, target=TARGET.value)
    n_clients = finished[0].ranks.shape[1]
    tier = tiers_of(spec, n_clients)
    tier = np.zeros(n_clients, int) if tier is None else tier
    by_tier = timing.tiers(finished, BASELINE, tier)
    goal = TARGET.value * float(
        np.mean([metrics.summarise(r)[timing.METRIC] for r in finished[0].ranks])
    )
    print(
        f"\n{scenario}: {spec.rounds} rounds of {spec.cohort_size}, {len(finished[0].ranks)} seeds;"
    )
    print(f"target NDCG@10 {goal:.4f}. A clock is run, or re-timed from a run of the same training")
    print("on other devices.\n")
    print(report.render(rows, timing.COLUMNS))
    print(
        "\nWhat the client did that the server waited for, and how many times as fast rounds were"
    )
    print("at most if uploads, or downloads, took no time:\n")
    print(report.render(rows, timing.CLOCK_COLUMNS))
    print()
    for line in timing.verdict(rows):
        print(line)
    print()
    print(report.render(by_tier, timing.TIER_COLUMNS))
    print()
    report.write_csv(folder / "timing.csv", rows)
    report.write_csv(folder / "tiers.csv", by_tier)
    title = f"{spec.dataset} on {scenario}, D={spec.dim}, {spec.rounds} rounds"
    timing_plot.plot(folder / "timing.png", finished, rows, goal=goal, title=title)
    timing_plot.plot_tiers(folder / "tiers.png", finished, by_tier, tier, title=f"{title}, by tier")


if __name__ == "__main__":
    app.run(main)
