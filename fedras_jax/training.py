"""Rounds in segments: advance, evaluate, save, show, until runs are over or told to stop."""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from fedras_jax import hosts
from fedras_jax.errors import StoppedError
from fedras_jax.options import Options
from fedras_jax.programs import SEGMENT, Programs
from fedras_jax.progress import Progress, bar
from fedras_jax.record import Record
from fedras_jax.spec import Spec
from fedras_jax.types import Arguments, Array, FedState


@runtime_checkable
class Going(Protocol):
    """Runs that stand at the same round and go on together."""

    @property
    def records(self) -> Sequence[Record]:
        """Theirs."""
        ...

    @property
    def compile_s(self) -> float:
        """Seconds that compilation has taken so far."""
        ...

    @property
    def resumable(self) -> bool:
        """Whether `save` keeps anything to go on from."""
        ...

    def advance(self, done: int, until: int) -> int:
        """Rounds from `done` on, at most until `until`; returns how many are done then."""
        ...

    def evaluate(self) -> None:
        """Ranks after the last round, into the records."""
        ...

    def save(self) -> None:
        """Checkpoints after the last round."""
        ...


class Times(NamedTuple):
    """Where seconds went.

    Attributes:
      startup_s: until the first rounds were finished, 0 where there were none.
      evaluate_s: of evaluation.
    """

    startup_s: float
    evaluate_s: float


def drive(runs: Going, done: int, options: Options, started: float) -> Times:
    """All rounds that are left, into the runs' records.

    Args:
      runs: which.
      done: rounds that they have behind them.
      options: how.
      started: when this process was asked for them, by `time.perf_counter`.

    Raises:
      SpecError: a progress bar is asked for, but there is none.
      StoppedError: asked to stop.
    """
    records = runs.records
    spec = records[0].spec
    startup_s = evaluate_s = 0.0

    def evaluate() -> float:
        began = time.perf_counter()
        runs.evaluate()
        return time.perf_counter() - began

    def flush() -> None:
        for each in records:
            each.flush()

    if done == spec.rounds:
        evaluate_s += evaluate()
    name = spec.codec if len(records) == 1 else f"{spec.codec}, {len(records)} runs"
    shown = options.progress and hosts.is_first()
    with hosts.together(lambda: bar(name, spec.rounds, start=done, enabled=shown)) as show:
        while done < spec.rounds and any(each.diverged is None for each in records):
            began, compiled = time.perf_counter(), runs.compile_s
            done = runs.advance(done, next_stop(done, spec, options))
            seconds = time.perf_counter() - began - (runs.compile_s - compiled)
            for each in records:
                each.trained_s += seconds / len(records)
            startup_s = startup_s or time.perf_counter() - started
            last = done == spec.rounds
            evaluating = last or done % spec.eval_every == 0
            if evaluating:
                evaluate_s += evaluate()
            stopping = not last and hosts.any_of(options.stop())
            every = options.checkpoint_every
            due = every and (options.checkpoint_last if last else done % every == 0)
            if (stopping or due) and runs.resumable:
                hosts.together(runs.save)
            elif evaluating or stopping:
                hosts.together(flush)
            sound = [each.rows[-1] for each in records if each.diverged is None]
            if sound:
                show(Progress(done, _mean(sound)))
            if stopping:
                kept = hosts.from_first(lambda: records[0].kept) and runs.resumable
                raise StoppedError(
                    f"stopped after round {done} of {spec.rounds}, as asked: "
                    + ("the same command goes on from there" if kept else "nothing kept")
                )
    return Times(startup_s, evaluate_s)


def next_stop(done: int, spec: Spec, options: Options) -> int:
    """The round after `done` at which the host has something to do next."""
    marks = [every for every in (spec.eval_every, options.checkpoint_every) if every]
    return min(spec.rounds, *((done // every + 1) * every for every in marks))


class Group:
    """Runs that one program advances."""

    def __init__(
        self,
        records: Sequence[Record],
        programs: Programs,
        given: Arguments,
        state: FedState,
        target: Array,
    ) -> None:
        """Runs at the same round.

        Args:
          records: theirs.
          programs: theirs, compiled.
          given, state: their numbers and states; the states are donated.
          target: the items that they are evaluated on.
        """
        self.records, self.state = records, state
        self.compile_s, self.resumable = 0.0, True
        self._programs, self._given, self._target = programs, given, target

    def advance(self, done: int, until: int) -> int:
        rounds = min(until - done, SEGMENT)
        programs = self._programs
        self.state, info = programs.advance(self._given, self.state, programs.data, rounds)
        host, finite = jax.tree.map(np.asarray, (info, programs.finite(self.state)))
        for i, each in enumerate(self.records):
            own = jax.tree.map(lambda x, i=i: x[i, :rounds], host)
            each.add(own, finite=bool(finite[i]))
        return done + rounds

    def evaluate(self) -> None:
        ranks = np.asarray(self._programs.rank(self.state, self._target))
        for each, found in zip(self.records, ranks, strict=False):  # the rest is padding
            each.evaluated(found)

    def save(self) -> None:
        state = self._programs.gather(self.state)  # by all processes, also those that do not write
        if not any(each.kept for each in self.records):
            return
        host = jax.tree.map(np.asarray, state)
        for i, each in enumerate(self.records):
            each.save(jax.tree.map(lambda x, i=i: x[i], host))


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
