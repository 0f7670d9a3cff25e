"""Run several arms that differ in their codec, and compare them.

    python -m experiments.compare --arm=dense --arm=actions:k=16 --arm=directional:k=16 \
        --seeds=0,1,2 --workdir=results/compare

An arm is CODEC or CODEC:NAME=VALUE,NAME=VALUE, where spec.FIELD=VALUE sets a field of the
experiment; all else comes from the flags, and is the same for all. The first arm is the baseline.
An arm's seeds run side by side, in one compiled program. Prints a table, and writes it with a plot
and every run's results to --workdir. The same command again goes on from there; SIGTERM saves and
ends with exit code 75.
"""

from pathlib import Path

from absl import app
from absl import flags as absl_flags

from experiments import arms, executor, flags
from fedras_jax import report
from fedras_jax.options import Options
from fedras_jax.programs import Kept
from fedras_jax.run import Result, run_group
from fedras_jax.spec import Spec

absl_flags.adopt_module_key_flags(flags)  # so that --help shows them
absl_flags.adopt_module_key_flags(arms)

DEFAULT = ("dense", "actions:k=16", "directional:k=16")


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.no_arguments(argv)
        arms.refuse()
        base = flags.spec_from_flags()
        specs = {arm: arms.parse(base, arm) for arm in arms.ARM.value or DEFAULT}
        seeds = arms.seeds(base.seed)
        flags.start_devices()
        workdir = None if flags.WORKDIR.value is None else Path(flags.WORKDIR.value)
        runs = _run_all(specs, seeds, workdir)
        rows = report.comparison({arm: [r.summary for r in done] for arm, done in runs.items()})
        print()
        print(report.heading(base, next(iter(runs.values()))[0].summary, seeds))
        print(report.render(rows))
        if workdir is not None:
            report.write_comparison(workdir, rows)
            report.plot(workdir / "comparison.png", base, {a: d[0].rounds for a, d in runs.items()})
            print(f"\nresults: {workdir}/comparison.csv, comparison.png and a folder a run")


def _run_all(
    specs: dict[str, Spec], seeds: list[int], workdir: Path | None
) -> dict[str, list[Result]]:
    """Every arm's runs, one a seed.

    Raises:
      DivergedError: one of them does.
      StoppedError: told to stop.
    """
    stop = flags.stop_when_told()
    options = Options(**flags.options_from_flags(keep_states=False, stop=stop))
    kept = Kept()  # of the data, which all arms share
    runs = {}
    for arm, spec in specs.items():
        executor.stop_if_told(stop, kept=workdir is not None)
        folder = workdir and workdir / report.folder_name(arm)
        found = run_group(
            [spec.replace(seed=seed) for seed in seeds],
            workdirs=[folder and folder / f"seed{seed}" for seed in seeds],
            options=options,
            kept=kept,
        )
        runs[arm] = executor.all_of(dict(zip(seeds, found, strict=True)))
    return runs


if __name__ == "__main__":
    app.run(main)
