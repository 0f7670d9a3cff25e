"""A binary that is killed or told to stop, and the same command again."""

import os
import signal
import time

from benchmarks import kills

RUN = (
    *("--dataset=synthetic:60x90x12", "--dim=8", "--cohort_size=10", "--candidates=20"),
    *("--rounds=400", "--eval_every=50", "--checkpoint_every=5", "--log_clients"),
    *("--codec=dense", "--devices=1", "--noprogress"),
)


def wait_for(child, folder, checkpoints):
    """Until there are so many finished checkpoints."""
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        found = [p for p in folder.glob("checkpoints/*") if p.name.isdecimal()]
        if len(found) >= checkpoints:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {checkpoints} checkpoints: exit code {child.poll()}")


def test_killed_and_told_to_stop_it_ends_as_if_nothing_had_happened(tmp_path):
    """`python -m benchmarks.kills` does this at a hundred random moments."""
    programs = os.environ["JAX_COMPILATION_CACHE_DIR"]
    kills.finish(tmp_path / "whole", programs, RUN)

    folder = tmp_path / "run"
    with kills.start(folder, programs, RUN) as child:
        wait_for(child, folder, 1)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (folder / "summary.json").exists()

    with kills.start(folder, programs, RUN) as child:
        wait_for(child, folder, 2)
        child.send_signal(signal.SIGTERM)
        _, told = child.communicate()
    assert child.returncode == 75, told
    assert "as asked: the same command goes on from there" in told

    kills.finish(folder, programs, RUN)
    assert kills.differences(folder, tmp_path / "whole") == []
