"""Local training: by automatic differentiation, factored, and as a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import plain_training

from fedras_jax import client
from fedras_jax.errors import SpecError
from fedras_jax.factored import factored
from fedras_jax.models.gmf import gmf
from fedras_jax.models.mf import mf

D = 5
LR, DECAY = 0.4, 0.03

# slots, real examples (or None: every third one is padded), epochs, minibatch size
CASES = [
    (24, 24, 1, 8),  # three whole minibatches
    (30, None, 2, 8),  # a smaller last one; padding everywhere
    (30, 9, 3, 8),  # two of four minibatches have no real example
    (5, 4, 2, 256),  # fewer examples than a minibatch
    (40, 37, 2, 4),  # many whole ones
    (43, None, 3, 4),  # many, and a remainder
    (43, 21, 2, 4),  # several empty, an empty remainder
    (6, 0, 2, 4),  # nothing at all
]


def setting(slots: int, real: int | None):
    rng = np.random.default_rng(slots)
    mask = np.arange(slots) % 3 > 0 if real is None else np.arange(slots) < real
    private = rng.normal(size=D).astype(np.float32)
    rows = rng.normal(size=(slots, D)).astype(np.float32)
    label = rng.integers(2, size=slots).astype(np.float32)
    return tuple(jnp.asarray(x) for x in (private, rows, label, mask))


@pytest.mark.parametrize(("slots", "real", "epochs", "size"), CASES)
def test_factored_is_autodiff_is_the_plain_loop(slots, real, epochs, size):
    private, rows, label, mask = setting(slots, real)
    model = mf(D)
    how = {"epochs": epochs, "batch_size": size}
    by_autodiff = client.autodiff(model, client.sgd(LR, DECAY), **how)
    by_factors = factored(mf(D), LR, DECAY, **how)
    one = jax.jit(by_autodiff)(private, (), rows, label, mask)
    two = jax.jit(by_factors)(private, (), rows, label, mask)
    p, change, loss, _, _ = plain_training(
        private, rows, label, mask, lr=LR, decay=DECAY, epochs=epochs, batch_size=size
    )
    change = np.where(mask[:, None], change, 0)
    # Values of order 1 in float32: a few ulps a step. Autodiff's rows are a difference of two.
    for found in (one, two):
        np.testing.assert_allclose(found.private, p, atol=3e-6)
        np.testing.assert_allclose(found.rows, change, atol=3e-6)
        np.testing.assert_allclose(found.loss, loss, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(np.asarray(found.rows)[~np.asarray(mask)], 0)
        assert found.shared == ()
    np.testing.assert_allclose(one.private, two.private, atol=2e-6)
    np.testing.assert_allclose(one.rows, two.rows, atol=2e-6)


@pytest.mark.parametrize(
    "training", [client.autodiff(mf(D), client.sgd(LR, DECAY)), factored(mf(D), LR)]
)
def test_no_examples_change_nothing(training):
    private, rows, label, mask = setting(6, 0)
    found = jax.jit(training)(private, (), rows, label, mask)
    np.testing.assert_array_equal(found.private, private)
    np.testing.assert_array_equal(found.rows, 0)
    assert found.loss == 0


@pytest.mark.parametrize("slots", [30, 43])
def test_what_lies_in_padded_slots_does_not_matter(slots):
    """Neither values nor more padding behind."""
    private, rows, label, mask = setting(slots, 21)
    other = jnp.where(mask[:, None], rows, 7.0), jnp.where(mask, label, 1.0)
    for training in (
        client.autodiff(mf(D), client.sgd(LR, DECAY), epochs=2, batch_size=4),
        factored(mf(D), LR, DECAY, epochs=2, batch_size=4),
    ):
        run = jax.jit(training)
        found, moved = run(private, (), rows, label, mask), run(private, (), *other, mask)
        np.testing.assert_array_equal(found.private, moved.private)
        np.testing.assert_array_equal(found.rows, moved.rows)
        longer = [jnp.concatenate([x, x[:16]]) for x in (rows, label)]
        wide = run(private, (), *longer, jnp.append(mask, jnp.zeros(16, bool)))
        # Another program: sums may be ordered otherwise.
        np.testing.assert_allclose(wide.private, found.private, atol=2e-6)
        np.testing.assert_allclose(wide.rows[:slots], found.rows, atol=2e-6)
        np.testing.assert_allclose(wide.loss, found.loss, rtol=1e-5)


def test_learning_rates_may_be_traced_and_mapped():
    private, rows, label, mask = setting(24, 24)

    def train(kind, lr):
        if kind == "factored":
            return factored(mf(D), lr, DECAY, batch_size=8)(private, (), rows, label, mask)
        optimizer = client.sgd(lr, DECAY)
        return client.autodiff(mf(D), optimizer, batch_size=8)(private, (), rows, label, mask)

    for kind in ("factored", "autodiff"):
        mapped = jax.jit(jax.vmap(lambda lr, kind=kind: train(kind, lr)))(jnp.array([0.1, 0.4]))
        for i, lr in enumerate((0.1, 0.4)):
            alone = train(kind, lr)
            np.testing.assert_allclose(mapped.rows[i], alone.rows, atol=2e-6)  # order of sums
            np.testing.assert_allclose(mapped.private[i], alone.private, atol=2e-6)


def test_shared_parameters_of_gmf():
    private, rows, label, mask = setting(30, None)
    shared = {"weight": jnp.linspace(0.5, 1.5, D), "bias": jnp.float32(0.2)}
    training = client.autodiff(gmf(D), client.sgd(LR, DECAY), epochs=2, batch_size=8)
    found = jax.jit(training)(private, shared, rows, label, mask)
    p, change, loss, h, b = plain_training(
        *(private, rows, label, mask),
        **{"lr": LR, "decay": DECAY, "epochs": 2, "batch_size": 8},
        weight=shared["weight"],
        bias=0.2,
    )
    np.testing.assert_allclose(found.private, p, atol=3e-6)  # as above
    np.testing.assert_allclose(found.rows, np.where(mask[:, None], change, 0), atol=3e-6)
    np.testing.assert_allclose(found.shared["weight"], h - shared["weight"], atol=3e-6)
    np.testing.assert_allclose(found.shared["bias"], b - 0.2, atol=3e-6)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)


def test_gmf_starts_as_mf():
    sizes = type("Sizes", (), {"items": 7, "dim": D})
    private, items, shared = gmf(D).init(jax.random.key(0), 3, sizes)
    also = mf(D).init(jax.random.key(0), 3, sizes)
    np.testing.assert_array_equal(private, also[0])
    np.testing.assert_array_equal(items, also[1])
    np.testing.assert_array_equal(
        gmf(D).score(private[1], shared, items), mf(D).score(private[1], (), items)
    )
    np.testing.assert_allclose(mf(D).score(private[1], (), items), items @ private[1], rtol=1e-5)
    assert (private.shape, items.shape) == ((3, D), (7, D))


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), client.adamw(0.1, 0.01)])
def test_adam(optimizer):
    """A row sees one update an epoch, with moments of its own minibatch's block."""
    private, rows, label, mask = setting(10, 7)
    training = client.autodiff(mf(D), optimizer, epochs=2, batch_size=4)
    found = jax.jit(training)(private, (), rows, label, mask)

    p, q = private, [np.asarray(rows[i : i + 4]) for i in range(0, 10, 4)]
    p_state = optimizer.init(p)
    states = [optimizer.init(jnp.asarray(block)) for block in q]
    for _ in range(2):
        for b in range(2):  # the third minibatch holds no real example
            y, live = label[4 * b : 4 * b + 4], mask[4 * b : 4 * b + 4].astype(jnp.float32)
            gap = (jax.nn.sigmoid(q[b] @ p) - y) * live
            p_grad, q_grad = gap @ q[b] / live.sum(), gap[:, None] * p
            update, states[b] = optimizer.update(q_grad, states[b], q[b])
            q[b] = q[b] + update
            update, p_state = optimizer.update(p_grad, p_state, p)
            p = p + update
    # Adam divides by the root of a squared gradient, which magnifies rounding of small ones.
    np.testing.assert_allclose(found.private, p, atol=1e-4)
    expected = np.where(mask[:, None], np.concatenate(q) - rows, 0)
    np.testing.assert_allclose(found.rows, expected, atol=1e-4)
    assert np.abs(expected[:7]).min() > 1e-3


def a_basis(rank: int, stretch: float = 1.0):
    random = np.random.default_rng(rank).normal(size=(D, rank))
    return jnp.asarray(np.sqrt(stretch) * np.linalg.qr(random)[0].T, jnp.float32)


@pytest.mark.parametrize(("rank", "stretch"), [(1, 1.0), (3, 1.0), (2, 2.5)])
@pytest.mark.parametrize(("slots", "real", "epochs", "size"), CASES)
def test_factored_is_autodiff_within_a_basis(slots, real, epochs, size, rank, stretch):
    private, rows, label, mask = setting(slots, real)
    basis = a_basis(rank, stretch)
    how = {"epochs": epochs, "batch_size": size}
    one, two = (
        jax.jit(training)(private, (), rows, label, mask, basis)
        for training in (
            client.autodiff(mf(D), client.sgd(LR, DECAY), **how),
            factored(mf(D), LR, DECAY, **how),
        )
    )
    # Values of order 1 in float32: a few ulps a step. Autodiff's rows are a difference of two.
    np.testing.assert_allclose(one.private, two.private, atol=2e-6)
    np.testing.assert_allclose(one.rows, two.rows, atol=2e-6)
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-5, atol=1e-7)
    projection = np.asarray(basis, np.float64).T @ np.asarray(basis, np.float64) / stretch
    for found in (one, two):
        off = np.asarray(found.rows) @ (np.eye(D) - projection)
        np.testing.assert_allclose(off, 0, atol=2e-6)  # as above
        np.testing.assert_array_equal(np.asarray(found.rows)[~np.asarray(mask)], 0)
    assert np.abs(two.rows).max() > 0.01 or not np.any(mask)


def test_a_basis_of_the_whole_space_changes_nothing():
    private, rows, label, mask = setting(30, None)
    for training in (
        client.autodiff(mf(D), client.sgd(LR, DECAY), batch_size=8),
        factored(mf(D), LR, DECAY, batch_size=8),
    ):
        free = jax.jit(training)(private, (), rows, label, mask)
        bound = jax.jit(training)(private, (), rows, label, mask, a_basis(D))
        np.testing.assert_allclose(bound.rows, free.rows, atol=3e-6)  # a projection's rounding
        np.testing.assert_allclose(bound.private, free.private, atol=3e-6)


def test_a_basis_binds_rows_alone():
    """One epoch of one minibatch: rows step by their projected gradients, three times as far, and
    all else as without."""
    private, rows, label, mask = setting(24, 24)
    shared = {"weight": jnp.linspace(0.5, 1.5, D), "bias": jnp.float32(0.2)}
    training = jax.jit(client.autodiff(gmf(D), client.sgd(LR, DECAY), epochs=1))
    basis = a_basis(2, stretch=3)
    free = training(private, shared, rows, label, mask)
    bound = training(private, shared, rows, label, mask, basis)
    np.testing.assert_allclose(bound.private, free.private, atol=1e-6)  # another program's sums
    for leaf in shared:
        np.testing.assert_allclose(bound.shared[leaf], free.shared[leaf], atol=1e-6)
    expected = np.asarray(free.rows) @ np.asarray(basis).T @ np.asarray(basis)
    np.testing.assert_allclose(bound.rows, expected, atol=1e-6)
    assert np.abs(expected - free.rows).max() > 0.1


def test_adam_stays_in_the_span():
    """It scales coordinates one by one, so a gradient projected before it would not stay."""
    private, rows, label, mask = setting(10, 7)
    basis = a_basis(2)
    training = client.autodiff(mf(D), client.adamw(0.1, 0.01), batch_size=4)
    found = np.asarray(jax.jit(training)(private, (), rows, label, mask, basis).rows)
    off = found - found @ np.asarray(basis).T @ np.asarray(basis)
    np.testing.assert_allclose(off, 0, atol=2e-6)  # ulps of a difference of values of order 1
    assert np.abs(found[:7]).max() > 0.01


def test_the_factored_form_is_of_dot_products_alone():
    with pytest.raises(SpecError, match=r"train it with client\.autodiff"):
        factored(gmf(D), LR)
