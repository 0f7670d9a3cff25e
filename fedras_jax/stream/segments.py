"""Segments of rounds, planned on the host: who takes part, and their histories from the store."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from fedras_jax.data.store import Store
from fedras_jax.stream.budget import Plan
from fedras_jax.types import Cohort, Histories, Profile


class Segment(NamedTuple):
    """Some rounds, and all that their clients bring.

    Attributes:
      first, rounds: the round it begins with, from 0, and how many there are.
      clients: int64 [n], its clients, distinct and ascending; client i is in slot i.
      data: their histories, i32[slots + 1] and i32[items], padded.
      cohorts: who takes part, leading axis of rounds; those beyond `rounds` are of no use.
    """

    first: int
    rounds: int
    clients: np.ndarray
    data: Histories
    cohorts: Cohort


class Segments:
    """Makes segments, in a thread of its own."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        draw: Callable[[int], Cohort],
        profile: Profile | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        """For a run.

        Args:
          store: the histories.
          plan: sizes.
          draw: first round -> cohorts of `plan.rounds` rounds, leading axis R.
          profile: the clients' devices and networks on the host, leading axis U.
          sharding: of what goes to the devices.
        """
        self._store, self._plan, self._draw = store, plan, draw
        self._profile, self._sharding = profile, sharding
        self._lengths = np.diff(store.offsets)
        self._thread = ThreadPoolExecutor(1, "segments")

    def ahead(self, first: int, most: int) -> "Future[Segment]":
        """Begin to make the segment of up to `most` rounds from a round on."""
        return self._thread.submit(self.make, first, most)

    def close(self) -> None:
        """Wait for the thread."""
        self._thread.shutdown(cancel_futures=True)

    def make(self, first: int, most: int) -> Segment:
        """The segment of up to `most` rounds from a round on.

        Raises:
          DataError: the store is damaged.
        """
        plan = self._plan
        cohorts = jax.tree.map(np.asarray, self._draw(first))
        most = min(most, plan.rounds)
        drawn = [cohorts.client[r][cohorts.mask[r]] for r in range(most)]
        clients, place = np.unique(np.concatenate(drawn), return_index=True)
        # The round in which each client comes first; a round fits if all that is new by then does.
        begins = np.cumsum([0, *map(len, drawn)])
        new_in = np.searchsorted(begins, place, side="right") - 1
        items = np.bincount(new_in, self._lengths[clients], minlength=most)
        rounds = int(np.searchsorted(np.cumsum(items), plan.items, side="right"))
        clients = clients[new_in < rounds].astype(np.int64)
        offsets, found = self._store.gather(clients)
        offset = np.full(plan.slots + 1, offsets[-1], np.int32)
        offset[: len(offsets)] = offsets
        item = np.zeros(plan.items, np.int32)
        item[: len(found)] = found
        slot = np.searchsorted(clients, cohorts.client).clip(0, max(len(clients) - 1, 0))
        device = None
        if self._profile is not None:
            device = jax.tree.map(lambda x: np.asarray(x)[cohorts.client], self._profile)
        cohorts = cohorts.replace(slot=slot.astype(np.int32), device=device)
        offset, item, cohorts = jax.device_put((offset, item, cohorts), self._sharding)
        return Segment(first, rounds, clients, Histories(offset, item), cohorts)
