"""What fits into the memory that is allowed: how long segments are, where private state lies.

    tables       on each device: the server's state, old and new, and a change of the table; once
                 over all devices where tables are spread
    clients      a few numbers for each client of the population
    private      what clients keep: on the device up to 1/8 of the memory, on the host up to 1/6,
                 else on disk, in files that are mapped
    segments     the one that runs and the one that is read meanwhile, up to 1/8 each

A segment has as many rounds as fit, `ROUNDS` at most, and sizes that are the same for all of a run:
a slot for each of its clients were they all different, and room for `SLACK` times their mean number
of items, or for those of a cohort of the longest histories. Where the clients of the next rounds
have more, the segment ends before. So every segment runs in the same compiled program.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from fedras_jax.errors import SpecError
from fedras_jax.memory import nbytes
from fedras_jax.types import Algorithm

ROUNDS = 25
SLACK = 1.25
PLACES = ("device", "host", "disk")
_SHARES = {"device": 1 / 8, "host": 1 / 6}
# The private state, and two copies of it that a checkpoint makes: ours, as rounds go on, and its
# writer's.
_COPIES = 3
_SEGMENT_SHARE = 1 / 8
# Per client of the population: offsets, lengths, both counts of its rounds, its rank; a profile's
# nine columns, on the host and on the device.
_CLIENT, _PROFILE = 48, 72
# While a segment's items are gathered: themselves, where they are, and checks.
_ITEM = 32
_MEMBER = 80  # a cohort's columns


class Plan(NamedTuple):
    """Sizes of a streamed run.

    Attributes:
      rounds: in a segment, at most.
      slots: clients in a segment, at most.
      items: training items of a segment's clients, at most.
      private: where private state lies, one of `PLACES`.
      allowed: bytes.
      tables, clients, kept, segment: bytes of each: see the module. `kept` is the private state's.
    """

    rounds: int
    slots: int
    items: int
    private: str
    allowed: int
    tables: int
    clients: int
    kept: int
    segment: int

    @property
    def total(self) -> int:
        """Bytes of anonymous memory that arrays take."""
        kept = 0 if self.private == "disk" else _COPIES * self.kept
        return self.tables + self.clients + kept + 2 * self.segment

    def __str__(self) -> str:
        gib = 2**30
        return (
            f"private state ({self.kept / gib:.3f} GiB) on {self.private}; segments of up to "
            f"{self.rounds} rounds, {self.slots:,} clients and {self.items:,} items "
            f"({self.segment / gib:.3f} GiB each); {self.total / gib:.2f} GiB of "
            f"{self.allowed / gib:g}"
        )


def _enough(n: float) -> str:
    """So many bytes as a number of GiB that does, whatever its size."""
    return f"{math.ceil(n / 2**30 * 1000) / 1000:g} GiB"


def plan(
    algorithm: Algorithm,
    lengths: np.ndarray,
    capacity: int,
    *,
    memory: float,
    rounds: int | None = None,
    private: str | None = None,
    profiled: bool = False,
    devices: int = 1,
    spread: bool = False,
) -> Plan:
    """Sizes for a run.

    Args:
      algorithm: its functions.
      lengths: integer [U], training items of each client.
      capacity: slots of a cohort.
      memory: GiB that arrays may take.
      rounds: in a segment; as many as fit when None.
      private: where private state lies; by the rule when None.
      profiled: whether clients have devices and networks.
      devices: that share a cohort.
      spread: whether they share the item tables, too.

    Raises:
      SpecError: it does not fit.
    """
    if not 0 < memory < math.inf:
        raise SpecError(f"memory must be above 0 GiB and finite, not {memory}")
    if private not in (None, *PLACES):
        raise SpecError(f"private must be one of {', '.join(PLACES)}, not {private!r}")
    if rounds is not None and rounds < 1:
        raise SpecError(f"a segment must have at least 1 round, not {rounds}")
    allowed, n_clients = int(memory * 2**30), len(lengths)
    state = jax.eval_shape(algorithm.init)
    own = nbytes((state.clients, state.codec, state.last_sync))
    server = nbytes(state) - own - nbytes(state.owed)
    # On every device, or once over all of them: old and new, and what is reduced.
    tables = (1 if spread else devices) * (2 * server + 3 * nbytes(state.items))
    clients = (_CLIENT + profiled * _PROFILE) * n_clients
    longest = np.partition(lengths, -capacity)[-capacity:].sum()

    def sizes(rounds: int) -> tuple[int, int, int]:
        slots = min(n_clients, rounds * capacity)
        mean = SLACK * slots * lengths.mean()
        items = int(min(max(longest, mean), lengths.sum()))
        items = max(-(-items // 1024) * 1024, 1024)
        row = own / n_clients
        # A row before and after; a cohort's columns and diagnostics, on the device and here.
        of_rounds = rounds * capacity * (_MEMBER + 2 * _info(algorithm))
        on_devices = devices * (4 * items + (2 * row + 12) * slots)
        return slots, items, int(_ITEM * items + (row + 12) * slots + on_devices + of_rounds)

    most = rounds or ROUNDS
    fitting = [r for r in range(1, most + 1) if sizes(r)[2] <= _SEGMENT_SHARE * allowed]
    if not fitting or (rounds is not None and fitting[-1] != rounds):
        needed = sizes(rounds or 1)[2]
        raise SpecError(
            f"a segment of {rounds or 1} rounds of {capacity} clients takes {_gib(needed)}, and "
            f"memory={memory:g} GiB leaves {_gib(_SEGMENT_SHARE * allowed)} for it: allow "
            f"{_enough(needed / _SEGMENT_SHARE)}, or draw fewer clients a round"
        )
    chosen = private or next((p for p in _SHARES if own <= _SHARES[p] * allowed), "disk")
    slots, items, segment = sizes(fitting[-1])
    found = Plan(fitting[-1], slots, items, chosen, allowed, tables, clients, own, segment)
    if items >= 2**31:
        raise SpecError(f"a segment of {items:,} items is too large: draw fewer clients a round")
    if found.total > allowed:
        raise SpecError(
            f"memory={memory:g} GiB is too little: tables take {_gib(tables)}, a few numbers for "
            f"each of {n_clients:,} clients {_gib(clients)}, private state on {chosen} "
            f"{_gib(0 if chosen == 'disk' else _COPIES * own)} and two segments "
            f"{_gib(2 * segment)}: allow {_enough(found.total)}"
        )
    return found


def _info(algorithm: Algorithm) -> int:
    """Bytes of diagnostics for each client of a round, about."""
    return 80 + 4 * len(algorithm.fields)


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
