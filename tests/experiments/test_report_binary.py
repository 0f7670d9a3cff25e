"""`python -m experiments.report` as a user calls it."""

import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import write_sweep

pytest.importorskip("plotly", reason="the extra 'report' is not installed")
pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweep"))


def call(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.report", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_report_writes_one_page(sweep, tmp_path):
    page = tmp_path / "page.html"
    done = call(sweep / "dense", sweep / "k4", f"--output={page}", "--margin=0.02")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{page}: 4 runs, ")
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "directional k=4" in text
    assert "above\n-0.02;" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name one or several folders"),
        (["SWEEP", "--margin=-1"], "--margin must not be negative"),
        (["SWEEP", "--baseline=rows"], "no finished arm is named 'rows': there are dense"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(sweep, tmp_path, flags, message):
    page = tmp_path / "page.html"
    done = call(*(f.replace("SWEEP", str(sweep)) for f in flags), f"--output={page}")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not page.exists()
