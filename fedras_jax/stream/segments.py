"""Segments of rounds, planned on the host: who takes part, and their histories from the store."""

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from fedras_jax import cohort, hosts
from fedras_jax.data.store import Store
from fedras_jax.stream.budget import Plan
from fedras_jax.types import Array, Cohort, Histories, Profile


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
        # In this context: whether loops are on is told by it (`native.use`).
        context = contextvars.copy_context()
        return self._thread.submit(context.run, self.make, first, most)

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
        offsets = np.concatenate([[0], np.cumsum(self._lengths[clients])])
        offset = np.full(plan.slots + 1, offsets[-1], np.int32)
        offset[: len(offsets)] = offsets
        slot = np.searchsorted(clients, cohorts.client).clip(0, max(len(clients) - 1, 0))
        device = None
        if self._profile is not None:
            device = jax.tree.map(lambda x: np.asarray(x)[cohorts.client], self._profile)
        cohorts = cohorts.replace(slot=slot.astype(np.int32), device=device)
        offset, cohorts = hosts.put((offset, cohorts), self._sharding)
        item = self._items(clients, offsets)
        return Segment(first, rounds, clients, Histories(offset, item), cohorts)

    def _items(self, clients: np.ndarray, offsets: np.ndarray) -> Array:
        """Their items, i32[items]; of several processes each reads and brings a part of them."""

        def read(start: int, end: int) -> np.ndarray:
            item = np.zeros(end - start, np.int32)
            # Those who have something in it, the first and the last one perhaps more elsewhere.
            low, high = (
                np.searchsorted(offsets, start, side="right") - 1,
                np.searchsorted(offsets, end),
            )
            some = clients[low : min(high, len(clients))]
            if len(some):
                found = self._store.gather(some)[1][start - offsets[low] :][: end - start]
                item[: len(found)] = found
            return item

        n = self._plan.items
        if hosts.count() == 1 or not isinstance(self._sharding, NamedSharding):
            return jax.device_put(read(0, n), self._sharding)
        dealt = NamedSharding(self._sharding.mesh, PartitionSpec(cohort.AXIS))
        n += -n % dealt.mesh.size
        return hosts.put_parts(n, read, dealt)
