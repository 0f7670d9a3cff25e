"""The server's optimizers, made by optax. All their numbers may be tracers.

Fed the negated mean change, `adagrad`, `adam` and `yogi` do what adaptive federated optimization
does (Reddi et al., ICLR 2021), in optax's form: `adam` and `yogi` correct the bias of their
moments, `adagrad` adds `eps` below the root, and `yogi` begins with moments of 1e-6. All but `sgd`
and `adagrad` move an item on after the rounds in which it was touched, by what is left of its
moments; where few clients take part most items are in that case, and small steps are wanted.
"""

import jax
import numpy as np
import optax

from fedras_jax.errors import SpecError
from fedras_jax.types import Number

# Ends of what a number may be as a float32, which is what programs are told.
_RANGES = {
    "eps": (float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max), "positive"),
    "initial": (0.0, float(np.finfo(np.float32).max), "at least 0 and finite"),
}
_DECAY = (0.0, 1 - 2.0**-24, "in [0, 1)")


def sgd(learning_rate: Number) -> optax.GradientTransformation:
    """The change itself, times the step size."""
    return optax.sgd(learning_rate)


def momentum(learning_rate: Number, decay: Number = 0.9) -> optax.GradientTransformation:
    """Heavy-ball momentum: the velocity is `decay` of itself and the change."""
    check("momentum", decay=decay)
    return optax.sgd(learning_rate, momentum=decay)


def adagrad(
    learning_rate: Number, initial: Number = 0.1, eps: Number = 1e-7
) -> optax.GradientTransformation:
    """Steps over the root of the sum of squares, which starts at `initial`."""
    check("adagrad", initial=initial, eps=eps)
    return optax.adagrad(learning_rate, initial, eps)


def adam(
    learning_rate: Number, b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8
) -> optax.GradientTransformation:
    """Adam, with decays of the first and second moment."""
    check("adam", b1=b1, b2=b2, eps=eps)
    return optax.adam(learning_rate, b1, b2, eps)


def yogi(
    learning_rate: Number, b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-3
) -> optax.GradientTransformation:
    """Adam whose second moment changes by no more than the square it is told."""
    check("yogi", b1=b1, b2=b2, eps=eps)
    return optax.yogi(learning_rate, b1, b2, eps)


def check(optimizer: str, **values: Number) -> None:
    """Refuse numbers with which no optimizer works: `eps`, `initial`, and decays by other names.

    An `eps` of 0 divides rows that never change by nothing.

    Raises:
      SpecError: one that is out of range.
    """
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer):  # a sweep's: whoever names its values checks them
            continue
        low, high, told = _RANGES.get(name, _DECAY)
        if not low <= value <= high:
            raise SpecError(f"{optimizer}: {name} must be {told}, not {value}")
