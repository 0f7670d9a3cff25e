"""Timing side by side, rooflines, bars, and what a benchmark leaves.

CPUs are shared and noisy: contestants take turns, and a figure is the median over turns. A
roofline is the least time that this machine could take: bytes over its bandwidth or operations
over its peak, whichever is longer, both measured in the same process. A bar is a figure that
should be reached on hardware and data that it names; where these are absent it is not measured.
"""

import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import machine
from benchmarks.machine import Need
from fedras_jax import heap


def all_cores(*, keep_pages: bool = False) -> None:
    """A CPU device a core and little logged, as the binaries do it.

    Args:
      keep_pages: for short programs with large arrays (`heap.keep_pages`). Whole rounds are a tenth
        slower with it: devices' threads wait for each other at the one arena that there is then.
    """
    if keep_pages:
        heap.keep_pages()
    logging.getLogger().setLevel(logging.WARNING)
    for chatty in ("jax", "faiss"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", machine.cores())


def race(contestants: Mapping[str, Callable[[], Any]], turns: int = 5) -> dict[str, float]:
    """Median seconds of each contestant, after one warm-up, taking turns.

    Contestants must return only when their work is done (`jax.block_until_ready`).
    """
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def on_workers(one: Callable[[int], float], n: int) -> np.ndarray:
    """`one` of 0, ..., n - 1, on one single-threaded worker a core; float64 [n].

    How libraries with a call a problem are fastest on many small ones.
    """
    limits = machine.optional("threadpoolctl").threadpool_limits
    with limits(1), ThreadPoolExecutor(machine.cores()) as pool:
        return np.array(list(pool.map(one, range(n), chunksize=32)))


class Work(NamedTuple):
    """The least that a piece of work takes.

    Attributes:
      formula: how operations and bytes are counted, in words.
      flops: float32 operations. bytes: read and written. integer_ops: on 32 bits.
      working_set: bytes over which a core moves; says which cache's bandwidth counts.
    """

    formula: str
    flops: float = 0.0
    bytes: float = 0.0
    integer_ops: float = 0.0
    working_set: float = math.inf


class Roofline(NamedTuple):
    """Measured time against the least possible.

    Attributes:
      name: of the figure.
      formula: of its `Work`.
      seconds: measured. least: what the machine's peaks allow.
      binds: which of them allows no less.
    """

    name: str
    formula: str
    seconds: float
    least: float
    binds: str

    @property
    def distance(self) -> float:
        """How many times the least time it took."""
        return self.seconds / self.least


def roofline(name: str, seconds: float, work: Work) -> Roofline:
    """How far a measured time is from this machine's limit; measures peaks that are needed."""
    least = {}
    if work.flops:
        peak = machine.flops()
        least[f"{work.flops:.3g} flops / {peak / 1e9:.0f} Gflop/s"] = work.flops / peak
    if work.bytes:
        peak = machine.bandwidth(work.working_set)
        least[f"{work.bytes:.3g} bytes / {peak / 1e9:.0f} GB/s"] = work.bytes / peak
    if work.integer_ops:
        peak = machine.integer_ops()
        text = f"{work.integer_ops:.3g} integer operations / {peak / 1e9:.0f} G/s"
        least[text] = work.integer_ops / peak
    binds = max(least, key=lambda which: least[which])
    return Roofline(name, work.formula, seconds, least[binds], binds)


class Bar(NamedTuple):
    """A figure that should be reached.

    Attributes:
      name: of the figure.
      figure: None where it was not measured.
      sense: '>=' or '<='.
      limit: to be compared with.
      needs: hardware and data that it is defined for.
      lacks: which of them are absent.
    """

    name: str
    figure: float | None
    sense: str
    limit: float
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """'met', 'missed' or 'not measured'."""
        if self.figure is None:
            return "not measured"
        met = self.figure >= self.limit if self.sense == ">=" else self.figure <= self.limit
        return "met" if met else "missed"  # no comparison holds for what is not a number

    def __str__(self) -> str:
        """One line: the state, the figure, what is asked for, and what is absent."""
        figure = "-" if self.figure is None else number(self.figure)
        absent = f" (needs {', '.join(self.lacks)})" if self.lacks else ""
        return f"{self.state}: {self.name}: {figure} {self.sense} {number(self.limit)}{absent}"


def bar(name: str, figure: float | None, sense: str, limit: float, *needs: Need) -> Bar:
    """A bar whose figure counts only where all that it needs is there.

    Args:
      name: of the figure.
      figure: None where it was not measured.
      sense: '>=' or '<='.
      limit: to be compared with.
      needs: hardware, data and settings.
    """
    if sense not in (">=", "<="):
        raise ValueError(f"sense must be '>=' or '<=', not {sense!r}")
    lacks = tuple(need.what for need in needs if not need.there)
    kept = None if lacks or figure is None else float(figure)
    return Bar(name, kept, sense, limit, tuple(need.what for need in needs), lacks)


def number(x: Any) -> str:
    """Four digits of a float, with its thousands set apart; anything else as it is."""
    if not isinstance(x, float | int) or isinstance(x, bool):
        return str(x)
    return f"{x:,.0f}" if abs(x) >= 1000 or isinstance(x, int) else f"{x:.4g}"


def report(
    title: str,
    figures: Mapping[str, Any],
    path: str | None = None,
    *,
    bars: Sequence[Bar] = (),
    rooflines: Sequence[Roofline] = (),
) -> None:
    """Print figures with the hardware, and keep them as JSON where a path is given.

    Args:
      title: what was measured.
      figures: name -> number or text.
      path: of the JSON file.
      bars: held against the figures.
      rooflines: distances to the machine's limits.
    """
    print(f"{title} ({machine.line()})")
    for name, value in figures.items():
        print(f"  {name:<58} {number(value)}")
    for roof in rooflines:
        text = f"{number(roof.distance)}  ({roof.binds} binds)"
        print(f"  {f'{roof.name}, times its roofline':<58} {text}")
    for formula in dict.fromkeys(roof.formula for roof in rooflines):
        print(f"  roofline: {formula}")
    for one in bars:
        print(f"  {one}")
    if path:
        content = {
            "title": title,
            "hardware": machine.line(),
            "machine": machine.describe(),
            "figures": dict(figures),
            "rooflines": [{**r._asdict(), "distance": r.distance} for r in rooflines],
            "bars": [{**b._asdict(), "state": b.state} for b in bars],
        }
        Path(path).write_text(json.dumps(content, indent=2) + "\n")
