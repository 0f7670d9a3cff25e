"""Synthetic interactions: any size, heavy tails, and tastes that can be learned."""

import importlib
import itertools
import re

import numpy as np
import pytest

from fedras_jax.data import Interactions, synthetic
from fedras_jax.errors import DataError

# The function hides its module's name in the package.
module = importlib.import_module("fedras_jax.data.synthetic")


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


@pytest.mark.parametrize(
    ("size", "chunk"), [((40, 50), 150), ((90, 5000, 40), 5000), ((60, 5000, 1200), 9000)]
)
def test_chunks_do_not_change_the_draw(monkeypatch: pytest.MonkeyPatch, size: tuple, chunk: int):
    n_clients, n_items, *mean = size
    more = {"mean_interactions": mean[0]} if mean else {}
    whole = synthetic(n_clients, n_items, **more)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    assert (synthetic(n_clients, n_items, **more).items == whole.items).all()


def one_taste(n_clients: int, n_items: int, n_choices: int) -> tuple[np.ndarray, np.ndarray]:
    """What clients of one taste choose, [clients, choices], and the odds of items, [items]."""
    world = module._world(n_clients, n_items, 10, 2, 1.0, 5, None)
    taste = np.array([0.9, -0.5], np.float32)
    odds = np.zeros(n_items)
    scores = (taste @ world.factors)[:, None]
    there = world.items >= 0
    odds[world.items[there]] = np.exp(world.log_popularity + scores)[there]
    world = world._replace(
        clients=np.tile(taste, (n_clients, 1)), lengths=np.full(n_clients, n_choices)
    )
    chosen = np.concatenate([items for _, items in module._choices(world)])
    return chosen.reshape(n_clients, n_choices), odds


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param({"_KEYS_A_PROPOSAL": 100}, id="keys"),
        pytest.param({"_KEYS_A_PROPOSAL": 0}, id="proposals"),
        pytest.param({"_PROPOSALS": 1, "_MORE": 0, "_KEYS_A_PROPOSAL": 4}, id="then-keys"),
    ],
)
@pytest.mark.parametrize("n_groups", [4, 1024])
def test_choices_in_order_follow_the_law(
    monkeypatch: pytest.MonkeyPatch, ways: dict, n_groups: int
):
    """Draws without replacement: an item's chance is its odds over those of all that are left."""
    for what, value in (ways | {"_GROUPS": n_groups}).items():
        monkeypatch.setattr(module, what, value)
    n_clients, n_items = 40_000, 9
    chosen, odds = one_taste(n_clients, n_items, 3)
    expected = np.zeros((n_items,) * 3)
    for a, b, c in itertools.permutations(range(n_items), 3):
        left = odds.sum() - np.array([0, odds[a], odds[a] + odds[b]])
        expected[a, b, c] = n_clients * (odds[[a, b, c]] / left).prod()
    found = np.zeros_like(expected)
    np.add.at(found, tuple(chosen.T), 1)
    assert (found[expected == 0] == 0).all()
    often = expected > 5
    squares = ((found - expected)[often] ** 2 / expected[often]).sum()
    degrees = often.sum()
    assert degrees > 100
    assert squares < degrees + 4 * np.sqrt(2 * degrees)


def test_items_share_the_factors_of_groups_of_one_size():
    world = module._world(1, 2500, 50, 8, 0.5, 0, None)
    there = world.items >= 0
    assert sorted(world.items[there]) == list(range(2500))
    assert set(there.sum(1)) == {2, 3}
    assert world.factors.shape == (8, 1024)
    popularity = np.sort(np.exp(world.log_popularity[there]))[::-1]
    np.testing.assert_allclose(popularity, np.arange(1, 2501) ** -0.5)
    assert (world.log_popularity[~there] == -np.inf).all()
    # A client's scores have the standard deviation 2.
    assert np.square(world.factors).sum(0).mean() == pytest.approx(4, rel=0.1)


def test_few_clients_draw_for_all_items(monkeypatch: pytest.MonkeyPatch):
    drawn, by_keys = [], module._by_keys
    monkeypatch.setattr(module, "_by_keys", lambda *a: drawn.append(len(a[1])) or by_keys(*a))
    synthetic(2000, 100_000)
    assert sum(drawn) <= 2


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


@pytest.mark.parametrize("n_items", [500, 3000])
def test_a_recommender_beats_popularity(n_items: int):
    """Items that go with a client's own find its last one, among the ten first, more often."""
    found = synthetic(1500, n_items, mean_interactions=40)
    last = found.items[found.offsets[1:] - 1]
    clients = np.arange(found.n_clients)
    seen = np.zeros((found.n_clients, n_items), np.float32)
    seen[np.repeat(clients, np.diff(found.offsets)), found.items] = 1
    seen[clients, last] = 0
    counts = seen.sum(0)
    alike = seen.T @ seen / np.sqrt(np.outer(counts, counts) + 1)
    np.fill_diagonal(alike, 0)

    def hits(scores: np.ndarray) -> float:
        scores = np.where(seen > 0, -np.inf, scores)
        return float(((scores > scores[clients, last][:, None]).sum(1) < 10).mean())

    assert hits(seen @ alike) > 1.3 * hits(np.broadcast_to(counts, seen.shape))


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
