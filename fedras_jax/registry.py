"""Names for everything that a Spec can choose: one line for each thing that exists.

To add a codec, model, reducer, sampler, policy, profile, optimizer or transform, write its factory
and add it here; flags, Spec and sweeps then know it. What tests ask of a codec besides is in
docs/architecture.md, "Adding things".
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedras_jax import (
    arrivals,
    budgets,
    client,
    optimizers,
    profiles,
    reducers,
    samplers,
    transforms,
)
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.colr import colr
from fedras_jax.codecs.count_sketch import count_sketch
from fedras_jax.codecs.dense import dense
from fedras_jax.codecs.directional import directional
from fedras_jax.codecs.grid import CHOICES, grid
from fedras_jax.codecs.product import product
from fedras_jax.codecs.quantized import quantized
from fedras_jax.codecs.random_mask import random_mask
from fedras_jax.codecs.residual import residual
from fedras_jax.codecs.rotated import rotated
from fedras_jax.codecs.rows import rows
from fedras_jax.codecs.sign import sign
from fedras_jax.codecs.svd import svd
from fedras_jax.codecs.ternary import ternary
from fedras_jax.codecs.top_entries import top_entries
from fedras_jax.codecs.top_rows import top_rows
from fedras_jax.codecs.transform import transform
from fedras_jax.errors import SpecError
from fedras_jax.models.gmf import gmf
from fedras_jax.models.mf import mf
from fedras_jax.types import Codec, Number

Factories = Mapping[str, Callable[..., Any]]
_NUMBERS = (int, float, np.ndarray, np.number, jax.Array)

CODECS: Factories = {
    "dense": dense,
    "rows": rows,
    "actions": actions,
    "directional": directional,
    "grid": grid,
    "quantized": quantized,
    "ternary": ternary,
    "sign": sign,
    "rotated": rotated,
    "top_rows": top_rows,
    "top_entries": top_entries,
    "random_mask": random_mask,
    "svd": svd,
    "transform": transform,
    "count_sketch": count_sketch,
    "product": product,
    "residual": residual,
    "colr": colr,
}
# Codecs that the server's change can travel through. Feedback needs codecs that lose less than they
# are given (contractions); for the others, why not.
DOWNLINKS = (
    *("dense", "rows", "actions", "directional", "quantized", "rotated"),
    *("top_rows", "top_entries", "svd", "transform", "grid"),
)
NOT_DOWNLINKS = {
    "ternary": "its noise exceeds what it is given, so the server's feedback would grow",
    "random_mask": "its noise exceeds what it is given, so the server's feedback would grow",
    "count_sketch": "rows collide, and with all M of them its noise exceeds what it is given",
    "sign": "it moves all entries of a row alike, for which feedback of all M rows is not tested",
    "product": "its codebooks are made for the rows of one client",
    "residual": "its codebooks are made for the rows of one client",
    "colr": "the server's change does not lie in the round's basis",
}
MODELS: Factories = {"mf": mf, "gmf": gmf}
REDUCERS: Factories = {
    "touched_mean": reducers.touched_mean,
    "cohort_mean": reducers.cohort_mean,
}
PROFILES: Factories = {
    "homogeneous": profiles.homogeneous,
    "three_tiers": profiles.three_tiers,
    "mobile": profiles.mobile,
    "wifi": profiles.wifi,
    "constrained": profiles.constrained,
    "broadband": profiles.broadband,
}
ARRIVALS: Factories = {
    "synchronous": arrivals.synchronous,
    "over_commit": arrivals.over_commit,
    "deadline": arrivals.deadline,
    "buffered": arrivals.buffered,
}
BUDGETS: Factories = {
    "fixed": budgets.fixed,
    "by_client": budgets.by_client,
    "schedule": budgets.schedule,
    "bandwidth": budgets.bandwidth,
    "distortion": budgets.distortion,
    "round_time": budgets.round_time,
    "joint": budgets.joint,
    "adaptive": budgets.adaptive,
}
SAMPLERS: Factories = {
    "fixed_size": samplers.fixed_size,
    "poisson": samplers.poisson,
    "rotation": samplers.rotation,
}
TRANSFORMS: Factories = {
    "clip_norm": transforms.clip_norm,
    "pseudo_items": transforms.pseudo_items,
}
CLIENT_OPTIMIZERS: Factories = {"sgd": client.sgd, "adamw": client.adamw}
SERVER_OPTIMIZERS: Factories = {
    "sgd": optimizers.sgd,
    "momentum": optimizers.momentum,
    "adagrad": optimizers.adagrad,
    "adam": optimizers.adam,
    "yogi": optimizers.yogi,
}


def lookup(kind: str, factories: Factories, name: str) -> Callable[..., Any]:
    """The factory of that name.

    Raises:
      SpecError: there is none; the message lists those that exist.
    """
    if name not in factories:
        raise SpecError(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(factories))}")
    return factories[name]


def build(kind: str, factories: Factories, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """What the factory of that name makes of these arguments.

    Raises:
      SpecError: no such name, no such argument, or a value that the factory refuses; the message
        lists the arguments that exist.
    """
    factory = lookup(kind, factories, name)
    try:
        inspect.signature(factory).bind(*args, **kwargs)
    except TypeError as e:
        known = [
            p.name if p.default is p.empty else f"{p.name}={p.default!r}"
            for p in list(inspect.signature(factory).parameters.values())[len(args) :]
        ]
        raise SpecError(
            f"{kind} {name!r}: {e}; its arguments are: {', '.join(known) or 'none'}"
        ) from None
    for parameter in inspect.signature(factory).parameters.values():
        value = kwargs.get(parameter.name)
        # A float would pass `1 <= k`, and fail or be miscounted far from here.
        if parameter.annotation is int and value is not None and type(value) is not int:
            raise SpecError(f"{kind} {name!r}: {parameter.name} must be an integer, not {value!r}")
        given = parameter.name in kwargs and parameter.annotation == Number
        if given and (isinstance(value, bool) or not isinstance(value, _NUMBERS)):
            raise SpecError(f"{kind} {name!r}: {parameter.name} must be a number, not {value!r}")
    try:
        return factory(*args, **kwargs)
    except SpecError:
        raise
    except (TypeError, ValueError) as e:
        raise SpecError(f"{kind} {name!r} with {kwargs}: {e}") from e


def is_file(profile: str) -> bool:
    """Whether a profile is named by the file that holds it."""
    return profile not in PROFILES and "." in profile


def downlink(name: str, args: Mapping[str, Any]) -> Codec | None:
    """The codec of the server's change; None for 'dense', which sends the whole table.

    Raises:
      SpecError: no such codec, or one that cannot be a downlink; the message says why.
    """
    lookup("codec", CODECS, name)
    if name not in DOWNLINKS:
        reason = NOT_DOWNLINKS.get(name, "it has not been tried as one")
        raise SpecError(
            f"codec {name!r} cannot be a downlink: {reason}; choose one of {', '.join(DOWNLINKS)}"
        )
    codec = build("codec", CODECS, name, **args) if name != "dense" else None
    if name == "quantized" and args.get("bits", 4) < 4:
        raise SpecError(
            f"codec 'quantized' with {args['bits']} bits cannot be a downlink: its noise exceeds "
            "what it is given, so the server's feedback would grow; take at least 4 bits"
        )
    if name == "quantized" and args.get("codes", "fixed") == "entropy":
        raise SpecError(
            "codec 'quantized' with codes='entropy' cannot be a downlink: the coded bits of all "
            "entries of a large table are more than an int32 counts; take codes='fixed'"
        )
    if codec is None and args:
        raise SpecError(f"downlink 'dense' sends the public table itself, without {dict(args)}")
    return codec


def snapshot(bits: int) -> Codec | None:
    """The codec whose form the public table has; None for 32 bits.

    Raises:
      SpecError: no such form.
    """
    if bits not in (32, *CHOICES):
        raise SpecError(f"snapshot_bits must be one of {[32, *CHOICES]}, not {bits}")
    return None if bits == 32 else grid(bits)
