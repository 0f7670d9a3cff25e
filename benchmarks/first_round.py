"""`experiments.run` that tells where its time went; `benchmarks.process` starts it.

    python -m benchmarks.first_round --rounds=1 --noprogress

Takes the flags of `experiments.run` and prints its summary, to which it adds `phases`: seconds from
the process's start (BENCH_BEGAN in the environment, seconds since the epoch; else this module's)
until `run` is called, and those in which data was read and split.
"""

import contextlib
import importlib
import io
import json
import os
import time
from typing import Any

BEGAN = float(os.environ.get("BENCH_BEGAN", time.time()))

from absl import app  # noqa: E402

from experiments import flags, run  # noqa: E402

_start_devices = flags.start_devices
phases: dict[str, float] = {}


def _watched() -> Any:
    """What `start_devices` does; from then on the library is watched."""
    mesh = _start_devices()
    from fedras_jax import assembly

    library: Any = importlib.import_module("fedras_jax.run")  # the package has a function so called
    whole, split_of = library.run, assembly.split_of

    def timed_run(*args: Any, **kwargs: Any) -> Any:
        phases["imports_s"] = time.time() - BEGAN
        return whole(*args, **kwargs)

    def timed_split(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        split = split_of(*args, **kwargs)
        phases["data_s"] = time.perf_counter() - start
        return split

    library.run = timed_run
    assembly.split_of = timed_split
    return mesh


def main(argv: list[str]) -> None:
    flags.start_devices = _watched
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run.main(argv)
    print(json.dumps({**json.loads(out.getvalue()), "phases": phases}))


if __name__ == "__main__":
    app.run(main)
