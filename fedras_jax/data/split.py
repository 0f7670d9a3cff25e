"""Leave-one-out: which interactions train, and which one item a client is evaluated on."""

from dataclasses import dataclass

import numpy as np

from fedras_jax.data.interactions import HeldOut, Interactions, row_offsets
from fedras_jax.errors import DataError

# Every draw has its own stream per client, so that neither another client's history nor the
# other draw changes it.
_HOLD_OUT, CANDIDATES = 0, 1


@dataclass(frozen=True, eq=False)
class Split:
    """Training interactions and at most one validation and one test item a client.

    Attributes:
        name: the dataset's name.
        n_clients: U.
        n_items: M.
        offsets: int64 [U+1], client u trains on `items[offsets[u]:offsets[u + 1]]`.
        items: int32 [nnz], TRAINING items, each client's distinct and ascending (so that
            membership is a binary search).
        valid: int32 [U], validation items, -1 for none.
        test: int32 [U], test items, -1 for none.
        candidates: int32 [U, n], the items that a client's test item is ranked against: distinct,
            never the client's own (training, validation or test), -1 pads at the end and in
            the whole row of a client without a test item. None: rank against all items.
        n_not_evaluated: clients without a test item; all they have is in training.
    """

    name: str
    n_clients: int
    n_items: int
    offsets: np.ndarray
    items: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    candidates: np.ndarray | None
    n_not_evaluated: int


def leave_one_out(
    interactions: Interactions,
    *,
    validation: bool | None = None,
    n_candidates: int = 99,
    seed: int = 0,
) -> Split:
    """Holds out each client's last item for testing and the one before it for validation.

    Without times the held-out items are drawn, seeded by client index. A split that the dataset
    brings itself is used as it is; validation, where asked for, then comes out of its training
    items. A client with fewer than 2 interactions (3 with validation), or without a test item
    in the dataset's own split, keeps everything in training, is not evaluated, and is counted.

    Candidates are drawn uniformly from the items that a client has no interaction with. Those
    that the dataset brings are used instead where `n_candidates` is their number; the client's
    own items and repeats among them become pads.

    Args:
        interactions: the dataset.
        validation: whether to hold out a validation item; None: unless the dataset brings its
            own split.
        n_candidates: how many negatives to rank a test item against; 0 ranks against all items.
        seed: of the draws, not negative.

    Returns:
        The split; training, validation and test are disjoint and together all interactions.

    Raises:
        DataError: negative `n_candidates` or `seed`, or a held-out item of the dataset's own
            split that is not in the client's history.
    """
    if n_candidates < 0 or seed < 0:
        raise DataError(
            f"{interactions.name}: expected n_candidates and seed of 0 or more, found "
            f"{n_candidates} and {seed}."
        )
    if validation is None:
        validation = interactions.held_out is None
    if interactions.held_out is None:
        timed = interactions.times is not None
        test_at, valid_at = positions(
            interactions.offsets, timed=timed, validation=validation, seed=seed
        )
    else:
        own = interactions.held_out
        test_at, valid_at = _own_positions(interactions, own, validation, seed)
    test, valid = (items_at(interactions.items, at) for at in (test_at, valid_at))
    offsets, items = training(interactions.offsets, interactions.items, test_at, valid_at)
    return Split(
        name=interactions.name,
        n_clients=interactions.n_clients,
        n_items=interactions.n_items,
        offsets=offsets,
        items=items,
        valid=valid,
        test=test,
        candidates=_candidates(interactions, test, n_candidates, seed),
        n_not_evaluated=int(np.count_nonzero(test < 0)),
    )


def positions(
    offsets: np.ndarray, *, timed: bool, validation: bool, seed: int, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Where clients' test and validation items lie, int64 [U] each, -1 for none.

    Args:
        offsets: int64 [U+1], of the clients' interactions.
        timed: whether these are in time order: then the last ones are held out.
        validation: whether to hold out a validation item.
        seed: of the draws.
        first: index of the first of these clients, which the draws depend on.
    """
    lengths = np.diff(offsets)
    evaluated = lengths >= (3 if validation else 2)
    test_at = np.where(evaluated, offsets[1:] - 1, -1)
    valid_at = np.where(evaluated, offsets[1:] - 2, -1)
    if not timed:
        for client in np.flatnonzero(evaluated).tolist():
            # Two are always drawn: the test item must not depend on `validation`.
            generator = generator_of(seed, first + client, _HOLD_OUT)
            drawn = generator.choice(lengths[client], 2, replace=False)
            test_at[client], valid_at[client] = offsets[client] + drawn
    return test_at, valid_at if validation else np.full_like(valid_at, -1)


def _own_positions(
    interactions: Interactions, own: HeldOut, validation: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `positions`, the test items being those that the dataset holds out."""
    offsets, lengths = interactions.offsets, np.diff(interactions.offsets)
    client_of = np.repeat(np.arange(interactions.n_clients), lengths)
    test_at = np.full(interactions.n_clients, -1)
    found = np.flatnonzero(interactions.items == own.test[client_of])
    test_at[client_of[found]] = found
    if lost := np.flatnonzero((test_at < 0) & (own.test >= 0)).tolist():
        raise DataError(
            f"{interactions.name}: expected each held-out item in its client's history; it is "
            f"missing for {len(lost)} clients, the first is {interactions.client_ids[lost[0]]}."
        )
    test_at[lengths < (3 if validation else 2)] = -1
    valid_at = np.full_like(test_at, -1)
    for client in np.flatnonzero(test_at >= 0).tolist() if validation else ():
        remaining = lengths[client] - 1
        pick = remaining - 1
        if interactions.times is None:
            pick = generator_of(seed, client, _HOLD_OUT).integers(remaining)
        # `pick` counts the history without its test item.
        position = offsets[client] + pick
        valid_at[client] = position + (position >= test_at[client])
    return test_at, valid_at


def items_at(items: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The items at these positions, int32, -1 where there is none."""
    return np.where(positions >= 0, items[positions], -1).astype(np.int32)


def training(
    offsets: np.ndarray, items: np.ndarray, *held_out_at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and items of what is not held out, each client's items ascending."""
    kept = np.ones(len(items), bool)
    for at in held_out_at:
        kept[at[at >= 0]] = False
    n_clients = len(offsets) - 1
    client_of = np.repeat(np.arange(n_clients), np.diff(offsets))[kept]
    items = items[kept]
    order = np.lexsort((items, client_of))
    return row_offsets(client_of, n_clients), items[order]


def padded(
    offsets: np.ndarray, items: np.ndarray, valid: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """All interactions of clients, held-out ones first, int32 [U, longest + 2]; -1 pads.

    Args:
        offsets, items: int64 [U+1] and int32 [nnz], training items.
        valid, test: int32 [U], held-out items, -1 for none.
    """
    lengths = np.diff(offsets)
    rows = np.full((len(lengths), int(lengths.max(initial=0)) + 2), -1, np.int32)
    rows[:, 0], rows[:, 1] = valid, test
    owner = np.repeat(np.arange(len(lengths)), lengths)
    rows[owner, 2 + np.arange(len(items)) - offsets[owner]] = items
    return rows


def _candidates(
    interactions: Interactions, test: np.ndarray, n_candidates: int, seed: int
) -> np.ndarray | None:
    """Negatives for every client with a test item, int32 [U, n], or None for all items."""
    if n_candidates == 0:
        return None
    own = interactions.held_out
    given = own.candidates if own and own.candidates.shape[1] == n_candidates else None
    candidates = np.full((interactions.n_clients, n_candidates), -1, np.int32)
    for client in np.flatnonzero(test >= 0).tolist():
        history = interactions.history(client)
        if given is None:
            generator = generator_of(seed, client, CANDIDATES)
            row = draw_unseen(history, interactions.n_items, n_candidates, generator)
        else:
            row = _others(given[client], history)
        candidates[client, : len(row)] = row
    return candidates


def _others(given: np.ndarray, history: np.ndarray) -> np.ndarray:
    """Given candidates in their order, without pads, repeats and the client's own items."""
    first = np.sort(np.unique(given, return_index=True)[1])
    row = given[first]
    return row[(row >= 0) & ~np.isin(row, history)]


def draw_unseen(
    history: np.ndarray, n_items: int, n_draws: int, generator: np.random.Generator
) -> np.ndarray:
    """Distinct items outside a history, uniformly; all of them where there are too few."""
    seen = np.sort(history)
    n_unseen = n_items - len(seen)
    if n_unseen <= n_draws:
        return np.setdiff1d(np.arange(n_items), seen, assume_unique=True)
    ranks = generator.choice(n_unseen, n_draws, replace=False)
    # The r-th unseen item lies behind as many seen ones as have at most r unseen before them:
    # no rejection, so the cost does not grow with the history's share of the items.
    return ranks + np.searchsorted(seen - np.arange(len(seen)), ranks, side="right")


def generator_of(seed: int, client: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((seed, client, stream))
