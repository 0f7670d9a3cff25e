"""Names for everything that a Spec can choose: one line for each thing that exists.

To add a codec, model, reducer, sampler, optimizer or transform, write its factory in a file of
its own and add it here; flags, Spec and the contract suites then know it.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from fedras_jax import client, reducers, samplers, transforms
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.dense import dense
from fedras_jax.codecs.directional import directional
from fedras_jax.codecs.rows import rows
from fedras_jax.errors import SpecError
from fedras_jax.models.gmf import gmf
from fedras_jax.models.mf import mf

Factories = Mapping[str, Callable[..., Any]]

CODECS: Factories = {
    "dense": dense,
    "rows": rows,
    "actions": actions,
    "directional": directional,
}
MODELS: Factories = {"mf": mf, "gmf": gmf}
REDUCERS: Factories = {
    "touched_mean": reducers.touched_mean,
    "cohort_mean": reducers.cohort_mean,
}
SAMPLERS: Factories = {"fixed_size": samplers.fixed_size, "poisson": samplers.poisson}
TRANSFORMS: Factories = {"clip_norm": transforms.clip_norm}
CLIENT_OPTIMIZERS: Factories = {"sgd": client.sgd, "adamw": client.adamw}
SERVER_OPTIMIZERS: Factories = {
    "sgd": optax.sgd,
    "momentum": lambda learning_rate, decay=0.9: optax.sgd(learning_rate, momentum=decay),
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "yogi": optax.yogi,
}


def lookup(kind: str, factories: Factories, name: str) -> Callable[..., Any]:
    """The factory of that name.

    Raises:
      SpecError: there is none; the message lists those that exist.
    """
    if name not in factories:
        raise SpecError(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(factories))}")
    return factories[name]


def build(kind: str, factories: Factories, name: str, *args: Any, **kwargs: Any) -> Any:
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
    try:
        return factory(*args, **kwargs)
    except SpecError:
        raise
    except (TypeError, ValueError) as e:
        raise SpecError(f"{kind} {name!r} with {kwargs}: {e}") from e
