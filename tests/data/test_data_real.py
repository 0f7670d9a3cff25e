"""The real datasets that the project may not bring along; skipped where they are not."""

import time

import numpy as np

from fedras_jax.data import leave_one_out, load, read


def test_ml_100k_from_recbole(real_data):
    found = load("ml-100k", data_dir=real_data("ml-100k").parent, download=False)
    assert (found.n_clients, found.n_items, found.n_interactions) == (943, 1_682, 100_000)
    assert found.client_ids.tolist() == list(range(1, 944))
    assert found.times is not None
    split = leave_one_out(found)
    assert split.n_not_evaluated == 0
    assert len(split.items) == 100_000 - 2 * 943
    starts = found.offsets[:-1]
    assert (split.test == found.items[found.offsets[1:] - 1]).all()
    assert (found.times[starts] <= found.times[found.offsets[1:] - 1]).all()
    assert split.candidates is not None
    assert (split.candidates >= 0).all()


def test_ml_1m_from_the_ncf_triple(real_data):
    found = read(real_data("ml-1m"))
    assert (found.n_clients, found.n_items) == (6_040, 3_706)
    # 1,000,209 as GroupLens counts; in this copy two users have one pair more.
    assert found.n_interactions == 1_000_211
    assert (found.item_ids == np.arange(3_706)).all()
    assert found.times is None
    assert found.held_out is not None
    assert found.held_out.candidates.shape == (6_040, 99)

    began = time.perf_counter()
    split = leave_one_out(found)
    assert time.perf_counter() - began < 5
    assert len(split.items) == 994_171
    assert (split.test == found.held_out.test).all()
    assert (split.valid == -1).all()
    assert split.test[0] == 25
    # In this copy 156 users have their test item among their negatives: it becomes a pad.
    assert split.candidates is not None
    assert (split.candidates == -1).sum() == (
        found.held_out.candidates == found.held_out.test[:, None]
    ).sum()

    drawn = leave_one_out(found, validation=True, n_candidates=50)
    assert len(drawn.items) == 994_171 - 6_040
    assert drawn.candidates is not None
    assert (drawn.candidates >= 0).all()
