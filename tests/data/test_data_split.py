"""Leave-one-out: what is held out, what is drawn, and that nothing is lost or leaks."""

import re

import numpy as np
import pytest

from fedras_jax.data import HeldOut, Interactions, Split, leave_one_out, synthetic
from fedras_jax.errors import DataError


def toy(histories: list[list[int]], n_items: int, *, timed: bool = True, held_out=None):
    """Interactions with the given histories, in that order."""
    lengths = [len(history) for history in histories]
    return Interactions(
        name="toy",
        client_ids=np.arange(len(histories)),
        item_ids=np.arange(n_items),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([i for history in histories for i in history], np.int32),
        times=np.arange(sum(lengths)) if timed else None,
        held_out=held_out,
    )


def own_split(test: list[int], candidates: list[list[int]]) -> HeldOut:
    return HeldOut(np.array(test, np.int32), np.array(candidates, np.int32))


def training(split: Split, client: int) -> list[int]:
    return split.items[split.offsets[client] : split.offsets[client + 1]].tolist()


def check_invariants(split: Split, interactions: Interactions) -> None:
    """Nothing lost, nothing twice, training sorted, candidates never the client's own."""
    for client in range(interactions.n_clients):
        history = sorted(interactions.history(client).tolist())
        held = [int(i[client]) for i in (split.valid, split.test) if i[client] >= 0]
        assert sorted(training(split, client) + held) == history
        assert training(split, client) == sorted(training(split, client))
        if split.candidates is not None:
            row = split.candidates[client].tolist()
            drawn = [i for i in row if i >= 0]
            assert row == drawn + [-1] * (len(row) - len(drawn))
            assert len(set(drawn)) == len(drawn)
            assert not set(drawn) & set(history)
            if split.test[client] < 0:
                assert not drawn
    assert split.n_not_evaluated == (split.test < 0).sum()
    assert (split.n_clients, split.n_items) == (interactions.n_clients, interactions.n_items)
    assert [a.dtype for a in (split.offsets, split.items, split.valid, split.test)] == [
        np.int64,
        np.int32,
        np.int32,
        np.int32,
    ]


HISTORIES = [[4, 1, 3, 0], [5, 2], [3], [2, 0, 1]]


def test_the_last_items_by_time_are_held_out():
    interactions = toy(HISTORIES, 8)
    split = leave_one_out(interactions, n_candidates=3)
    check_invariants(split, interactions)
    assert split.test.tolist() == [0, -1, -1, 1]
    assert split.valid.tolist() == [3, -1, -1, 0]
    assert training(split, 0) == [1, 4]
    assert training(split, 1) == [2, 5]
    assert split.n_not_evaluated == 2


def test_without_validation_two_interactions_are_enough():
    interactions = toy(HISTORIES, 8)
    split = leave_one_out(interactions, validation=False, n_candidates=0)
    check_invariants(split, interactions)
    assert split.test.tolist() == [0, 2, -1, 1]
    assert split.valid.tolist() == [-1, -1, -1, -1]
    assert split.candidates is None
    assert split.n_not_evaluated == 1


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("validation", [True, False, None])
@pytest.mark.parametrize("n_candidates", [0, 5, 99])
def test_invariants_on_drawn_data(timed: bool, validation: bool | None, n_candidates: int):
    drawn = synthetic(40, 60, mean_interactions=8)
    histories = [drawn.history(u)[: 1 + u % 7].tolist() for u in range(40)]
    interactions = toy(histories, 60, timed=timed)
    split = leave_one_out(interactions, validation=validation, n_candidates=n_candidates)
    check_invariants(split, interactions)
    if n_candidates == 5:
        assert split.candidates is not None
        assert ((split.candidates >= 0).all(1) == (split.test >= 0)).all()


def test_draws_without_times_are_seeded_and_differ_by_client():
    interactions = toy([list(range(50))] * 30, 60, timed=False)
    first, again, other = (leave_one_out(interactions, seed=s) for s in (1, 1, 2))
    assert (first.test == again.test).all()
    assert (first.valid == again.valid).all()
    assert (first.test != other.test).any()
    assert len(set(first.test.tolist())) > 10
    assert (leave_one_out(interactions, seed=1, validation=False).test == first.test).all()


@pytest.mark.parametrize("timed", [True, False])
def test_other_clients_do_not_change_a_clients_draws(timed: bool):
    one = [list(range(9)), [3, 4, 5, 6]]
    other = [[11, 12, 13], [3, 4, 5, 6], [7, 8, 9]]
    splits = [leave_one_out(toy(h, 40, timed=timed), n_candidates=7) for h in (one, other)]
    assert splits[0].test[1] == splits[1].test[1]
    assert splits[0].valid[1] == splits[1].valid[1]
    rows = [s.candidates[1].tolist() for s in splits if s.candidates is not None]
    assert rows[0] == rows[1]


def test_candidates_are_uniform_over_unseen_items():
    seen = [0, 1, 5, 9, 19]
    interactions = toy([seen] * 2000, 20)
    split = leave_one_out(interactions, n_candidates=3)
    assert split.candidates is not None
    counts = np.bincount(split.candidates.ravel(), minlength=20)
    assert (counts[seen] == 0).all()
    # 2000 draws of 3 of 15: mean 400, standard deviation 18.
    unseen = np.delete(counts, seen)
    assert abs(unseen - 400).max() < 90


def test_too_few_unseen_items_are_all_taken_and_padded():
    split = leave_one_out(toy([[0, 1, 2], [3, 1, 0]], 5), n_candidates=4)
    assert split.candidates is not None
    assert split.candidates.tolist() == [[3, 4, -1, -1], [2, 4, -1, -1]]


def test_the_datasets_own_split_is_used():
    held_out = own_split([1, -1, 3, 0], [[5, 6], [-1, -1], [6, 7], [4, 7]])
    interactions = toy(HISTORIES, 8, held_out=held_out, timed=False)
    split = leave_one_out(interactions, n_candidates=2)
    check_invariants(split, interactions)
    # The client with the single interaction keeps it in training.
    assert split.test.tolist() == [1, -1, -1, 0]
    assert split.valid.tolist() == [-1] * 4
    assert split.candidates is not None
    assert split.candidates.tolist() == [[5, 6], [-1, -1], [-1, -1], [4, 7]]


@pytest.mark.parametrize("timed", [True, False])
def test_validation_comes_out_of_the_training_part_of_the_datasets_own_split(timed: bool):
    held_out = own_split([1, 2, -1, 1], [[5], [6], [-1], [4]])
    interactions = toy(HISTORIES, 8, held_out=held_out, timed=timed)
    split = leave_one_out(interactions, validation=True, n_candidates=1)
    check_invariants(split, interactions)
    assert split.test.tolist() == [1, -1, -1, 1]
    if timed:
        assert split.valid.tolist() == [0, -1, -1, 0]
    else:
        draws = {
            int(leave_one_out(interactions, validation=True, n_candidates=1, seed=s).valid[0])
            for s in range(40)
        }
        assert draws == {4, 3, 0}


def test_candidates_of_the_datasets_own_split_are_replaced_where_another_number_is_asked():
    held_out = own_split([0], [[1, 2]])
    interactions = toy([[3, 0]], 8, held_out=held_out)
    split = leave_one_out(interactions, n_candidates=4)
    check_invariants(split, interactions)
    assert split.candidates is not None
    assert (split.candidates >= 0).all()
    assert leave_one_out(interactions, n_candidates=0).candidates is None


def test_own_items_and_repeats_among_the_given_candidates_become_pads():
    interactions = toy([[3, 0]], 8, held_out=own_split([0], [[0, 5, 3, 2, 5, -1]]))
    split = leave_one_out(interactions, n_candidates=6)
    assert split.candidates is not None
    assert split.candidates.tolist() == [[5, 2, -1, -1, -1, -1]]


def test_a_held_out_item_outside_the_history():
    interactions = toy([[3, 0], [1, 2]], 8, held_out=own_split([0, 7], [[1], [3]]))
    message = "toy: expected each held-out item in its client's history; it is missing for 1"
    with pytest.raises(DataError, match=re.escape(message)):
        leave_one_out(interactions)


@pytest.mark.parametrize("bad", [{"n_candidates": -1}, {"seed": -1}])
def test_negative_arguments(bad: dict):
    with pytest.raises(DataError, match="toy: expected n_candidates and seed of 0 or more, found"):
        leave_one_out(toy([[0, 1, 2]], 4), **bad)
