"""Rounds in segments: advance, evaluate, save, show, until runs are over or told to stop."""

import functools
import time
from collections.abc import Sequence

import jax
import numpy as np

from fedras_jax import hosts, record
from fedras_jax.errors import StoppedError
from fedras_jax.options import Options
from fedras_jax.programs import SEGMENT, Programs
from fedras_jax.progress import Progress, bar
from fedras_jax.spec import Spec
from fedras_jax.types import Arguments, Array, FedState, RoundInfo


def train(
    records: Sequence[record.Record],
    programs: Programs,
    given: Arguments,
    state: FedState,
    target: Array,
    done: int,
    options: Options,
    started: float,
) -> tuple[FedState, float]:
    """All rounds that are left, into the runs' records.

    Args:
      records: of runs that stand at the same round.
      programs: theirs.
      given, state: their numbers and states; the states are donated.
      target: the items that they are evaluated on.
      done: rounds that they have behind them.
      options: how.
      started: when this process was asked for them, by `time.perf_counter`.

    Returns:
      The last states, and seconds until the first rounds were finished.

    Raises:
      StoppedError: asked to stop.
    """
    spec, startup_s = records[0].spec, 0.0
    name = spec.codec if len(records) == 1 else f"{spec.codec}, {len(records)} runs"
    if done == spec.rounds:
        _evaluate(records, programs.rank(state, target))
    shown = options.progress and hosts.is_first()
    one_bar = hosts.together(lambda: bar(name, spec.rounds, start=done, enabled=shown))
    with one_bar as show:
        while done < spec.rounds and any(each.diverged is None for each in records):
            began = time.perf_counter()
            until = _next_stop(done, spec, options)
            state, info = programs.advance(given, state, programs.data, until - done)
            _add(records, info, np.asarray(programs.finite(state)), until - done)
            done = until
            startup_s = startup_s or time.perf_counter() - started
            evaluating = done % spec.eval_every == 0 or done == spec.rounds
            if evaluating:
                _evaluate(records, programs.rank(state, target))
            stopping = done < spec.rounds and hosts.any_of(options.stop())
            every = options.checkpoint_every
            seconds = time.perf_counter() - began
            for each in records:
                each.trained_s += seconds / len(records)
            last = done == spec.rounds
            due = every and (options.checkpoint_last if last else done % every == 0)
            if stopping or due:
                hosts.together(functools.partial(_save, records, programs, state))
            elif evaluating:
                hosts.together(lambda: _flush(records))
            sound = [each.rows[-1] for each in records if each.diverged is None]
            if sound:
                show(Progress(done, _mean(sound)))
            if stopping:
                kept = hosts.from_first(lambda: records[0].kept)
                raise StoppedError(
                    f"stopped after round {done} of {spec.rounds}, as asked: "
                    + ("the same command goes on from there" if kept else "nothing kept")
                )
    return state, startup_s


def _save(records: Sequence[record.Record], programs: Programs, state: FedState) -> None:
    state = programs.gather(state)  # by all processes, also those that write nothing
    if not any(each.kept for each in records):
        return
    host = jax.tree.map(np.asarray, state)
    for i, each in enumerate(records):
        each.save(jax.tree.map(lambda x, i=i: x[i], host))


def _flush(records: Sequence[record.Record]) -> None:
    for each in records:
        each.flush()


def _next_stop(done: int, spec: Spec, options: Options) -> int:
    """The round at which the host has something to do next."""
    marks = [every for every in (spec.eval_every, options.checkpoint_every) if every]
    return min(spec.rounds, done + SEGMENT, *((done // every + 1) * every for every in marks))


def _add(
    records: Sequence[record.Record], info: RoundInfo, finite: np.ndarray, rounds: int
) -> None:
    host = jax.tree.map(np.asarray, info)
    for i, each in enumerate(records):
        each.add(jax.tree.map(lambda x, i=i: x[i, :rounds], host), finite=bool(finite[i]))


def _evaluate(records: Sequence[record.Record], ranks: jax.Array) -> None:
    for each, found in zip(records, np.asarray(ranks), strict=False):  # the rest is padding
        each.evaluated(found)


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
