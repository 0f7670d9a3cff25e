"""One page about any number of runs.

    python -m experiments.report results/pareto results/heterogeneity --output=report.html

Looks for runs anywhere below the folders, and writes a single HTML file that opens from disk
without a network: what was run, tables with intervals, learning curves, the Pareto front,
distributions over clients, and commands to repeat it. Runs that differ in their seed alone are one
arm; runs that have diverged or not finished are listed. Needs the extra `report`.
"""

import time

from absl import app
from absl import flags as absl_flags

from experiments import flags
from fedras_jax import page, pareto
from fedras_jax.errors import SpecError

OUTPUT = absl_flags.DEFINE_string("output", "report.html", "The page to write.")
BASELINE = absl_flags.DEFINE_string(
    "baseline", None, "Name of the arm to compare with, as the page has it; default: the dense one."
)
MARGIN = absl_flags.DEFINE_float("margin", pareto.MARGIN, "What counts as a loss, in both metrics.")


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.refuse_all_but()
        if len(argv) < 2:
            raise SpecError("name one or several folders that hold runs, as in results/pareto")
        if not MARGIN.value >= 0:
            raise SpecError(f"--margin must not be negative, not {MARGIN.value}")
        page.libraries()  # before anything is read
        started = time.monotonic()
        study = page.collect(argv[1:], baseline=BASELINE.value)
        path = page.write(OUTPUT.value, study, margin=MARGIN.value)
    size, seconds = path.stat().st_size / 1e6, time.monotonic() - started
    print(f"{path}: {len(study.rows)} runs, {size:.1f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    app.run(main)
