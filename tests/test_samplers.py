"""Who takes part. Seeds are fixed: a chi-square test gives the same p-value every time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedras_jax import rng, samplers
from fedras_jax.errors import SpecError

ROLES = np.array([0, 0, 3, 0, 1, 0, 2, 0, 0, 5, 0])
U = len(ROLES)
ROUNDS = 5000


def cohorts(sampler):
    keys = jax.vmap(lambda r: rng.address(0, rng.Stream.COHORT, r))(jnp.arange(ROUNDS))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(sampler.sample))(keys))


def test_fixed_size():
    sampler = samplers.fixed_size(U, 4, roles=ROLES)
    found = cohorts(sampler)
    assert sampler.capacity == 4
    assert found.client.shape == (ROUNDS, 4)
    assert all(len(set(row)) == 4 for row in found.client.tolist())
    assert found.mask.all()
    np.testing.assert_array_equal(found.weight, 1)
    np.testing.assert_allclose(found.inclusion, 4 / U, rtol=1e-6)
    np.testing.assert_array_equal(found.role, ROLES[found.client])
    count = np.bincount(found.client.reshape(-1), minlength=U)
    # Draws without replacement vary less, by (U - 4) / (U - 1). The seed is fixed.
    statistic = np.sum((count - count.mean()) ** 2) / count.mean() * (U - 1) / (U - 4)
    assert stats.chi2.sf(statistic, U - 1) > 1e-3
    # And every set of four: 330 of them, about 15 times each.
    sets = np.unique(np.sort(found.client, axis=1), axis=0, return_counts=True)[1]
    assert len(sets) == 330
    assert stats.chisquare(sets).pvalue > 1e-3


@pytest.mark.parametrize("size", [0, U])
def test_everyone(size):
    sampler = samplers.fixed_size(U, size)
    found = sampler.sample(jax.random.key(0))
    np.testing.assert_array_equal(found.client, np.arange(U))
    np.testing.assert_array_equal(found.inclusion, 1)
    np.testing.assert_array_equal(found.role, 0)
    assert found.mask.all()
    assert sampler.capacity == U


@pytest.mark.parametrize("size", [-1, U + 1])
def test_fixed_size_refuses(size):
    with pytest.raises(SpecError) as error:
        samplers.fixed_size(U, size)
    assert f"cohort of {size} clients, but there are 11: choose 1 to 11, or 0" in str(error.value)


def test_poisson():
    sampler = samplers.poisson(U, 0.15, roles=ROLES)
    found = cohorts(sampler)
    assert sampler.capacity == U
    drawn = found.mask.sum(1)
    np.testing.assert_array_equal(found.mask, np.arange(U) < drawn[:, None])  # the first slots
    np.testing.assert_array_equal(found.weight, found.mask)
    np.testing.assert_allclose(found.inclusion, 0.15, rtol=1e-6)
    np.testing.assert_array_equal(found.role, ROLES[found.client])
    for clients, n in zip(found.client[:100], drawn[:100], strict=True):
        assert len(set(clients[:n].tolist())) == n
    # Sizes are binomial, with empty rounds and all; those above 5 are too rare for a bin each.
    size = np.bincount(np.minimum(drawn, 5), minlength=6)
    expected = stats.binom.pmf(np.arange(6), U, 0.15)
    expected[5] = stats.binom.sf(4, U, 0.15)
    assert stats.chisquare(size, ROUNDS * expected / expected.sum()).pvalue > 1e-3
    # Each client's count is binomial too.
    count = np.bincount(found.client[found.mask], minlength=U)
    statistic = np.sum((count - ROUNDS * 0.15) ** 2) / (ROUNDS * 0.15 * 0.85)
    assert stats.chi2.sf(statistic, U) > 1e-3


def test_poisson_at_rate_one_is_everyone():
    found = samplers.poisson(U, 1.0).sample(jax.random.key(0))
    np.testing.assert_array_equal(found.client, np.arange(U))
    assert found.mask.all()


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01, float("nan")])
def test_poisson_refuses(rate):
    with pytest.raises(SpecError, match=r"rate .*: choose a probability in \(0, 1\]"):
        samplers.poisson(U, rate)


@pytest.mark.parametrize("make", [samplers.fixed_size, samplers.poisson])
def test_roles_are_one_a_client(make):
    with pytest.raises(SpecError, match=r"roles: expected 11 of them, one a client, got \(10,\)"):
        make(U, 1, roles=ROLES[:-1])


def test_rotation_takes_everyone_once_a_pass():
    sampler = samplers.rotation(U, 4, roles=ROLES)
    assert (sampler.capacity, sampler.period) == (4, 3)
    sample = jax.jit(sampler.sample)
    orders = []
    for turn in range(2):
        key = rng.address(0, rng.Stream.COHORT, turn)
        found = [jax.tree.map(np.asarray, sample(key, None, jnp.int32(i))) for i in range(3)]
        assert [c.mask.sum() for c in found] == [4, 4, 3]
        np.testing.assert_array_equal(found[2].weight, found[2].mask)
        np.testing.assert_allclose(found[0].inclusion, 4 / U, rtol=1e-6)
        for c in found:
            np.testing.assert_array_equal(c.role, ROLES[c.client])
        orders.append(np.concatenate([c.client[c.mask] for c in found]).tolist())
        assert sorted(orders[-1]) == list(range(U))
    assert orders[0] != orders[1]
    away = orders[0][1]
    there = jnp.ones(U, bool).at[away].set(False)
    left = sample(rng.address(0, rng.Stream.COHORT, 0), there, jnp.int32(0))
    assert np.asarray(left.mask).tolist() == [True, False, True, True]
    for size in (0, U + 1):
        with pytest.raises(SpecError, match="choose 1 to 11"):
            samplers.rotation(U, size)
