"""What the server can infer from payloads, with and without pseudo-items.

    python -m experiments.inference --rounds=300 --shares=0,1,2 --clients=40

Trains with dense payloads for `--rounds` rounds, then takes payloads of `--clients` clients, as the
wire would carry them, and attacks them in three ways:

  touched    the sent items are what the client trained on, but for those whose rows are next to
             zero, which a server drops: the share of the others that it did train on (precision)
  history    rows of positives move against those of negatives, and are fewer: items are ranked
             along the payload's main direction, from the side with fewer rows; AUC of the client's
             history against the other sent items (0.5: no better than guessing); and the same if
             the server knows the side
  repeats    negatives and pseudo-items are drawn anew each round, and the history is not: of the
             items that are in all of a client's `--payloads` payloads, the share that is of its
             history (precision), and of the history the share that is among them (recall)

Payloads of a client are of successive rounds with the model as it was trained, so that what is
drawn differs and nothing else. The first two attacks see the first one alone.

Prints a row an arm, share and kind of pseudo-rows, with the bytes that a payload takes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app
from absl import flags as absl_flags

from experiments import arms, flags
from fedras_jax import report
from fedras_jax.errors import SpecError
from fedras_jax.transforms import PSEUDO_ROWS

# A row whose norm is below this part of the payload's largest says that nothing was trained.
NEARLY_ZERO = 1e-3

# Clients whose payloads are made together.
AT_ONCE = 8

absl_flags.adopt_module_key_flags(flags)  # so that --help shows them
absl_flags.adopt_module_key_flags(arms)

SHARES = absl_flags.DEFINE_list("shares", ["0", "0.5", "1", "2"], "Pseudo-items a touched item.")
ROWS = absl_flags.DEFINE_list(
    "rows", list(PSEUDO_ROWS), "Rows of pseudo-items: mixed from the client's own, zero, or both."
)
PAYLOADS = absl_flags.DEFINE_integer(
    "payloads", 3, "Payloads that the server gets of each client, one a round."
)
CLIENTS = absl_flags.DEFINE_integer("clients", 200, "Clients whose payloads are attacked.")

COLUMNS = (
    # (key, heading, format)
    ("arm", "arm", "{}"),
    ("share", "pseudo-items", "{:g}"),
    ("rows", "their rows", "{}"),
    ("bytes", "up B/client", "{:,.0f}"),
    ("touched", "touched, precision", "{:.3f}"),
    ("history", "history, AUC", "{:.3f}"),
    ("known_side", "side known", "{:.3f}"),
    ("repeats_precision", "repeats, precision", "{:.3f}"),
    ("repeats_recall", "repeats, recall", "{:.3f}"),
)


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive scores above another, ties counting half."""
    from scipy.stats import rankdata

    n, n_positive = positive.size, int(positive.sum())
    if n_positive in (0, n):
        return float("nan")
    above = rankdata(score)[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * (n - n_positive)))


def minority_score(rows: np.ndarray) -> np.ndarray:
    """Coordinates along the rows' main direction, positive on the side with fewer rows.

    Zeros where both sides have as many: it is not known then which is which.
    """
    rows = rows.astype(np.float64)
    along = rows @ np.linalg.eigh(rows.T @ rows)[1][:, -1]
    return along * np.sign(np.sum(along < 0) - np.sum(along > 0))


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.no_arguments(argv)
        arms.refuse()
        flags.refuse(("budget", "budget_arg"), "payloads hold as many actions as codecs do")
        kept = ("checkpoint_every", "tensorboard", "log_clients")
        flags.refuse(kept, "nothing is kept of the run")
        flags.refuse(["seeds"], "one run is attacked, that of --seed")
        base = flags.spec_from_flags().replace(codec="dense", codec_args={})
        names = arms.ARM.value or ["rows", "actions:k=16", "directional:k=16"]
        specs = {name: arms.parse(base, name) for name in names}
        for name in names:
            if arms.fields_of(name):
                raise SpecError(f"arm {name!r}: here an arm is a codec and its settings alone")
        if base.transforms or base.model != "mf":
            raise SpecError("payloads are attacked for --model=mf, with pseudo-items by --shares")
        try:
            shares = [float(text) for text in SHARES.value]
        except ValueError as e:
            raise SpecError(f"--shares={','.join(SHARES.value)}: expected numbers") from e
        if min(shares) < 0 or CLIENTS.value < 1 or PAYLOADS.value < 1:
            raise SpecError("--shares must not be negative; --clients and --payloads at least 1")
        if not ROWS.value or not set(ROWS.value) <= set(PSEUDO_ROWS):
            raise SpecError(f"--rows={','.join(ROWS.value)}: choose of {', '.join(PSEUDO_ROWS)}")
        kinds = [(s, rows) for s in shares for rows in (ROWS.value if s else ["none"])]
        mesh = flags.start_devices()
        rows = attack(base, specs, kinds, mesh)
    print(
        f"{base.dataset}: payloads of {CLIENTS.value} clients after {base.rounds} rounds; repeats: "
        f"items in all {PAYLOADS.value} of a client\n"
    )
    print(report.render(rows, COLUMNS))
    if flags.WORKDIR.value is not None:
        workdir = Path(flags.WORKDIR.value)
        workdir.mkdir(parents=True, exist_ok=True)
        report.write_csv(workdir / "inference.csv", rows)


class Seen(NamedTuple):
    """What the server sees of a payload, and what it would like to know.

    Attributes:
      item: i32[n], those sent whose decoded rows are not next to zero. row: f32[n, D], these.
      touched: i32[m], what the client trained on.
      size: bytes.
    """

    item: np.ndarray
    row: np.ndarray
    touched: np.ndarray
    size: float


def seen(size, item, row, mask, touched) -> Seen:
    """`Seen` of a payload of so many bytes, once decoded."""
    item, row = item[mask], row[mask]
    norm = np.linalg.norm(row, axis=1)
    kept = norm > NEARLY_ZERO * norm.max(initial=0)
    return Seen(item[kept], row[kept], touched, float(size))


def _share(item: np.ndarray, among: np.ndarray) -> float:
    """The share of items that is among others; NaN of none."""
    return float(np.isin(item, among).mean()) if item.size else float("nan")


def attack(base, specs, kinds, mesh):
    """A dict an arm and kind: (share of pseudo-items, their rows); means over clients."""
    import jax
    import jax.numpy as jnp

    from fedras_jax import bits, cohort, examples, registry, rng, transforms
    from fedras_jax.assembly import assemble, local_training
    from fedras_jax.run import run
    from fedras_jax.types import Context, Sizes, Update

    trained = run(
        base,
        data_dir=flags.DATA_DIR.value,
        mesh=mesh,
        chunk_size=flags.CHUNK_SIZE.value,
        progress=flags.PROGRESS.value,
    )
    split, state = trained.split, jax.device_get(trained.state)
    model, _, data = assemble(base, split)
    training, sizes = local_training(base, model), Sizes(split.n_items, base.dim)
    lengths = examples.count(np.diff(split.offsets), split.n_items, base.negatives)
    width, some = int(lengths.max()), np.flatnonzero(lengths)
    who = np.random.default_rng(base.seed).permutation(some)[: CLIENTS.value].astype(np.int32)

    def payloads_of(codec, chain) -> Iterator[tuple[int, list[Seen]]]:
        """Every client with its payloads, one a round."""

        def one(client, round_):
            ctx = Context(sizes, rng.address(base.seed, rng.Stream.SHARED, round_))

            def key(stream):
                return rng.address(base.seed, stream, round_, client)

            batch = examples.draw(
                examples.orders(key(rng.Stream.NEGATIVES), key(rng.Stream.SHUFFLE)),
                data,
                client,
                jnp.bool_(True),
                n_items=split.n_items,
                negatives=base.negatives,
                width=width,
            )
            table = jnp.asarray(state.public)[batch.item]
            private = jax.tree.map(lambda x: jnp.asarray(x)[client], state.clients)
            within = {} if codec.basis is None else {"basis": codec.basis(ctx)}
            result = training(private, state.shared, table, batch.label, batch.mask, **within)
            update = Update(examples.item_delta(batch, result.rows), ())
            for transform in chain:
                update = transform.apply(ctx, key(rng.Stream.TRANSFORM), jnp.int32(0), update)
            prepared = codec.prepare(ctx, key(rng.Stream.CODEC), update.items)
            payload, _ = codec.encode(
                ctx,
                key(rng.Stream.CODEC),
                update.items,
                prepared,
                jnp.int32(codec.max_actions),
                codec.init(sizes),
            )
            decoded = codec.decode(ctx, payload)
            return payload.counts, decoded.item, decoded.row, decoded.mask, batch.item

        in_round = jax.jit(lambda w, r: cohort.map_clients(lambda c: one(c, r), w))
        fields = codec.fields(sizes)
        rounds = range(base.rounds, base.rounds + PAYLOADS.value)
        for at in range(0, who.size, AT_ONCE):
            block = who[at : at + AT_ONCE]
            full = jnp.asarray(np.resize(block, AT_ONCE))  # the last one with some of them again
            made = [jax.device_get(in_round(full, jnp.int32(r))) for r in rounds]
            made = [(bits.payload_bits(fields, counts) / 8, *rest) for counts, *rest in made]
            for c, client in enumerate(block):
                yield client, [seen(*(x[c] for x in payload)) for payload in made]

    found = []
    for name, spec in specs.items():
        codec = registry.build("codec", registry.CODECS, spec.codec, **spec.codec_args)
        for share, rows in kinds:
            chain = [transforms.pseudo_items(share, rows=rows)] if share else []
            told = []
            for client, payloads in payloads_of(codec, chain):
                own = split.items[split.offsets[client] : split.offsets[client + 1]]
                first, *others = payloads
                repeated = first.item
                for other in others:
                    repeated = np.intersect1d(repeated, other.item)
                ranked = auc(minority_score(first.row), np.isin(first.item, own))
                told.append(
                    {
                        "bytes": first.size,
                        "touched": _share(first.item, first.touched),
                        "history": ranked,
                        "known_side": max(ranked, 1 - ranked),
                        "repeats_precision": _share(repeated, own),
                        "repeats_recall": _share(own, repeated),
                    }
                )
            means = {name: float(np.nanmean([one[name] for one in told])) for name in told[0]}
            found.append({"arm": name, "share": share, "rows": rows, **means})
    return found


if __name__ == "__main__":
    app.run(main)
