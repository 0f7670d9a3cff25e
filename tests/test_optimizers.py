"""The server's optimizers are optax's, with numbers that may be tracers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedras_jax import client, optimizers, registry
from fedras_jax.errors import SpecError

SAME = {
    "sgd": (optax.sgd(0.1), {}),
    "momentum": (optax.sgd(0.1, momentum=0.5), {"decay": 0.5}),
    "adagrad": (optax.adagrad(0.1, 0.2, 1e-3), {"initial": 0.2, "eps": 1e-3}),
    "adam": (optax.adam(0.1, 0.5, 0.75, 1e-3), {"b1": 0.5, "b2": 0.75, "eps": 1e-3}),
    "yogi": (optax.yogi(0.1, 0.5, 0.75, 0.01), {"b1": 0.5, "b2": 0.75, "eps": 0.01}),
}


def trained(optimizer):
    """A table after three steps along the same gradient."""
    table = jnp.linspace(-1, 1, 5)
    state = optimizer.init(table)
    for _ in range(3):
        update, state = optimizer.update(table + 1, state, table)
        table = optax.apply_updates(table, update)
    return table


def test_all_of_them_are_compared():
    assert set(SAME) == set(registry.SERVER_OPTIMIZERS)


@pytest.mark.parametrize("name", SAME)
def test_an_optimizer_is_optaxs_also_with_tracers(name):
    expected, args = SAME[name]
    make = registry.SERVER_OPTIMIZERS[name]
    found = jax.jit(lambda args: trained(make(0.1, **args)))(args)
    np.testing.assert_allclose(found, trained(expected), rtol=1e-5)
    np.testing.assert_allclose(trained(make(0.1, **args)), trained(expected), rtol=1e-6)


def test_adamw_takes_its_decays():
    found = trained(client.adamw(0.1, 0.01, b1=0.5, b2=0.75, eps=1e-3))
    expected = trained(optax.adamw(0.1, 0.5, 0.75, 1e-3, weight_decay=0.01))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (optimizers.momentum, {"decay": 1.0}, r"momentum: decay must be in \[0, 1\), not 1.0"),
        (optimizers.momentum, {"decay": -(10**400)}, "momentum: decay must be in"),
        (optimizers.momentum, {"decay": -0.1}, "momentum: decay must be in"),
        (optimizers.momentum, {"decay": float("nan")}, "momentum: decay must be in"),
        (optimizers.adam, {"b1": 10**400}, "adam: b1 must be in"),
        (optimizers.adam, {"b2": 1 - 1e-12}, "adam: b2 must be in"),  # 1 as a float32
        (optimizers.adam, {"eps": 0.0}, "adam: eps must be positive, not 0.0"),
        (optimizers.yogi, {"eps": float("inf")}, "yogi: eps must be positive"),
        (optimizers.adagrad, {"initial": -1.0}, "adagrad: initial must be at least 0 and finite"),
    ],
)
def test_refuses(make, args, message):
    with pytest.raises(SpecError, match=message):
        make(0.1, **args)
