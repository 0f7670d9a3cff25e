"""Synthetic interactions: any size, heavy tails, and tastes that can be learned."""

import re

import numpy as np
import pytest

from fedras_jax.data import Interactions, synthetic
from fedras_jax.errors import DataError


def popularity(interactions: Interactions) -> np.ndarray:
    """Interactions per item, most popular first."""
    return np.sort(np.bincount(interactions.items, minlength=interactions.n_items))[::-1]


@pytest.mark.parametrize(("n_clients", "n_items"), [(1, 6), (50, 20), (300, 1000), (20, 7)])
def test_any_size_is_valid(n_clients: int, n_items: int):
    found = synthetic(n_clients, n_items)
    assert (found.n_clients, found.n_items) == (n_clients, n_items)
    assert found.name == f"synthetic-{n_clients}x{n_items}"
    assert found.items.dtype == np.int32
    assert found.times is not None
    assert found.times.dtype == np.int64
    lengths = np.diff(found.offsets)
    assert lengths.min() >= 3
    assert lengths.max() <= n_items // 2
    for client in range(n_clients):
        assert len(set(found.history(client).tolist())) == lengths[client]
        times = found.times[found.offsets[client] : found.offsets[client + 1]]
        assert (np.diff(times) > 0).all()


def test_seeds():
    first, again, other = (synthetic(50, 100, seed=s) for s in (3, 3, 4))
    assert (first.items == again.items).all()
    assert first.times is not None
    assert again.times is not None
    assert (first.times == again.times).all()
    assert first.n_interactions != other.n_interactions or (first.items != other.items).any()


def test_chunks_do_not_change_the_draw(monkeypatch: pytest.MonkeyPatch):
    whole = synthetic(40, 50)
    # The function hides its module's name in the package.
    monkeypatch.setitem(synthetic.__globals__, "_CHUNK_KEYS", 150)
    assert (synthetic(40, 50).items == whole.items).all()


def test_the_mean_is_about_what_was_asked_for():
    lengths = np.diff(synthetic(2000, 1000, mean_interactions=40).offsets)
    assert 34 < lengths.mean() < 46
    # Heavy-tailed: the mean lies far above the median.
    assert lengths.mean() > 1.4 * np.median(lengths)


def test_popularity_is_heavy_tailed_and_the_exponent_rules_it():
    shares = []
    for exponent in (0.0, 0.5, 1.0):
        counts = popularity(
            synthetic(600, 1000, dim=1, mean_interactions=20, popularity_exponent=exponent)
        )
        shares.append(counts[:100].sum() / counts.sum())
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.4


def test_a_steep_power_law_does_not_underflow():
    counts = popularity(synthetic(30, 5000, popularity_exponent=30))
    assert counts.sum() > 0


def test_latent_factors_matter():
    """Clients overlap with their nearest neighbour more than popularity alone explains."""

    def overlap(interactions: Interactions, shuffled: bool) -> float:
        dense = np.zeros((interactions.n_clients, interactions.n_items))
        dense[
            np.repeat(np.arange(interactions.n_clients), np.diff(interactions.offsets)),
            interactions.items,
        ] = 1
        if shuffled:
            # Keeps each item's popularity and breaks the tie between a client's choices.
            dense = np.random.default_rng(0).permuted(dense, axis=0)
        dense /= np.linalg.norm(dense, axis=1, keepdims=True) + 1e-9
        cosine = dense @ dense.T
        np.fill_diagonal(cosine, 0)
        return float(cosine.max(1).mean())

    found = synthetic(300, 200, mean_interactions=30, popularity_exponent=0)
    assert overlap(found, shuffled=False) > 1.3 * overlap(found, shuffled=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_clients": 0}, "expected n_clients of 1 or more, found 0"),
        ({"n_items": 5}, "expected n_items of 6 or more, found 5"),
        ({"mean_interactions": 0.5}, "expected mean_interactions of 1 or more, found 0.5"),
        ({"mean_interactions": float("nan")}, "expected mean_interactions of 1 or more, found nan"),
        ({"dim": 0}, "expected dim of 1 or more, found 0"),
        ({"popularity_exponent": -1}, "expected popularity_exponent of 0 or more, found -1"),
        ({"seed": -1}, "expected seed of 0 or more, found -1"),
    ],
)
def test_arguments_out_of_range(changed: dict, message: str):
    with pytest.raises(DataError, match=re.escape(f"toy: {message}")):
        synthetic(**({"n_clients": 5, "n_items": 10, "name": "toy"} | changed))
