"""A process that `test_hosts` starts: python hosts_worker.py WHAT PROCESS PORT FOLDER."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fedras_jax import cohort, hosts
from fedras_jax.data import leave_one_out, synthetic
from fedras_jax.data.store import open_store, write_split
from fedras_jax.errors import FedrasError, LostError
from fedras_jax.options import Options
from fedras_jax.programs import Kept
from fedras_jax.run import run_group
from fedras_jax.spec import Spec
from fedras_jax.stream import stream
from fedras_jax.stream.budget import Plan
from fedras_jax.stream.segments import Segments
from fedras_jax.types import Cohort

SPEC = Spec(
    dataset="synthetic:40x60x8",
    dim=4,
    negatives=1,  # so that all are padded to one width, which is compiled soonest
    rounds=8,
    eval_every=4,
    cohort_size=10,
    candidates=20,
    codec="dense",
)
BUFFERED = SPEC.replace(
    rounds=4, profile="mobile", arrival="buffered", arrival_args={"in_flight": 20}
)
OPTIONS = {"devices": 1, "checkpoint_every": 2, "log_clients": True}
KEPT = Kept()  # one program for all


def told(make, *args, **kwargs):
    """The kind of an error that must come, and its text."""
    try:
        made = make(*args, **kwargs)
    except (FedrasError, KeyError) as e:
        return [type(e).__name__, str(e)]
    raise AssertionError(f"no error, but {made!r}")


def told_of_stores(me, folder):
    """One path with another store on each, of which the second's is too large for the memory.

    It must not find that out alone, while the other waits.
    """
    split = leave_one_out(synthetic((40, 4000)[me], 60), n_candidates=0)
    (folder / f"of{me}").mkdir()
    with contextlib.chdir(folder / f"of{me}"):
        write_split("store", split)
        return told(stream, SPEC.replace(dataset="store"), memory=1e-3)


@contextlib.contextmanager
def no_programs():
    """Nothing may be compiled."""
    held, KEPT.programs = KEPT.programs, None
    yield
    KEPT.programs = held


def run(folder, spec=SPEC, specs=None, interactions=None, **options):
    specs = specs or [spec]
    (result,) = run_group(
        specs,
        workdirs=[folder] * len(specs),
        interactions=interactions,
        options=Options(**{**OPTIONS, **options}),
        kept=KEPT,
    )
    return result


def exchanges(me):
    """What processes tell each other."""

    def fail_on(i):
        if me == i:
            raise FedrasError(f"{i} cannot")
        return me

    def bug_on(i):
        if me == i:
            raise KeyError("absent")

    big = np.arange(300_000, dtype=np.int64)
    given = hosts.from_first(lambda: {"me": me, "big": big})
    assert (given["big"] == big).all()
    split = jax.sharding.NamedSharding(cohort.client_mesh(), jax.sharding.PartitionSpec("clients"))
    placed = hosts.put(np.arange(6, dtype=np.int64), split)
    return {
        "from_first": given["me"],
        "together": hosts.together(lambda: me),
        "any_of": [hosts.any_of(me == 1), hosts.any_of(False)],
        "first_fails": told(hosts.from_first, lambda: fail_on(0)),
        "other_fails": told(hosts.together, lambda: fail_on(1)),
        "bug": told(hosts.together, lambda: bug_on(1)),
        "own_part": [np.asarray(x.data).tolist() for x in placed.addressable_shards],
    }


def shares():
    """Clients folded over all devices, of which processes have different numbers."""
    n = 11
    mesh = cohort.client_mesh()

    def fold(length):
        return cohort.fold_clients(
            lambda width, _, inputs: (inputs, inputs * 2),
            lambda acc, sent: acc + sent.sum(),
            jnp.int32(0),
            (),
            jnp.arange(n, dtype=jnp.int32),
            length,
            widths=(4,),
            chunk=2,
            mesh=mesh,
        )

    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    total, kept = jax.jit(fold, out_shardings=whole)(np.full(n, 3, np.int32))
    return [mesh.size, int(total), np.asarray(kept).tolist()]


def segment(folder):
    """Histories of a segment, of which each process reads a part."""
    split = leave_one_out(synthetic(200, 90, mean_interactions=30), n_candidates=0)
    if hosts.is_first():
        write_split(folder / "store", split)
    hosts.any_of(False)  # until it is there
    store = open_store(folder / "store")
    read = []

    class Watched:
        offsets = store.offsets

        def gather(self, clients):
            read.append(len(clients))
            return store.gather(clients)

    drawn = np.random.default_rng(0).permutation(200)[:120].reshape(2, 60).astype(np.int32)
    ones = np.ones((2, 60), np.float32)
    cohorts = Cohort(drawn, ones > 0, ones, ones, np.zeros((2, 60), np.int32))
    n = int(np.diff(store.offsets)[drawn].sum())
    sizes = Plan(2, 130, n + 7, "host", 0, 0, 0, 0, 0)
    everywhere = jax.sharding.NamedSharding(cohort.client_mesh(), jax.sharding.PartitionSpec())
    made = Segments(Watched(), sizes, lambda first: cohorts, None, everywhere).make(0, 2)
    item = np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(made.data.item))
    offset, expected = store.gather(made.clients)
    return {
        "whole": [
            np.array_equal(item[:n], expected),
            np.array_equal(np.asarray(made.data.offset)[: len(offset)], offset),
        ],
        "read": sum(read),
        "clients": len(made.clients),
    }


def everything(me, folder, nowhere):
    found = {"nowhere": nowhere, "exchanges": exchanges(me), "shares": shares()}
    found["segment"] = segment(folder)
    found["buffered"] = run(None, BUFFERED).rounds
    result = run(folder / "whole")
    found["summary"], found["rounds"] = result.summary, result.rounds
    found["ranks"] = result.ranks.tolist()
    if hosts.is_first():
        np.save(folder / "items.npy", result.state.items)
    with no_programs():
        again = run(folder / "whole")
    found["again"] = again.rounds == result.rounds
    other = synthetic(40, 60, seed=me)
    found["refused"] = {
        "store": told_of_stores(me, folder),
        "spec": told(run, folder / "refused", SPEC.replace(client_lr=0.5 + me)),
        "rounds": told(run, folder / "refused", SPEC.replace(rounds=8 + me)),
        "data": told(run, None, interactions=other),
        "options": told(run, folder / "refused", checkpoint_every=2 + me),
        "devices": told(run, None, devices=2),
        "folder": told(run, folder / "whole", SPEC.replace(seed=5)),
        "group": told(run, None, specs=[SPEC, SPEC.replace(seed=1)]),
        "mesh": told(
            run_group, [SPEC], mesh=jax.sharding.Mesh(np.array(jax.devices()[:1]), ("clients",))
        ),
    }
    asked = iter([False, me == 1])
    found["stopped"] = told(run, folder / "stopped", stop=lambda: next(asked))
    (folder / f"{me}.json").write_text(json.dumps(found))
    asked = iter([False, False])

    def stop():
        if next(asked, True) and me == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    try:
        run(folder / "killed", stop=stop)
    except LostError as e:
        print(e, file=sys.stderr)
        hosts.leave(75)


def silent(me, folder):
    """The second falls silent while the first waits for it."""
    del folder
    hosts.any_of(False)
    if me == 1:
        print("silent", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    hosts.any_of(False)


def headless(me, folder):
    """The first one is killed while the second waits for it."""
    del folder
    hosts.any_of(False)
    if me == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        hosts.any_of(False)
    except LostError as e:
        print(e, file=sys.stderr)
        hosts.leave(75)


if __name__ == "__main__":
    what, me, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    if what in ("silent", "headless"):
        hosts.start(f"127.0.0.1:{port}", 2, me, heartbeat_timeout_s=2)
        {"silent": silent, "headless": headless}[what](me, folder)
    else:
        jax.config.update("jax_num_cpu_devices", 1 + me)
        nowhere = told(hosts.start, process_id=me)
        hosts.start(f"127.0.0.1:{port}", 2, me, heartbeat_timeout_s=20)
        everything(me, folder, nowhere)
