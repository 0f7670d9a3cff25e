"""Metrics against numbers worked out by hand."""

import numpy as np
import pytest

from fedras_jax import metrics

RANKS = np.array([1, 3, 0, 10, 11, 2, 0, 100])  # six clients are evaluated


def test_hit_rate():
    assert metrics.hit_rate(RANKS, 1) == pytest.approx(1 / 6)
    assert metrics.hit_rate(RANKS, 10) == pytest.approx(4 / 6)
    assert metrics.hit_rate(RANKS, 100) == 1


def test_ndcg():
    expected = (1 + 1 / 2 + 1 / np.log2(11) + 1 / np.log2(3)) / 6
    assert metrics.ndcg(RANKS, 10) == pytest.approx(expected)
    assert metrics.ndcg(RANKS, 1) == pytest.approx(1 / 6)


def test_mrr():
    assert metrics.mrr(RANKS, 10) == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 2) / 6)
    assert metrics.mrr(RANKS, 2) == pytest.approx(1.5 / 6)


def test_summarise():
    found = metrics.summarise(RANKS, ks=(2, 10))
    assert set(found) == {f"{m}@{k}" for m in ("hr", "ndcg", "mrr") for k in (2, 10)}
    assert found["hr@2"] == pytest.approx(2 / 6)
    assert found["ndcg@10"] == metrics.ndcg(RANKS, 10)
    assert all(type(value) is float for value in found.values())


def test_nobody_to_evaluate():
    with pytest.raises(ValueError, match="no client has a held-out item"):
        metrics.hit_rate(np.zeros(4), 10)
