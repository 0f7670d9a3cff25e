"""The benchmarks' harness: bars, rooflines, what is counted; no timing."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compiled, contestants, harness, line, machine, suite
from benchmarks.machine import Need
from fedras_jax import cohort
from fedras_jax.assembly import assemble, split_of
from fedras_jax.errors import SpecError
from fedras_jax.spec import Spec

HERE, GONE = Need("2 CPU cores", True), Need("ml-1m", False)


@pytest.mark.parametrize(
    ("figure", "sense", "state"),
    [
        (2.0, ">=", "met"),
        (1.9, ">=", "missed"),
        (2.0, "<=", "met"),
        (2.1, "<=", "missed"),
        (float("nan"), ">=", "missed"),
        (float("nan"), "<=", "missed"),
        (None, ">=", "not measured"),
    ],
)
def test_a_bar_is_met_missed_or_not_measured(figure, sense, state):
    assert harness.bar("x", figure, sense, 2, HERE).state == state


def test_a_figure_counts_only_where_all_that_its_bar_needs_is_there():
    one = harness.bar("x", 10.0, ">=", 2, HERE, GONE)
    assert one.state == "not measured"
    assert one.figure is None
    assert (one.needs, one.lacks) == (("2 CPU cores", "ml-1m"), ("ml-1m",))
    assert str(one) == "not measured: x: - >= 2 (needs ml-1m)"


def test_a_bar_of_an_unknown_sense_is_refused():
    with pytest.raises(ValueError, match="sense must be"):
        harness.bar("x", 1.0, ">", 2)


def test_a_line_counts_the_bars_and_one_that_is_missed_gives_an_exit_code():
    met, missed = harness.bar("a", 3, ">=", 2), harness.bar("b", 1, ">=", 2)
    absent = harness.bar("c", 1, ">=", 2, GONE)
    assert suite.judge([met, met, absent]) == ("bars: 2 met, 0 missed, 1 not measured", 0)
    assert suite.judge([met, missed, absent]) == ("bars: 1 met, 1 missed, 1 not measured", 1)
    text, code = suite.judge([met], ["codecs (exit code 1)"])
    assert (text.endswith("failed: codecs (exit code 1)"), code) == (True, 1)


def leaving(content):
    """A command that leaves this where `--json` says."""
    code = (
        "import sys, pathlib; "
        f"pathlib.Path(sys.argv[1].removeprefix('--json=')).write_text({json.dumps(content)!r})"
    )
    return [sys.executable, "-S", "-c", code]


def left(figure):
    """What a benchmark leaves, whose one bar is at 2."""
    one = harness.bar("rounds | dense", figure, ">=", 2)
    return {
        "title": "rounds",
        "hardware": "a machine",
        "figures": {"dense, clients/s": 12345.6},
        "rooflines": [],
        "bars": [one._asdict()],
    }


@pytest.mark.parametrize(("figure", "code"), [(3.0, 0), (1.0, 1)])
def test_all_benchmarks_together_leave_their_figures_and_an_exit_code(
    figure, code, tmp_path, capsys
):
    calls = {"round": leaving(left(figure))}
    assert suite.run(calls, tmp_path) == code
    counted = {0: "bars: 2 met, 0 missed, 0 not measured", 1: "bars: 1 met, 1 missed, 0 not"}
    assert capsys.readouterr().out.splitlines()[-1].startswith(counted[code])
    whole = json.loads((tmp_path / "figures.json").read_text())
    assert whole["benchmarks"]["round"]["figures"] == {"dense, clients/s": 12345.6}
    assert whole["bars"][0]["state"] == ("missed" if code else "met")
    page = (tmp_path / "figures.md").read_text()
    assert "Measured on a machine." in page
    assert "| dense, clients/s | 12,346 |" in page
    assert "| rounds \\| dense | >= 2 |" in page


def test_a_benchmark_that_fails_is_named_and_the_others_still_run(tmp_path, capsys):
    (tmp_path / "broken.json").write_text("{}")  # of an earlier run
    calls = {
        "broken": [sys.executable, "-S", "-c", "raise SystemExit(3)"],
        "round": leaving(left(3.0)),
    }
    assert suite.run(calls, tmp_path, busy=True) == 1
    assert "failed: broken (exit code 3)" in capsys.readouterr().out.splitlines()[-1]
    assert "Other work was running" in (tmp_path / "figures.md").read_text()


def test_a_roofline_is_the_longest_of_what_the_peaks_allow(monkeypatch):
    monkeypatch.setattr(machine, "flops", lambda: 100.0)
    monkeypatch.setattr(machine, "bandwidth", lambda size: 10.0 if size > 5 else 1000.0)
    work = harness.Work("as written", flops=200.0, bytes=50.0, working_set=8)
    found = harness.roofline("x", 15.0, work)
    assert (found.least, found.distance, found.formula) == (5.0, 3.0, "as written")
    assert "bytes" in found.binds
    near = harness.roofline("x", 15.0, work._replace(working_set=4))
    assert near.least == 2.0
    assert "flops" in near.binds


def test_what_a_benchmark_leaves_can_be_read_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "flops", lambda: 100.0)
    roof = harness.roofline("dense", 4.0, harness.Work("two an entry", flops=200.0))
    one = harness.bar("dense", 3, ">=", 2, HERE)
    path = tmp_path / "round.json"
    harness.report("rounds", {"s": 1234.5}, str(path), bars=[one], rooflines=[roof])
    told = capsys.readouterr().out
    assert f"rounds ({machine.line()})" in told
    assert "roofline: two an entry" in told
    found = json.loads(path.read_text())
    assert found["machine"]["cores"] == machine.cores()
    assert found["rooflines"][0]["distance"] == 2.0
    assert suite._bar(found["bars"][0]) == one


def test_what_is_not_installed_is_asked_for():
    with pytest.raises(SpecError, match=r"needs nosuchmodule: pip install 'fedras_jax\[bench\]'"):
        machine.optional("nosuchmodule")


def test_a_dataset_that_is_not_here_is_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDRAS_JAX_CACHE", str(tmp_path))
    assert machine.dataset("ml-20m", str(tmp_path)) == Need("ml-20m", False)
    assert machine.dataset("synthetic:9x9", None).there


def test_padded_slots_are_those_that_rounds_compute():
    """Counted on the host, and by the clients themselves."""
    widths = (64, 128, 320)
    draws = np.random.default_rng(0)
    for n, chunk, n_devices in ((13, 4, 2), (30, 16, 1)):
        length = np.minimum(draws.geometric(0.02, n) + 1, 320)

        def client(width, broadcast, one):
            return jnp.int32(width), ()

        total, _ = cohort.fold_clients(
            client,
            lambda acc, sent: acc + sent.sum(),
            jnp.int32(0),
            (),
            jnp.arange(n),
            jnp.asarray(length, jnp.int32),
            widths=widths,
            chunk=chunk,
            mesh=cohort.client_mesh(n_devices) if n_devices > 1 else None,
        )
        assert contestants.slots(length, widths, chunk, n_devices) == int(total) >= length.sum()


def test_exact_levels_on_the_line():
    assert line.exact(np.array([0.0, 1.0, 5.0, 6.0, 20.0]), 3) == pytest.approx(1.0)
    assert line.exact(np.array([3.0, 3.0]), 1) == 0.0


def test_the_compiled_loop_does_the_library_s_work(monkeypatch):
    """Its clients' deltas and vectors, over several minibatches, and the table's mean of them."""
    numba = pytest.importorskip("numba")
    spec = Spec(dataset="synthetic:20x90x14", dim=4, codec="dense", cohort_size=3, batch_size=32)
    split = split_of(spec)
    drawn = compiled.draw(spec, split, 1)
    length = np.diff(drawn.offset)
    assert length.max() > spec.batch_size
    assert list(length) == sorted(length, reverse=True)
    with monkeypatch.context() as here:  # the same loops, in Python; the library's stay compiled
        here.setattr(numba.config, "DISABLE_JIT", True)
        loops = compiled.loops(spec, 2)
    assert compiled.gap(spec, split, drawn, loops) < 1e-5

    state = jax.device_get(jax.jit(assemble(spec, split)[1].init)())
    total, touched = np.zeros_like(state.items), np.zeros((split.n_items, 1))
    for c, who in enumerate(drawn.client):
        at = slice(drawn.offset[c], drawn.offset[c + 1])
        rows, private = state.items[drawn.item[at]], state.clients[who].copy()
        loops.train(private, rows, drawn.label[at])
        total[drawn.item[at]] += rows - state.items[drawn.item[at]]
        touched[drawn.item[at]] += 1
    table, vectors = compiled.rounds_loop(spec, split, drawn, loops)()
    np.testing.assert_allclose(table, state.items + total / np.maximum(touched, 1), atol=1e-6)
    assert (vectors != state.clients).any(1).sum() == len(drawn.client)

    wrong = loops._replace(train=compiled.loops(spec.replace(client_lr=0.6), 2).train)
    with pytest.raises(RuntimeError, match="differ from the library's clients"):
        compiled.gap(spec, split, drawn, wrong)
