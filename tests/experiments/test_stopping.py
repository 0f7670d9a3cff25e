"""A binary that is killed or told to stop, and the same command again."""

import os
import signal
import time

import pytest

from benchmarks import kills


def wait_for(child, folder, checkpoints):
    """Until there are so many finished checkpoints."""
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        found = [p for p in folder.glob("checkpoints/*") if p.name.isdecimal()]
        if len(found) >= checkpoints:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {checkpoints} checkpoints: exit code {child.poll()}")


@pytest.mark.long
def test_killed_and_told_to_stop_it_ends_as_if_nothing_had_happened(tmp_path):
    """`python -m benchmarks.kills` does this at a hundred random moments."""
    programs = os.environ["JAX_COMPILATION_CACHE_DIR"]
    kills.finish(tmp_path / "whole", programs, kills.DENSE)

    folder = tmp_path / "run"
    with kills.start(folder, programs, kills.DENSE) as child:
        wait_for(child, folder, 1)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (folder / "summary.json").exists()

    with kills.start(folder, programs, kills.DENSE) as child:
        wait_for(child, folder, 2)
        child.send_signal(signal.SIGTERM)
        _, told = child.communicate()
    assert child.returncode == 75, told
    assert "as asked: the same command goes on from there" in told

    kills.finish(folder, programs, kills.DENSE)
    assert kills.differences(folder, tmp_path / "whole") == []
