"""Run every benchmark, one process each, and keep what they found.

    python -m benchmarks.all --dataset=ml-1m --data_dir=DATA_DIR --outdir=results/bench

Writes a JSON file a benchmark and their printed tables as one Markdown page. Nothing else should
run on the machine meanwhile.
"""

import subprocess
import sys
from pathlib import Path

from absl import app, flags

DATASET = flags.DEFINE_string("dataset", "ml-latest-small-2016", "For those that train.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
OUTDIR = flags.DEFINE_string("outdir", "results/bench", "Where figures go.")

BENCHMARKS = {
    "kmeans": False,
    "round": True,
    "policies": True,
    "distortion": True,
    "process": True,
    "codecs": False,
    "sweep": True,
    "results": False,
}


def main(argv: list[str]) -> None:
    del argv
    out = Path(OUTDIR.value)
    out.mkdir(parents=True, exist_ok=True)
    page = []
    for name, trains in BENCHMARKS.items():
        call = [sys.executable, "-m", f"benchmarks.{name}", f"--json={out / name}.json"]
        if trains:
            call.append(f"--dataset={DATASET.value}")
            call += [f"--data_dir={DATA_DIR.value}"] if DATA_DIR.value else []
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, flush=True)
        page += [f"## {name}\n", "```", done.stdout.rstrip(), "```\n"]
    (out / "figures.md").write_text("\n".join(page))


if __name__ == "__main__":
    app.run(main)
