"""A process's anonymous memory: what it holds that is no mapped file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def anonymous() -> int:
    """Bytes of this process's anonymous memory; files that are mapped are not part of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("RssAnon"))


@contextmanager
def peak() -> Iterator[list[int]]:
    """The largest `anonymous` while the block runs, in the list's only place."""
    found, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            found[0] = max(found[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
