"""Timing side by side, and naming the machine.

CPUs are shared and noisy: contestants take turns, and a figure is the median over turns.
"""

import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def all_cores() -> None:
    """Give every core a CPU device of its own, as the experiment binaries do, and log little."""
    logging.getLogger().setLevel(logging.WARNING)
    for chatty in ("jax", "faiss"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def hardware() -> str:
    """The machine that figures were measured on, in a line."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind}, jax {metadata.version('jax')}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores, jax {metadata.version('jax')}"


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


def report(title: str, figures: Mapping[str, Any], path: str | None = None) -> None:
    """Print figures with the hardware, and keep them as JSON where a path is given."""
    print(f"{title} ({hardware()})")
    for name, value in figures.items():
        print(f"  {name:<58} {value:.4g}" if isinstance(value, float) else f"  {name:<58} {value}")
    if path:
        content = {"title": title, "hardware": hardware(), "figures": dict(figures)}
        Path(path).write_text(json.dumps(content, indent=2) + "\n")
