"""What policies, clocks and profiles cost: clients per second of whole rounds, side by side.

    python -m benchmarks.policies --dataset=ml-1m --data_dir=DATA_DIR

A ratio below 1 is slower than synchronous rounds in which no time passes, beside which each is
timed, in turns. Two bars a codec: what an arrival policy may cost, and what devices, networks and
an adaptive budget may. Takes some 15 minutes on 2 cores, nearly all of them compilation.
"""

import statistics
from typing import Any

from absl import app, flags

from benchmarks import contestants, harness, machine
from fedras_jax.assembly import split_of
from fedras_jax.spec import Spec

DATASET = flags.DEFINE_string("dataset", "ml-latest-small-2016", "As in Spec.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where datasets lie.")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds in a turn.")
CODECS = flags.DEFINE_list("codecs", ["directional", "actions", "dense"], "Codecs to time.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns each; the median counts.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")

PHONES: dict[str, Any] = {
    "profile": "mobile",
    "profile_args": {"failure": 0.05, "availability": 0.7},
}
PLAIN = "no time, synchronous"
VARIANTS: dict[str, dict[str, Any]] = {
    "homogeneous, synchronous": {"profile": "homogeneous"},
    "mobile, synchronous": PHONES,
    "mobile, deadline": {**PHONES, "arrival": "deadline", "arrival_args": {"seconds": 30.0}},
    "mobile, over_commit": {**PHONES, "arrival": "over_commit", "arrival_args": {"wanted": 45}},
    "mobile, buffered": {**PHONES, "arrival": "buffered", "arrival_args": {"in_flight": 120}},
    "mobile, adaptive": {**PHONES, "budget": "adaptive"},
}

# A round's cost must not depend on the arrival policy by more than this.
SPREAD = 1.3


def bars_of(codec: str, seconds: dict[str, float]) -> list[harness.Bar]:
    """Policies against each other, and `mobile` with the default budget against homogeneous.

    Args:
      codec: its name.
      seconds: of each of `VARIANTS`, in those of plain rounds.
    """
    arrivals = [
        seconds[name]
        for name, fields in VARIANTS.items()
        if fields.get("profile") == "mobile" and "budget" not in fields
    ]
    where = (machine.cpu_cores(2), harness.Need("ml-1m", DATASET.value == "ml-1m"))
    homogeneous = seconds["homogeneous, synchronous"]
    mine = seconds.get("mobile, adaptive", seconds["mobile, synchronous"])
    return [
        harness.bar(
            f"slowest arrival policy over the fastest, {codec}",
            max(arrivals) / min(arrivals),
            "<=",
            SPREAD,
            *where,
        ),
        harness.bar(f"mobile over homogeneous, {codec}", homogeneous / mine, ">=", 0.8, *where),
    ]


def main(argv: list[str]) -> None:
    del argv
    harness.all_cores()
    base = Spec(dataset=DATASET.value)
    split = split_of(base, data_dir=DATA_DIR.value)
    figures = {}
    bars: list[harness.Bar] = []
    for codec in CODECS.value:
        args = {} if codec == "dense" else {"k": 16}

        def rounds(fields, codec=codec, args=args):
            spec = base.replace(codec=codec, codec_args=args, **fields)
            return contestants.going_on(spec, split, ROUNDS.value, mesh=contestants.mesh())

        plain = rounds({})
        relative, alone = {}, []
        for name, fields in VARIANTS.items():
            if codec == "dense" and fields.get("budget") == "adaptive":
                continue
            # Two programs at a time: a dozen of this size are more mappings than Linux grants.
            seconds = harness.race({PLAIN: plain, name: rounds(fields)}, TURNS.value)
            relative[name] = seconds[name] / seconds[PLAIN]
            alone.append(seconds[PLAIN])
        n = base.cohort_size * ROUNDS.value
        figures[f"{codec}, {PLAIN}, clients/s"] = n / statistics.median(alone)
        figures |= {f"{codec}, {name}, ratio": 1 / s for name, s in relative.items()}
        bars += bars_of(codec, relative)
    title = f"policies on {split.name}: {base.cohort_size} clients"
    harness.report(title, figures, JSON.value, bars=bars)


if __name__ == "__main__":
    app.run(main)
