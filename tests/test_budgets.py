"""How many actions a client may send."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import budgets
from fedras_jax.errors import SpecError


def test_fixed_budget():
    budget = budgets.fixed(5)
    assert budget.max_actions == 5
    assert budget.allocate(jnp.int32(3), jnp.int32(7), None) == 5


def test_budget_by_client():
    budget = budgets.by_client(np.array([3, 1, 12]))
    found = jax.jit(jax.vmap(lambda u: budget.allocate(0, u, None)))(jnp.array([2, 0, 1, 2]))
    np.testing.assert_array_equal(found, [12, 3, 1, 12])
    assert found.dtype == jnp.int32
    assert budget.max_actions == 12


@pytest.mark.parametrize("wrong", [[], [[1, 2]], [1.0, 2.0], [3, 0], [-1]])
def test_budget_by_client_refuses(wrong):
    with pytest.raises(SpecError, match="1-D integer array of action counts, all >= 1"):
        budgets.by_client(np.array(wrong))
