"""Ranks against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import cohort, evaluate
from fedras_jax.errors import DivergedError
from fedras_jax.models.mf import mf

U, M, D = 9, 40, 4
MODEL = mf(D)


@pytest.fixture(scope="module")
def world():
    """Small integers, so that scores are exact and ties are many."""
    rng = np.random.default_rng(0)
    items = rng.integers(-2, 3, (M, D)).astype(np.float32)
    private = rng.integers(-2, 3, (U, D)).astype(np.float32)
    target = rng.integers(M, size=U).astype(np.int32)
    target[4] = -1
    return items, private, target


def rank_of(score, target, others) -> int:
    """One place behind everyone who scores at least as much."""
    return 0 if target < 0 else 1 + sum(score[i] >= score[target] for i in others)


@pytest.fixture(scope="module")
def sampled():
    @jax.jit
    def ranks(items, private, target, candidates):
        return evaluate.sampled_ranks(MODEL, items, (), private, target, candidates, chunk=4)

    return ranks


@pytest.fixture(scope="module")
def full():
    @jax.jit
    def ranks(items, private, target, seen):
        return evaluate.full_ranks(MODEL, items, (), private, target, seen, chunk=4)

    return ranks


def candidates_of(target, n=12):
    rng = np.random.default_rng(1)
    rows = [rng.choice(np.setdiff1d(np.arange(M), t), n, replace=False) for t in target]
    rows = np.stack(rows).astype(np.int32)
    rows[np.arange(U), rng.integers(n, size=U)] = -1  # padding anywhere
    rows[2, 3:] = -1
    rows[3] = -1  # nobody to compare with
    return rows


def test_sampled_ranks(world, sampled):
    items, private, target = world
    candidates = candidates_of(target)
    found = evaluate.check(sampled(items, private, target, candidates))
    score = private @ items.T
    expected = [
        rank_of(score[u], target[u], [i for i in candidates[u] if i >= 0]) for u in range(U)
    ]
    np.testing.assert_array_equal(found, expected)
    assert found[3] == 1
    assert found[4] == 0
    assert found.dtype == np.int32


def test_full_ranks(world, full):
    items, private, target = world
    rng = np.random.default_rng(2)
    seen = np.stack([rng.choice(M, 7, replace=False) for _ in range(U)]).astype(np.int32)
    seen[:, 5] = -1
    seen[1] = -1
    seen[2, 0] = target[2]  # the held-out item stays, though the list names it
    found = evaluate.check(full(items, private, target, seen))
    score = private @ items.T
    expected = [
        rank_of(score[u], target[u], set(range(M)) - set(seen[u].tolist()) - {target[u]})
        for u in range(U)
    ]
    np.testing.assert_array_equal(found, expected)
    assert found[4] == 0


def test_constant_scores_give_the_last_place(world, sampled, full):
    items, private, target = world
    candidates = candidates_of(target)
    nothing = np.zeros_like(private)
    found = np.asarray(sampled(items, nothing, target, candidates))
    live = target >= 0
    np.testing.assert_array_equal(found[live], 1 + (candidates >= 0).sum(1)[live])
    seen = np.full((U, 7), -1, np.int32)
    found = np.asarray(full(items, nothing, target, seen))
    np.testing.assert_array_equal(found[live], M)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers(world, sampled, full, bad):
    items, private, target = world
    candidates = candidates_of(target)
    broken = private.copy()
    broken[[5, 7]] = bad
    for ranks in (
        sampled(items, broken, target, candidates),
        full(items, broken, target, np.full((U, 7), -1, np.int32)),
    ):
        assert np.all(np.asarray(ranks)[[5, 7]] == evaluate.NOT_FINITE)
        assert np.sum(np.asarray(ranks) == evaluate.NOT_FINITE) == 2
        with pytest.raises(DivergedError, match=r"2 of 9 clients .*first: client 5.*diverged"):
            evaluate.check(ranks)


def test_a_broken_item_that_is_not_ranked_does_no_harm(world, sampled):
    items, private, target = world
    candidates = candidates_of(target)
    unused = np.setdiff1d(np.arange(M - 1), np.concatenate([candidates.reshape(-1), target]))
    assert unused.size
    broken = items.copy()
    broken[unused] = np.nan
    np.testing.assert_array_equal(
        sampled(broken, private, target, candidates), sampled(items, private, target, candidates)
    )
    broken[candidates[0][candidates[0] >= 0][0]] = np.nan
    assert np.asarray(sampled(broken, private, target, candidates))[0] == evaluate.NOT_FINITE


def test_check_passes_ranks_on():
    ranks = jnp.array([0, 1, 7])
    np.testing.assert_array_equal(evaluate.check(ranks), [0, 1, 7])


@pytest.mark.parametrize("ranks", [evaluate.sampled_ranks, evaluate.full_ranks])
def test_devices_share_the_clients(world, ranks):
    """The same ranks, and a device goes through no more than its own clients."""
    items, private, target = world
    mesh = cohort.client_mesh(3)

    def of(mesh):
        def rank(items, private):
            own = (private, jnp.asarray(target), jnp.asarray(candidates_of(target)))
            return ranks(MODEL, items, (), *own, chunk=1, mesh=mesh)

        return jax.jit(rank).lower(items, private)

    alone, shared = of(None), of(mesh)
    np.testing.assert_array_equal(alone.compile()(items, private), shared.compile()(items, private))
    assert f"dense<{U}> : tensor<i32>" in alone.as_text()
    assert f"dense<{U // 3}> : tensor<i32>" in shared.as_text()
    assert f"dense<{U}> : tensor<i32>" not in shared.as_text()
