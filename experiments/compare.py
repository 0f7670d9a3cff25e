"""Run several arms that differ in their codec, and compare them.

    python -m experiments.compare --arm=dense --arm=actions:k=16 --arm=directional:k=16 \
        --seeds=0,1,2 --workdir=results/compare

An arm is CODEC or CODEC:NAME=VALUE,NAME=VALUE, where spec.FIELD=VALUE sets a field of the
experiment; all else comes from the flags, and is the same for all. The first arm is the baseline.
Prints a table, and writes it with a plot and every run's results to --workdir.
"""

from pathlib import Path

from absl import app
from absl import flags as absl_flags

from experiments import arms, flags

absl_flags.adopt_module_key_flags(flags)  # so that --help shows them
absl_flags.adopt_module_key_flags(arms)

DEFAULT = ("dense", "actions:k=16", "directional:k=16")


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.no_arguments(argv)
        base = flags.spec_from_flags()
        specs = {arm: arms.parse(base, arm) for arm in arms.ARM.value or DEFAULT}
        seeds = arms.seeds(base.seed)
        mesh = flags.start_devices()
        from fedras_jax import report
        from fedras_jax.run import run  # after the devices are set up

        workdir = None if flags.WORKDIR.value is None else Path(flags.WORKDIR.value)
        runs = {}
        for arm, spec in specs.items():
            runs[arm] = [
                run(
                    spec.replace(seed=seed),
                    workdir=workdir and workdir / report.folder_name(arm) / f"seed{seed}",
                    mesh=mesh,
                    **flags.options_from_flags(),
                )
                for seed in seeds
            ]
        rows = report.comparison({arm: [r.summary for r in done] for arm, done in runs.items()})
        print()
        print(report.heading(base, next(iter(runs.values()))[0].summary, seeds))
        print(report.render(rows))
        if workdir is not None:
            report.write_comparison(workdir, rows)
            report.plot(workdir / "comparison.png", base, {a: d[0].rounds for a, d in runs.items()})
            print(f"\nresults: {workdir}/comparison.csv, comparison.png and a folder a run")


if __name__ == "__main__":
    app.run(main)
