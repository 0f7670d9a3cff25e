"""Run one experiment on a store, with only a segment of rounds in memory.

    python -m experiments.convert --dataset=ratings.csv --store=stores/ratings
    python -m experiments.stream --dataset=stores/ratings --memory=4 --cohort_size=1000 \
        --rounds=400 --workdir=results/streamed

Takes the flags of `experiments.run` and gives the same result from the same interactions; so does
--workdir, whose checkpoints it goes on from. --memory bounds what arrays take, and decides how long
segments are and where the clients' private state lies (docs/streaming.md).
"""

import json
import sys

from absl import app
from absl import flags as absl_flags

from experiments import distributed, flags, spreading
from fedras_jax import hosts

for _module in (flags, distributed, spreading):  # so that --help shows them
    absl_flags.adopt_module_key_flags(_module)

MEMORY = absl_flags.DEFINE_float("memory", 4.0, "GiB that arrays may take.")
AT_ONCE = absl_flags.DEFINE_integer(
    "rounds_at_once", None, "Rounds in a segment; default: as many as memory allows, 25 at most."
)
PRIVATE = absl_flags.DEFINE_string(
    "private_on", None, "Clients' private state on 'device', 'host' or 'disk'; default: by memory."
)
EVALUATE = absl_flags.DEFINE_integer(
    "evaluate_clients", 0, "Clients to evaluate, drawn by --data_seed; 0: all."
)


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.no_arguments(argv)
        spec = flags.spec_from_flags()
        distributed.start()
        mesh = flags.start_devices()
        from fedras_jax.stream import stream  # after the devices are set up

        result = stream(
            spec,
            memory=MEMORY.value,
            workdir=flags.WORKDIR.value,
            mesh=mesh,
            rounds_at_once=AT_ONCE.value,
            private_on=PRIVATE.value,
            evaluate_clients=EVALUATE.value,
            tell=lambda line: print(line, file=sys.stderr),
            **flags.options_from_flags(
                stop=flags.stop_when_told(), spread_items=spreading.SPREAD_ITEMS.value
            ),
        )
    if hosts.is_first():
        print(json.dumps(result.summary, indent=2))


if __name__ == "__main__":
    app.run(main)
