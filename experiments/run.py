"""Run one experiment.

    python -m experiments.run --dataset=ml-latest-small-2016 --codec=actions --codec_arg=k=16 \
        --rounds=400 --workdir=results/actions

Prints the summary as JSON, and writes it with per-round rows, final ranks and checkpoints to
--workdir. The same command again goes on from the last checkpoint, with more --rounds too. SIGTERM
saves and ends with exit code 75. Sets of flags live in experiments/configs:
--flagfile=experiments/configs/ml1m_actions.flags.

With --distributed the same command on several hosts is one run: docs/hosts.md.
"""

import json

from absl import app
from absl import flags as absl_flags

from experiments import distributed, flags, spreading
from fedras_jax import hosts

for _module in (flags, distributed, spreading):  # so that --help shows them
    absl_flags.adopt_module_key_flags(_module)


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.no_arguments(argv)
        spec = flags.spec_from_flags()
        distributed.start()
        mesh = flags.start_devices()
        from fedras_jax.run import run  # after the devices are set up

        options = flags.options_from_flags(
            stop=flags.stop_when_told(), spread_items=spreading.SPREAD_ITEMS.value
        )
        result = run(spec, workdir=flags.WORKDIR.value, mesh=mesh, **options)
    if hosts.is_first():
        print(json.dumps(result.summary, indent=2))


if __name__ == "__main__":
    app.run(main)
