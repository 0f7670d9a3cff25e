"""What a run would have taken on other devices and networks, without running it again.

Where the server waits for everyone and budgets look neither at speeds nor at the clock, training
depends on devices and networks by who is there and who fails alone, and both are drawn by address
(`rng`), whatever the speeds. So two runs that differ in speeds alone train the same, to the last
bit, and the tables of one hold all that the other one's clock needs: whom each round drew, on how
many examples each trained, and the sizes of what was sent and published. Jitter, failures and their
moments are drawn again, at the same addresses. What a client fetches depends on when failures
stopped it from fetching before, so rounds are replayed in their order.

A budget that grants all actions to whoever has the time for them does look at speeds. Where the
replay shows that everyone has the time, it trains as no budget at all does, and is re-timed from
that; where somebody has not, it is not.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fedras_jax import accounting, assembly, cohort, network, registry, results, rng
from fedras_jax.errors import FedrasError, ResultsError
from fedras_jax.publish import Ledger
from fedras_jax.spec import Spec
from fedras_jax.types import Array, Codec, Outcome, Outlook, Profile, Sizes

Rows = list[dict[str, Any]]

# Budgets that see neither speeds nor the clock; what is not named here counts as seeing them.
BLIND = ("fixed", "by_client", "schedule", "distortion", "joint")
# Budgets that grant the most actions that there is time for, and look at nothing but time.
PATIENT = ("bandwidth", "round_time")
# What of a profile training depends on.
FATE = ("availability", "session", "failure")

# Re-timed on its own devices a run gives its own seconds, but for float32's rounding.
_ROUNDING = 1e-4
# Sizes in a summary that `accounting.payload` gives.
_WHOLE = ("table", "shared")


class Run(NamedTuple):
    """What a finished run's folder holds.

    Attributes:
      spec: of the run.
      summary: `summary.json`.
      rows: a dict a round, as in `rounds.parquet`.
      clients: the columns of `clients.parquet`.
      ranks: the columns of `ranks.parquet`.
      data: digests of what it is of, `data.json`.
    """

    spec: Spec
    summary: dict[str, Any]
    rows: Rows
    clients: Mapping[str, np.ndarray]
    ranks: Mapping[str, np.ndarray]
    data: Mapping[str, str]


def obstacle(spec: Spec) -> str | None:
    """Why training may depend on how fast devices and networks are; None where it does not."""
    if spec.profile not in registry.PROFILES:
        return f"profile {spec.profile} is no preset"
    if spec.arrival != "synchronous":
        return f"arrival {spec.arrival} looks at the clock"
    if spec.budget not in BLIND:
        return f"budget {spec.budget} looks at speeds or at the clock"
    if spec.transforms:
        return "transforms may add rows, whose encoding takes time"
    return None


def exact(done: Spec, wanted: Spec) -> bool:
    """Whether a run of one experiment tells all of another one's.

    They differ in nothing but their presets' speeds, on which training does not depend.
    """
    if obstacle(done) or obstacle(wanted):
        return False
    one, other = done.to_json(), wanted.to_json()
    same = all(one[name] == other[name] for name in one if name not in ("profile", "profile_args"))
    return same and _fate(done) == _fate(wanted)


def may_tell(done: Spec, wanted: Spec) -> bool:
    """Whether a run of one experiment tells all of another one's, if everyone has the time.

    As `exact`, and so is what has no budget of what has a `PATIENT` one.
    """
    if wanted.budget not in PATIENT:
        return exact(done, wanted)
    numbered = all(
        field.dtype not in ("entropy", "symbols", "levels")
        for field in _codec(done).fields(Sizes(2, done.dim))
    )  # else a budget sees a bound, and not the size
    return numbered and exact(done, wanted.replace(budget="fixed", budget_args={}))


def _codec(spec: Spec) -> Codec:
    return registry.build("codec", registry.CODECS, spec.codec, **spec.codec_args)


def _fate(spec: Spec) -> list[list[float]]:
    """Who is there and who fails, of some clients: in presets all are alike in that."""
    profile = assembly.profile_of(spec, 64)
    return [np.asarray(getattr(profile, name)).tolist() for name in FATE]


def source(
    spec: Spec, folders: Iterable[Path], data: Mapping[str, str] | None = None
) -> Run | None:
    """The first of some runs whose re-timing is a run of this Spec; None if there is none.

    One that has itself been re-timed is none, nor one whose tables are of another version, nor one
    whose own seconds its tables do not give.

    Args:
      spec: the experiment.
      folders: of the runs.
      data: digests of what they must be of; of anything when None.
    """
    for folder in folders:
        try:
            run = _read(folder, spec)
            if run is not None and data in (None, run.data) and _reproduced(run):
                if spec.budget in PATIENT:
                    retime(run, spec)
                return run
        except (FedrasError, KeyError, TypeError, ValueError, IndexError):
            continue
    return None


def _read(folder: Path, spec: Spec) -> Run | None:
    if not (folder / "summary.json").exists() or not (folder / "clients.parquet").exists():
        return None
    summary = results.read_summary(folder)
    done = Spec.from_json(summary["spec"])
    if "retimed" in summary or not may_tell(done, spec):
        return None
    if results.read_finished(folder, done) is None:
        return None
    log = results.read_log(folder, "rounds")
    clients = results.read_columns(folder / "clients.parquet")
    if log is None or not {"examples", "payload_bytes"} <= clients.keys():
        return None
    ranks = results.read_columns(folder / "ranks.parquet")
    data = results.read_data(folder)
    return Run(done, summary, results.rows_in(log), clients, ranks, data)


def _reproduced(run: Run) -> bool:
    rows, clients = retime(run, run.spec)
    found, own = (np.array([row["seconds"] for row in x]) for x in (rows, run.rows))
    return np.allclose(found, own, rtol=_ROUNDING) and np.allclose(
        clients["seconds"], run.clients["seconds"], rtol=_ROUNDING
    )


def write(run: Run, spec: Spec, folder: Path) -> None:
    """The folder that a run of this Spec would have left, but for its checkpoints.

    Its summary says under `retimed` on which devices it was run; speed and environment are of that
    run.

    Args:
      run: of an experiment from which this one is `exact`.
      spec: the experiment.
      folder: of nothing else.

    Raises:
      ResultsError: the folder belongs to another Spec, or cannot be written.
    """
    rows, clients = retime(run, spec)
    results.claim(folder, spec, run.data)
    for name in ("rounds", "clients"):
        results.Log(folder, name).discard()  # of a run that was not finished
    (folder / "diverged.json").unlink(missing_ok=True)
    results.write_table(folder / "rounds.parquet", results.columns_of(rows))
    results.write_table(folder / "clients.parquet", clients)
    results.write_table(folder / "ranks.parquet", run.ranks)
    payload = run.summary["payload"]
    summary = {k: v for k, v in run.summary.items() if k != "state_digest"} | {
        "spec": spec.to_json(),
        "payload": payload | accounting.traffic(payload["dense_bytes"], rows),
        "clock": accounting.clock(rows),
        "retimed": {"profile": run.spec.profile, "profile_args": dict(run.spec.profile_args)},
    }
    results.write_json(folder / "summary.json", summary)


def retime(run: Run, spec: Spec) -> tuple[Rows, dict[str, np.ndarray]]:
    """The rounds and clients of a run, with the seconds and bytes of other devices and networks.

    Args:
      run: of an experiment from which this one is `exact`.
      spec: the experiment.

    Returns:
      A dict for each round, and columns by client and round: as `accounting.Account.add`, to
      float32's rounding (a byte, in what a failing client had sent).

    Raises:
      ResultsError: other clients fail than those that failed in the run, or one has no time for
        all its actions.
    """
    profile = assembly.profile_of(spec, run.ranks["client"].size)
    assert isinstance(profile, Profile)  # of a preset
    happened, place = _happened(run)
    bits = {name: round(8 * run.summary["payload"][f"{name}_bytes"]) for name in _WHOLE}
    numbers = (spec.local_epochs, spec.encode_work, bits["table"], bits["shared"])
    outcome, synced, before = jax.tree.map(
        np.asarray,
        _replay(np.uint32(spec.seed), profile, happened, *map(np.float32, numbers)),
    )
    if spec.budget in PATIENT:
        _all_granted(spec, profile, happened, before)
    if not np.array_equal(outcome.finished[place], run.clients["finished"]):
        raise ResultsError("a run cannot be re-timed on devices of which others would have failed")
    down = _fetched(synced, run.rows, bits["table"], bits["shared"]) * happened.here
    up = np.zeros(down.shape)
    up[place] = run.clients["payload_bytes"]
    up = accounting.sent(up, outcome.share_up)
    down = accounting.sent(down, outcome.share_down)

    clock = 0.0
    rows = []
    for r, row in enumerate(run.rows):
        # The first of the slowest; who had nothing to train on took no time.
        last = int(np.argmax(outcome.seconds[r]))
        seconds = float(outcome.seconds[r, last])
        clock += seconds
        spent = zip(network.PHASES, outcome.phases[r, last], strict=True)
        rows.append(
            {
                **row,
                "up_bytes": float(up[r].sum()),
                "down_bytes": float(down[r].sum()),
                "seconds": seconds,
                "clock_s": clock,
                **{f"{phase}_s": float(x) for phase, x in spent},
            }
        )
    told = {"up_bytes": up, "down_bytes": down, "seconds": outcome.seconds}
    return rows, {**run.clients, **{name: x[place] for name, x in told.items()}}


@struct.dataclass
class _Happened:
    """What rounds did that does not depend on speeds; arrays of R rounds by C slots.

    Attributes:
      round: i32[R], from 0.
      client: i32[R, C] global ids. here: bool[R, C], False in empty slots.
      examples: f32[R, C]. encoded: f32[R, C], rows times actions that encoding took the time of.
      up: f32[R, C], bits of whole payloads.
      published: f32[R], bits.
    """

    round: Any
    client: Any
    here: Any
    examples: Any
    encoded: Any
    up: Any
    published: Any


def _happened(run: Run) -> tuple[_Happened, tuple[np.ndarray, np.ndarray]]:
    """A run's rounds as arrays, and where in them each row of its clients is."""
    spec, rows, clients = run.spec, run.rows, run.clients
    begins = np.cumsum([0, *(row["clients"] for row in rows)])
    of = clients["round"] - 1
    place = of, np.arange(of.size) - begins[of]
    shape = len(rows), max(1, *(row["clients"] for row in rows))

    def by_round(values, dtype) -> np.ndarray:
        out = np.zeros(shape, dtype)
        out[place] = values
        return out

    # Without transforms an example is a row; lossless codecs cluster none.
    n_rows = clients["examples"] * (not _codec(spec).lossless)
    encoded = network.clustered(jnp.asarray(n_rows), jnp.asarray(clients["n_actions"]))
    return (
        _Happened(
            round=np.arange(len(rows), dtype=np.int32),
            client=by_round(clients["client"], np.int32),
            here=by_round(True, bool),
            examples=by_round(clients["examples"], np.float32),
            encoded=by_round(encoded, np.float32),
            up=by_round(8 * clients["payload_bytes"], np.float32),
            published=np.array([8 * row["published_bytes"] for row in rows], np.float32),
        ),
        place,
    )


def _all_granted(spec: Spec, profile: Profile, happened: _Happened, before: np.ndarray) -> None:
    """That a budget grants everybody all actions, were each number of them as large as all are.

    Args:
      spec: with the budget.
      profile: the clients' devices and networks.
      happened: what they did.
      before: f32[R, C], what their rounds took before encoding, as they knew it.

    Raises:
      ResultsError: it does not.
    """
    budget = registry.build("budget", registry.BUDGETS, spec.budget, **spec.budget_args)
    most = _codec(spec).max_actions

    def granted(round_, client, examples, up, seconds):
        known = network.pace(jax.tree.map(lambda x: jnp.asarray(x)[client], profile))
        outlook = Outlook(
            round=round_,
            client=client,
            error=None,
            bits=jnp.full(most + 1, up),
            seconds=seconds,
            encode_s=spec.encode_work
            * network.clustered(examples, jnp.arange(most + 1))
            / known.compute,
            pace=known,
        )
        return budget.allocate(outlook, budget.init())

    at = happened.here & (happened.examples > 0)
    rounds = np.broadcast_to(happened.round[:, None], at.shape)
    inputs = (rounds, happened.client, happened.examples, happened.up, before)
    k = jax.jit(functools.partial(cohort.map_at_once, granted))(*(x[at] for x in inputs))
    short = int((np.asarray(k) < most).sum())
    if short:
        raise ResultsError(f"{short} times {spec.budget} would not have granted all {most} actions")


@jax.jit
def _replay(
    seed: Array,
    profile: Profile,
    happened: _Happened,
    epochs: Array,
    encode_work: Array,
    table: Array,
    shared: Array,
) -> tuple[Outcome, Array, Array]:
    """How a round ends for every client, whose public table it held, and seconds: [R, C].

    The seconds are those of its round before encoding, as it knew them. All as in a round of
    training (`rounds`), without the training.

    Args:
      seed: of the run.
      profile: the clients' devices and networks.
      happened: what they did.
      epochs, encode_work: f32[], as in a Spec.
      table, shared: f32[], bits of the whole public table and of the shared parameters.
    """

    def one(inputs):
        round_, client, examples, encoded, up, owed, device = inputs
        of_pace, of_fate = rng.addresses(seed, network.STREAMS, round_, client)
        pace, draws = network.chance(of_pace, of_fate, device)
        known = network.pace(device)
        down = jnp.where(owed > 0, owed + shared, 0)
        phases = network.phases(pace, down, examples * epochs, encode_work * encoded, up)
        before = network.phases(known, down, examples * epochs, jnp.zeros(()), jnp.zeros(()))
        outcome = network.outcome(draws, device.failure, phases)
        # Who has nothing to train on fetches the table, and that is all.
        zero, one = jnp.zeros(()), jnp.ones(())
        idle = Outcome(zero, jnp.zeros_like(phases), one > 0, one, one)
        ended = jax.tree.map(lambda x, y: jnp.where(examples > 0, x, y), outcome, idle)
        return ended, before.sum()

    def round_(state, x: _Happened):
        owed, last_sync = state
        device, due, synced = jax.tree.map(lambda a: a[x.client], (profile, owed, last_sync))
        slots = jnp.full_like(x.client, x.round)
        inputs = (slots, x.client, x.examples, x.encoded, x.up, due, device)
        outcome, before = cohort.map_clients(one, inputs, chunk=x.client.shape[0])
        holds = jnp.where(x.here & (outcome.share_down >= 1), x.client, owed.shape[0])
        owed = jnp.minimum(owed.at[holds].set(0, mode="drop") + x.published, table)
        last_sync = last_sync.at[holds].set(x.round, mode="drop")
        return (owed, last_sync), (outcome, jnp.where(x.here, synced, x.round), before)

    profile = jax.tree.map(jnp.asarray, profile)
    n_clients = profile.compute.shape[0]
    start = jnp.zeros(n_clients), jnp.zeros(n_clients, jnp.int32)
    return jax.lax.scan(round_, start, happened)[1]


def _fetched(synced: np.ndarray, rows: Rows, table: int, shared: int) -> np.ndarray:
    """Bytes that clients have to download, [R, C]; whole bits as the server's ledger has them."""
    ledger = Ledger((), table, shared // 32)
    down = np.zeros(synced.shape)
    for r, row in enumerate(rows):
        down[r] = ledger.fetch(synced[r]) / 8
        ledger.total.append(ledger.total[-1] + round(8 * row["published_bytes"]))
    return down
