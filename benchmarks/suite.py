"""Benchmarks one after another, a process each; what they found, and which bars they met."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Bar, bar, number
from benchmarks.machine import Need

MINUTES = 10.0


def run(
    calls: Mapping[str, Sequence[str]], out: Path, *, busy: bool = False, whole: bool = True
) -> int:
    """Run commands in turn, keep their figures, print the bars; returns the exit code.

    Leaves a JSON file each, and `figures.json` and `figures.md` of them all.

    Args:
      calls: name -> command; `--json=PATH` is added to it.
      out: a folder, made where there is none.
      busy: whether other work was running on the machine; is kept with the figures.
      whole: whether these are all benchmarks, whose time is a bar of its own, and no others.

    Returns:
      0; 1 where a bar was missed or a benchmark failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    failed = []
    began = time.perf_counter()
    for name, call in calls.items():
        path = out / f"{name}.json"
        path.unlink(missing_ok=True)  # an earlier run's would look like this one's
        start = time.perf_counter()
        code = subprocess.run([*call, f"--json={path}"]).returncode
        if code or not path.exists():
            failed.append(f"{name} (exit code {code})")
            continue
        found[name] = json.loads(path.read_text())
        found[name]["seconds"] = time.perf_counter() - start
    minutes = (time.perf_counter() - began) / 60
    bars = [_bar(one) for each in found.values() for one in each["bars"]]
    all_ = Need("the default benchmarks", whole)
    bars.append(bar("minutes that all benchmarks take", minutes, "<=", MINUTES, all_))
    verdict, code = judge(bars, failed)
    left = {
        "minutes": minutes,
        "busy": busy,
        "benchmarks": found,
        "bars": [{**b._asdict(), "state": b.state} for b in bars],
        "failed": failed,
        "verdict": verdict,
    }
    (out / "figures.json").write_text(json.dumps(left, indent=2) + "\n")
    (out / "figures.md").write_text(page(found, bars, verdict, busy))
    for one in bars:
        print(one)
    print(verdict, flush=True)
    return code


def judge(bars: Sequence[Bar], failed: Sequence[str] = ()) -> tuple[str, int]:
    """A line that counts the bars, and the exit code: 1 where one was missed.

    Args:
      bars: of all benchmarks.
      failed: benchmarks that ended without figures; they count as missed too.
    """
    states = [one.state for one in bars]
    counts = {state: states.count(state) for state in ("met", "missed", "not measured")}
    text = "bars: " + ", ".join(f"{n} {state}" for state, n in counts.items())
    if failed:
        text += f"; failed: {', '.join(failed)}"
    return text, int(bool(counts["missed"] or failed))


def page(
    found: Mapping[str, Mapping[str, Any]], bars: Sequence[Bar], verdict: str, busy: bool
) -> str:
    """All of it in Markdown: the bars, then a table for each benchmark.

    Args:
      found: name -> what a benchmark left.
      bars: all.
      verdict: from `judge`.
      busy: whether other work was running.
    """
    parts = ["# Benchmarks\n", f"{verdict}\n"]
    machines = sorted({each["hardware"] for each in found.values()})
    parts += [f"Measured on {name}.\n" for name in machines]
    if busy:
        parts.append("Other work was running on the machine: these figures measure nothing.\n")
    parts.append(_table(("bar", "asked", "found", "", "needs"), [_row(one) for one in bars]))
    for name, each in found.items():
        parts.append(f"## {name}: {each['title']}\n")
        parts.append(_table(("figure", ""), [(k, number(v)) for k, v in each["figures"].items()]))
        rows = [
            (r["name"], number(r["distance"]), r["binds"], r["formula"]) for r in each["rooflines"]
        ]
        if rows:
            parts.append(_table(("figure", "times its roofline", "what binds", "formula"), rows))
    return "\n".join(parts)


def _bar(entry: Mapping[str, Any]) -> Bar:
    """A bar, as a benchmark wrote it down."""
    fields = {name: entry[name] for name in Bar._fields}
    return Bar(**{**fields, "needs": tuple(fields["needs"]), "lacks": tuple(fields["lacks"])})


def _row(one: Bar) -> tuple[str, ...]:
    figure = "" if one.figure is None else number(one.figure)
    asked = f"{one.sense} {number(one.limit)}"
    return one.name, asked, figure, one.state, ", ".join(one.needs)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped) + "\n"
