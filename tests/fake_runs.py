"""Runs as they lie on disk, without running them."""

import numpy as np

from fedras_jax import metrics, network, results
from fedras_jax.spec import Spec

SPEC = Spec(codec="dense", rounds=8, eval_every=2, cohort_size=6)


def rounds_of(spec, ranks, n=None):
    """Columns of rounds.parquet: quality grows evenly to that of the final ranks."""
    n = spec.rounds if n is None else n
    rounds = np.arange(1, n + 1)
    timed = spec.profile != "ideal"
    columns = {"round": rounds, "clients": np.full(n, spec.cohort_size)}
    columns |= {"loss": 1 / rounds, "n_actions": np.full(n, 4.0)}
    up = 1000.0 if spec.codec == "dense" else 10.0
    columns |= {"up_bytes": np.full(n, up * spec.cohort_size)}
    columns |= {"down_bytes": np.full(n, 1000.0 * spec.cohort_size)}
    seconds = np.full(n, timed * up / 100)
    columns |= {"seconds": seconds, "clock_s": np.cumsum(seconds)}
    columns |= {f"{p}_s": seconds / len(network.PHASES) for p in network.PHASES}
    for name, value in metrics.summarise(ranks).items():
        at = rounds % spec.eval_every == 0
        columns[name] = [value * r / spec.rounds if at[r - 1] else None for r in rounds]
    return columns


def write_run(folder, spec, ranks, *, status="finished", message="loss nan", log=None, data=None):
    """A run's folder; an unfinished or diverged one has half of its rounds.

    Args:
      folder: to make.
      spec: of the run.
      ranks: final ranks.
      status: as `results.load` has it.
      message: of a run that diverged.
      log: columns of clients.parquet.
      data: digests of what it is of.
    """
    ranks = np.asarray(ranks, np.int32)
    results.claim(folder, spec, data or {})
    done = status == "finished"
    rounds = rounds_of(spec, ranks, None if done else spec.rounds // 2)
    results.write_table(folder / "rounds.parquet", rounds)
    if status == "diverged":
        results.write_json(
            folder / "diverged.json", {"round": spec.rounds // 2, "message": message}
        )
    if not done:
        return
    client = np.arange(ranks.size, dtype=np.int32)
    results.write_table(folder / "ranks.parquet", {"client": client, "rank": ranks})
    if log is not None:
        results.write_table(folder / "clients.parquet", log)
    up, down = (rounds[f"{way}_bytes"].sum() / rounds["clients"].sum() for way in ("up", "down"))
    summary = {
        "spec": spec.to_json(),
        "metrics": metrics.summarise(ranks),
        "payload": {
            **{"up_bytes_mean": float(up), "down_bytes_mean": float(down)},
            **{"up_reduction": 1 - float(up) / 1000, "total_reduction": 0.5},
        },
        "clock": {"seconds": float(rounds["clock_s"][-1])}
        | {f"{p}_s": float(rounds[f"{p}_s"].sum()) for p in network.PHASES},
        "clients": {"total": ranks.size, "not_evaluated": int((ranks == 0).sum())},
        "speed": {"clients_per_s": 100.0},
        "env": {"device": "cpu", "python": "3.11"},
        "state_digest": "0",
    }
    results.write_json(folder / "summary.json", summary)


def ranks_of(seed, n=200, lift=0):
    """Ranks of n clients; with `lift` the first clients are that much further up."""
    ranks = np.random.default_rng(seed).integers(1, 40, n)
    ranks[0] = 0  # not evaluated
    ranks[1:40] = np.maximum(ranks[1:40] - lift, 1)
    return ranks.astype(np.int32)


def write_sweep(root):
    """Dense and two codecs over two seeds, one of them logged, one diverged, one unfinished."""
    codecs = {"k4": {"codec": "directional", "codec_args": {"k": 4}}}
    codecs["k16"] = {"codec": "directional", "codec_args": {"k": 16}, "client_lr": 0.25}
    timed = SPEC.replace(profile="three_tiers")
    for seed in (0, 1):
        write_run(root / "dense" / f"seed{seed}", timed.replace(seed=seed), ranks_of(seed))
        for name, fields in codecs.items():
            spec = timed.replace(seed=seed, **fields)
            log = {"round": np.ones(200, np.int32), "client": np.arange(200, dtype=np.int32)}
            log |= {"n_actions": np.full(200, 4), "up_bytes": np.linspace(1, 200, 200)}
            log |= {"down_bytes": np.full(200, 1e3), "seconds": np.linspace(0.1, 9, 200)}
            write_run(root / name / f"seed{seed}", spec, ranks_of(seed, lift=5), log=log)
    wild = timed.replace(client_lr=9.0)
    write_run(root / "wild", wild, ranks_of(0), status="diverged", message="<b>nan</b>")
    late = timed.replace(codec="sign")
    write_run(root / "late", late, ranks_of(0), status="unfinished")
    return root
