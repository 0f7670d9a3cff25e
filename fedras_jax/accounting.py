"""What rounds cost, on the host: exact bytes both ways, simulated seconds, and who took part."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedras_jax import bits, network, publish
from fedras_jax.types import Algorithm, RoundInfo

Columns = dict[str, np.ndarray]


class Account:
    """Adds up the diagnostics of a run, segment by segment.

    Attributes:
      drawn, counted: int64[U], rounds in which each client was drawn, and in which a payload of
        its was taken.
    """

    def __init__(self, algorithm: Algorithm, n_clients: int) -> None:
        """Of a run from its first round on, with so many clients."""
        self._algorithm = algorithm
        self._ledger = publish.Ledger(
            algorithm.down_fields, algorithm.snapshot_bits, algorithm.n_shared
        )
        self._clock = 0.0
        self.drawn = np.zeros(n_clients, np.int64)
        self.counted = np.zeros(n_clients, np.int64)

    def resume(
        self, rows: Sequence[Mapping[str, Any]], drawn: np.ndarray, counted: np.ndarray
    ) -> None:
        """Go on where another account was after these rounds, as `add` has returned them."""
        self._clock = rows[-1]["clock_s"] if rows else 0.0
        self._ledger.resume([round(8 * row["published_bytes"]) for row in rows])
        self.drawn, self.counted = drawn.copy(), counted.copy()

    def add(self, info: RoundInfo) -> tuple[list[dict[str, Any]], Columns]:
        """A segment's rounds.

        A client that failed is charged for what was on its way by then, in whole bytes.

        Args:
          info: with a leading axis of rounds.

        Returns:
          A dict for each round, as `rounds.parquet` has it; and columns with an entry for each
          client that was drawn in each round, as `clients.parquet` has them.
        """
        info = jax.tree.map(np.asarray, info)
        algorithm = self._algorithm
        up = bits.payload_bits(algorithm.fields, np.asarray(info.counts_up)) / 8
        whole, up = up, sent(up, np.asarray(info.outcome.share_up))
        lossless = bits.row_bytes(algorithm.sizes, np.asarray(info.n_examples), algorithm.n_shared)
        rows, clients = [], []
        for r in range(len(info.loss)):
            round_ = len(self._ledger.total)
            here = info.mask[r]
            ran = here & (info.n_examples[r] > 0)
            down = self._ledger.fetch(np.asarray(info.synced[r])) / 8
            down = sent(down, np.asarray(info.outcome.share_down[r]))
            published = self._ledger.publish(np.asarray(info.counts_down[r])) / 8
            arrived = info.arrived.weight[r] > 0
            self._clock += float(info.seconds[r])
            np.add.at(self.drawn, info.client[r][here], 1)
            np.add.at(self.counted, info.arrived.client[r][arrived], 1)

            def mean(x, where=ran):
                return float(x[where].mean()) if where.any() else 0.0

            row = {
                "round": round_,
                "clients": int(here.sum()),
                "arrived": int(arrived.sum()),
                "failed": int((ran & ~info.outcome.finished[r]).sum()),
                "staleness": mean(info.arrived.staleness[r], arrived),
                "loss": mean(info.loss[r]),
                "examples": int(info.n_examples[r][here].sum()),
                "short_of_negatives": int((info.n_short[r][here] > 0).sum()),
                "n_actions": mean(info.n_actions[r]),
                "distortion": mean(info.distortion[r]),
                "up_bytes": float(up[r][ran].sum()),
                "down_bytes": float(down[here].sum()),
                "published_bytes": published,
                "row_bytes": float(lossless[r][ran].sum()),
                "seconds": float(info.seconds[r]),
                "clock_s": self._clock,
            }
            spent = zip(network.PHASES, info.spent[r], strict=True)
            row |= {f"{phase}_s": float(x) for phase, x in spent}
            rows.append(row)
            clients.append(
                {
                    "round": np.full(here.sum(), round_, np.int32),
                    "client": info.client[r][here],
                    "finished": info.outcome.finished[r][here],
                    "weight": info.weight[r][here],
                    "examples": info.n_examples[r][here],
                    "n_actions": info.n_actions[r][here],
                    "distortion": info.distortion[r][here],
                    "payload_bytes": np.where(ran, whole[r], 0)[here],
                    "up_bytes": np.where(ran, up[r], 0)[here],
                    "down_bytes": down[here],
                    "seconds": info.outcome.seconds[r][here],
                }
            )
        return rows, {k: np.concatenate([c[k] for c in clients]) for k in clients[0]}


def sent(size: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Bytes of messages of which shares were sent, in whole bytes."""
    return np.minimum(np.ceil(size * share), size)


def payload(algorithm: Algorithm, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes per client per round, headers included, against the dense float32 table.

    And what a client fetches at most: the public table whole, and the model's shared parameters.
    """
    dense = bits.dense_bits(algorithm.sizes, algorithm.n_shared) / 8
    whole = {"table_bytes": algorithm.snapshot_bits / 8, "shared_bytes": 4.0 * algorithm.n_shared}
    return {"dense_bytes": dense, **whole, **traffic(dense, rows)}


def traffic(dense: float, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean bytes per client per round, against so many of the dense float32 table."""
    clients = max(sum(row["clients"] for row in rows), 1)
    up, down, lossless = (
        sum(row[name] for row in rows) / clients for name in ("up_bytes", "down_bytes", "row_bytes")
    )
    return {
        "row_bytes_mean": lossless,
        "up_bytes_mean": up,
        "down_bytes_mean": down,
        "up_reduction": 1 - up / dense,
        "up_reduction_against_rows": 1 - up / lossless if lossless else 0.0,
        "down_reduction": 1 - down / dense,
        "total_reduction": 1 - (up + down) / (2 * dense),
    }


def clock(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Simulated seconds, and what the clients that the server waited for were busy with."""
    spent = {f"{p}_s": sum(row[f"{p}_s"] for row in rows) for p in network.PHASES}
    return {"seconds": rows[-1]["clock_s"], **spent}
