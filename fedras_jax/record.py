"""What the host keeps of one run while it goes: rows, bytes, ranks, and the files they go to."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedras_jax import accounting, checkpoint, evaluate, hosts, metrics, results
from fedras_jax.errors import DivergedError, ResultsError
from fedras_jax.spec import Spec
from fedras_jax.tensorboard import Board
from fedras_jax.types import Algorithm, PyTree, RoundInfo


class Record:
    """One run's record.

    Attributes:
      spec: what is run.
      algorithm: what runs it.
      rows: a dict a round, as `rounds.parquet` has them.
      ranks: int32[U], of the last evaluation.
      diverged: why it counts no longer, None while it is sound.
      trained_s: its share of the seconds of training so far, over restarts.
    """

    def __init__(
        self,
        spec: Spec,
        algorithm: Algorithm,
        n_clients: int,
        folder: Path | None,
        *,
        log_clients: bool = False,
        tensorboard: bool = False,
        keep: int = 2,
        keep_last: bool = True,
    ) -> None:
        """Of a run that has not begun, in a folder of its own; None writes nothing.

        Args:
          spec, algorithm, n_clients, folder: what is run, and where its results go.
          log_clients: write clients.parquet too.
          tensorboard: write event files too.
          keep: checkpoints to keep.
          keep_last: whether any is kept once the run is finished.
        """
        self.spec, self.algorithm = spec, algorithm
        self.rows: list[dict[str, Any]] = []
        self.ranks = np.zeros(0, np.int32)
        self.diverged: DivergedError | None = None
        self.trained_s = 0.0
        self._folder, self._n_clients, self._keep_last = folder, n_clients, keep_last
        self._account = accounting.Account(algorithm, n_clients)
        self._rounds = results.Log(folder, "rounds")
        self._clients = results.Log(folder, "clients")
        self._log_clients = self._keep_clients = log_clients
        self._board = Board(folder if tensorboard else None)
        self._written = self._on_board = 0
        self._checkpoints = None if folder is None else checkpoint.Checkpoints(folder, spec, keep)

    @property
    def kept(self) -> bool:
        """Whether anything is written."""
        return self._folder is not None

    def resume(self, state: PyTree) -> tuple[int, PyTree]:
        """Go on where the folder's last checkpoint is, or start anew.

        Args:
          state: the run's state, or its shapes and types.

        Returns:
          Rounds that are done, and the state after them; 0 and None for a new run.

        Raises:
          ResultsError: checkpoints or logs that are not this run's, or cannot be read.
        """
        found, rows = hosts.from_first(lambda: self._found(state))
        if found is None:
            return 0, None
        self.rows, self._written, self._on_board = rows, found.round, found.round
        self._account.resume(rows, found.tree["drawn"], found.tree["counted"])
        self.trained_s = float(found.tree["trained_s"])
        return found.round, found.tree["state"]

    def _found(self, state: PyTree) -> tuple[checkpoint.Saved | None, list[dict[str, Any]]]:
        """The folder's last checkpoint, and the rows until then; what came after is dropped."""
        found = None
        if self._folder is not None:
            found = checkpoint.restore(self._folder, self.spec, tree(state, self._account))
        done = 0 if found is None else found.round
        table = self._rounds.resume(done)
        clients = self._clients.resume(done)
        self._board.resume(done)
        if found is None:
            return None, []
        rows = [] if table is None else results.rows_in(table)
        if [row["round"] for row in rows] != list(range(1, done + 1)):
            raise ResultsError(
                f"{self._folder} has a checkpoint of round {done}, but not the rows of all rounds "
                f"until then: remove its {checkpoint.FOLDER} to start again"
            )
        whole = sum(row["clients"] for row in rows) == (clients.num_rows if clients else 0)
        self._keep_clients = self._log_clients or (whole and done == self.spec.rounds)
        if self._log_clients and not whole:
            raise ResultsError(
                f"{self._folder} was run for {done} rounds without log_clients: leave it off, or "
                "choose another --workdir"
            )
        return found, rows

    def add(self, info: RoundInfo, *, finite: bool) -> None:
        """Take in a segment of rounds, leading axis R.

        A run that has left the finite numbers is marked, and its rows end with the segment.

        Args:
          info: their diagnostics.
          finite: whether the table is finite after them.
        """
        if self.diverged is not None:
            return
        rows, clients = self._account.add(info)
        self.rows += rows
        if self._log_clients:
            self._clients.write(clients)
        self.diverged = _divergence(rows, finite)

    def evaluated(self, ranks: np.ndarray) -> None:
        """Take in ranks i32[U] after the last round."""
        if self.diverged is not None:
            return
        try:
            self.ranks = evaluate.check(ranks)
        except DivergedError as e:
            self.diverged = e
            return
        self.rows[-1] |= metrics.summarise(self.ranks)
        if self._written == len(self.rows):  # of an earlier process, without these
            self._written, self._on_board = 0, len(self.rows) - 1

    def flush(self) -> None:
        """Put all rows on disk."""
        new = self.rows[self._written :]
        if new:
            self._rounds.write(results.columns_of(new))
            self._board.write(self.rows[self._on_board :])
        self._written = self._on_board = len(self.rows)
        self._rounds.flush()
        self._clients.flush()

    def save(self, state: PyTree) -> None:
        """A checkpoint after the last round; without a folder, or once diverged, none."""
        self.flush()
        if self._checkpoints is not None and self.diverged is None:
            saved = tree(state, self._account, self.trained_s)
            self._checkpoints.save(len(self.rows), saved)

    def finish(self, **more: Any) -> dict[str, Any]:
        """The summary of a run that is over, written with all else.

        Args:
          more: further entries.

        Raises:
          DivergedError: it has diverged; the reason and the rows until then are on disk.
        """
        self.flush()
        self._rounds.finish()
        if self._keep_clients:
            self._clients.finish()
        else:
            self._clients.discard()  # of fewer rounds than there are
        self._board.close()
        if self.diverged is not None:
            if self._folder is not None:
                about = {"round": len(self.rows), "message": str(self.diverged)}
                results.write_json(self._folder / "diverged.json", about)
            raise self.diverged
        summary = {
            "spec": self.spec.to_json(),
            "rounds": self.spec.rounds,
            "metrics": metrics.summarise(self.ranks),
            "payload": accounting.payload(self.algorithm, self.rows),
            "clock": accounting.clock(self.rows),
            **more,
        }
        if self._folder is not None:
            columns: dict[str, np.ndarray] = {
                "client": np.arange(self._n_clients, dtype=np.int32),
                "rank": self.ranks,
                "drawn": self._account.drawn,
                "counted": self._account.counted,
            }
            results.write_table(self._folder / "ranks.parquet", columns)
            results.write_json(self._folder / "summary.json", summary)
            if not self._keep_last and self._checkpoints is not None:
                self._checkpoints.remove()
            (self._folder / "diverged.json").unlink(missing_ok=True)
        return summary

    def close(self) -> None:
        """Wait for what is being written.

        Raises:
          ResultsError: a checkpoint could not be written.
        """
        self._board.close()
        if self._checkpoints is not None:
            self._checkpoints.close()


def tree(state: PyTree, account: accounting.Account, trained_s: float = 0.0) -> PyTree:
    """What a checkpoint holds of a run, whose state may be given by its shapes and types."""
    return {
        "state": state,
        "drawn": account.drawn,
        "counted": account.counted,
        "trained_s": np.asarray(trained_s),
    }


def last(folder: Path, spec: Spec, algorithm: Algorithm, n_clients: int) -> checkpoint.Saved | None:
    """The latest checkpoint of a run, None where there is none.

    Raises:
      ResultsError: as `checkpoint.restore`.
    """
    state = jax.eval_shape(algorithm.init)
    account = accounting.Account(algorithm, n_clients)
    return checkpoint.restore(folder, spec, tree(state, account))


def _divergence(rows: list[dict[str, Any]], finite: bool) -> DivergedError | None:
    """The first round whose loss is not a number, or a segment that has spoilt the table."""
    for row in rows:
        if not math.isfinite(row["loss"]) or not math.isfinite(row["distortion"]):
            return DivergedError(
                f"round {row['round']}: the training loss or the payload is not finite "
                f"(loss {row['loss']}): training has diverged, lower client_lr or server_lr"
            )
    if not finite:
        return DivergedError(
            f"round {rows[0]['round']} to {rows[-1]['round']}: the item table is not finite: "
            "training has diverged, lower client_lr or server_lr, or send float32 actions"
        )
    return None


def clients_in(rows: list[dict[str, Any]]) -> int:
    """Client updates in these rounds."""
    return sum(row["clients"] for row in rows)
