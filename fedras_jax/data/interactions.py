"""Who chose what, and when: the one form in which every dataset enters the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedras_jax.data.columns import as_ids, as_numbers, as_seconds, index_ids
from fedras_jax.data.filters import core_mask, drop_repeats, rating_mask
from fedras_jax.errors import DataError


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A leave-one-out split that a dataset brings itself.

    Attributes:
        test: int32 [U], each client's held-out item, -1 for none. The item is also in the
            client's history: `leave_one_out` takes it out.
        candidates: int32 [U, n], the items that the test item is ranked against; rows of
            clients without a test item are -1.
    """

    test: np.ndarray
    candidates: np.ndarray


@dataclass(frozen=True, eq=False)
class Interactions:
    """Distinct (client, item) pairs in compressed sparse rows, one row a client.

    Compared by identity: two bundles of arrays have no cheap equality.

    Attributes:
        name: the dataset's name, used in messages and results.
        client_ids: [U], the source's own user ids (int64 or str); position = client index.
        item_ids: [M], the source's own item ids (int64 or str); position = item index.
        offsets: int64 [U+1], client u's history is `items[offsets[u]:offsets[u + 1]]`.
        items: int32 [nnz], item indices, each client's in time order; ties and sources without
            times keep the file's order. Distinct within a client.
        times: int64 [nnz], seconds (as the source counts them), or None where it has none.
        titles: str [M], "" for an item that the source does not name; None without titles.
        held_out: the split that the dataset brings itself, or None.

    Raises:
        DataError: on construction, arrays whose shapes or indices do not fit each other.
    """

    name: str
    client_ids: np.ndarray
    item_ids: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray | None = None
    titles: np.ndarray | None = None
    held_out: HeldOut | None = None

    def __post_init__(self) -> None:
        n_clients, n_items, nnz = len(self.client_ids), len(self.item_ids), len(self.items)
        self._expect("offsets", self.offsets.shape, (n_clients + 1,))
        if self.offsets[0] != 0 or self.offsets[-1] != nnz or np.any(np.diff(self.offsets) < 0):
            raise DataError(
                f"{self.name}: expected offsets that rise from 0 to {nnz}, the number of items."
            )
        if nnz and (self.items.min() < 0 or self.items.max() >= n_items):
            raise DataError(f"{self.name}: expected item indices in 0..{n_items - 1}.")
        if self.times is not None:
            self._expect("times", self.times.shape, (nnz,))
        if self.titles is not None:
            self._expect("titles", self.titles.shape, (n_items,))
        if self.held_out is not None:
            candidates = self.held_out.candidates
            self._expect("held_out.test", self.held_out.test.shape, (n_clients,))
            self._expect("held_out.candidates", candidates.shape, (n_clients, candidates.shape[-1]))

    def _expect(self, what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise DataError(f"{self.name}: expected {what} of shape {expected}, found {found}.")

    @property
    def n_clients(self) -> int:
        """U, the number of clients."""
        return len(self.client_ids)

    @property
    def n_items(self) -> int:
        """M, the number of items, with or without interactions."""
        return len(self.item_ids)

    @property
    def n_interactions(self) -> int:
        """nnz, the number of distinct (client, item) pairs."""
        return len(self.items)

    def history(self, client: int) -> np.ndarray:
        """A client's item indices in time order, int32 [its number of interactions].

        Raises:
            IndexError: no such client index.
        """
        if not 0 <= client < self.n_clients:
            raise IndexError(f"client {client} of {self.n_clients}")
        return self.items[self.offsets[client] : self.offsets[client + 1]]

    @classmethod
    def from_columns(
        cls,
        users: Any,
        items: Any,
        ratings: Any = None,
        times: Any = None,
        *,
        name: str,
        min_rating: float | None = None,
        k_core: int = 0,
        titles: Mapping[Any, str] | None = None,
    ) -> Interactions:
        """Builds interactions from one row per event, in this order: rate, collapse, core.

        Rows rated below `min_rating` go first; without it ratings are not looked at. Then
        repeats of a (user, item) pair collapse to the first in time, because an item cannot be
        both trained on and held out. Then users and items with fewer than `k_core` interactions
        go, over and over until none is left.
        What remains is indexed in the sorted order of its original ids.

        Args:
            users: user ids, [n], integers or text.
            items: item ids, [n], integers or text.
            ratings: numbers, [n]; None for a source without ratings.
            times: seconds, or dates in UTC (timestamps, ISO 8601 text), [n]; fractions of a
                second only order; None for a source without times.
            name: the dataset's name.
            min_rating: the lowest rating that counts as an interaction; None keeps all.
            k_core: the least number of interactions of a user and of an item; 0 keeps all.
            titles: item titles by original id.

        Raises:
            DataError: columns that are empty, of different lengths or hold missing ids or
                values that are no finite numbers or dates; `min_rating` without ratings, or
                with one that is not known; filters that leave nothing.
        """
        user_column, item_column = as_ids(users, "user", name), as_ids(items, "item", name)
        rating, time = ratings, None
        if ratings is not None and min_rating is not None:
            expected = "a finite number a row, or no min_rating"
            rating = as_numbers(ratings, "rating", name, expected)
        if times is not None:
            expected = "seconds or an ISO 8601 time a row, or no times at all"
            time = as_seconds(times, "time", name, expected)
        _expect_same_length(name, user=user_column, item=item_column, rating=rating, time=time)
        user_ids, user = index_ids(user_column)
        item_ids, item = index_ids(item_column)
        if min_rating is not None:
            kept = rating_mask(rating, min_rating, name)
            user, item = user[kept], item[kept]
            time = None if time is None else time[kept]
        user, item, time = drop_repeats(user, item, time)
        kept = core_mask(user, item, k_core, name)
        user, item = user[kept], item[kept]
        user_ids, user = _keep_used(user_ids, user)
        item_ids, item = _keep_used(item_ids, item)
        return cls(
            name=name,
            client_ids=user_ids,
            item_ids=item_ids,
            offsets=row_offsets(user, len(user_ids)),
            items=item.astype(np.int32),
            times=None if time is None else np.floor(time[kept]).astype(np.int64),
            titles=None if titles is None else titles_of(item_ids, titles),
        )

    def to_columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Each interaction's original user and item id, [nnz] and [nnz], in the stored order."""
        return (
            np.repeat(self.client_ids, np.diff(self.offsets)),
            self.item_ids[self.items],
        )


def row_offsets(rows: np.ndarray, n_rows: int) -> np.ndarray:
    """Where each row starts among ascending row indices: int64 [n_rows + 1]."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))]).astype(np.int64)


def titles_of(item_ids: np.ndarray, titles: Mapping[Any, str]) -> np.ndarray:
    """Titles in the items' order, str [M]; "" where `titles` has none."""
    return np.array([titles.get(item, "") for item in item_ids.tolist()], dtype=np.str_)


def _expect_same_length(name: str, **columns: Any) -> None:
    lengths = {what: len(column) for what, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{name}: expected columns of one length, found {lengths}.")
    if not any(lengths.values()):
        raise DataError(f"{name}: expected at least one interaction, found none.")


def _keep_used(ids: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops ids that no row refers to and renumbers the rows."""
    used = np.bincount(index, minlength=len(ids)) > 0
    return ids[used], (np.cumsum(used) - 1)[index]
