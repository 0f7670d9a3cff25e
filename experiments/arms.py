"""Arms and seeds: what binaries that run several experiments have in common."""

import dataclasses
from typing import Any

from absl import flags as absl_flags

from experiments import flags
from fedras_jax.errors import SpecError
from fedras_jax.spec import DATA_FIELDS, Spec

ARM = absl_flags.DEFINE_multi_string(
    "arm",
    None,
    "CODEC or CODEC:NAME=VALUE,...; spec.FIELD=VALUE (spec.FIELD_args.NAME=VALUE) sets "
    "a field of the experiment. Repeatable.",
)
SEEDS = absl_flags.DEFINE_list("seeds", None, "Seeds to average over; default: --seed alone.")

# Arms that differ in these cannot be compared client by client, or have flags of their own.
_NOT_AN_ARMS = (*DATA_FIELDS, "codec", "codec_args", "seed")
_PREFIX = "spec."


def refuse() -> None:
    """Refuse flags that arms leave without effect.

    Raises:
      SpecError: one of them is given.
    """
    flags.refuse(("codec", "codec_arg"), "arms name codecs, as in --arm=actions:k=16")


def parse(base: Spec, arm: str) -> Spec:
    """The base Spec with an arm's codec, and with the fields that the arm sets.

    Raises:
      SpecError: the arm names no codec, arguments that it does not have, a field that does not
        exist or one that all arms must share.
    """
    codec, _, text = arm.partition(":")
    args = flags.parse_args("arm", flags.split_args(text))
    return base.replace(
        codec=codec,
        codec_args={k: v for k, v in args.items() if not k.startswith(_PREFIX)},
        **_fields(arm, args),
    )


def fields_of(arm: str) -> list[str]:
    """Names of the fields of the Spec that an arm sets."""
    _, _, text = arm.partition(":")
    return sorted(_fields(arm, flags.parse_args("arm", flags.split_args(text))))


def _fields(arm: str, args: dict[str, Any]) -> dict[str, Any]:
    known = [f.name for f in dataclasses.fields(Spec) if f.name not in _NOT_AN_ARMS]
    fields: dict[str, Any] = {}
    for key, value in args.items():
        if not key.startswith(_PREFIX):
            continue
        name, dot, entry = key.removeprefix(_PREFIX).partition(".")
        if name not in known or bool(dot) != name.endswith("_args"):
            raise SpecError(
                f"--arm={arm}: {key} names no field that arms may differ in; there are "
                + ", ".join(f"{n}.NAME" if n.endswith("_args") else n for n in known)
            )
        if dot:
            fields.setdefault(name, {})[entry] = value
        else:
            fields[name] = value
    return fields


def seeds(default: int) -> list[int]:
    """What `--seeds` says.

    Raises:
      SpecError: one of them is not an integer, or is there twice; or --seed is given too.
    """
    text = SEEDS.value
    if text is not None:
        flags.refuse(["seed"], "--seeds names all of them")
    try:
        found = [default] if text is None else [int(s) for s in text]
    except ValueError as e:
        raise SpecError(f"--seeds={','.join(text or [])}: expected integers, as in 0,1,2") from e
    if not found or len(set(found)) < len(found):
        raise SpecError(f"--seeds={','.join(text or [])}: expected different seeds, as in 0,1,2")
    return found
