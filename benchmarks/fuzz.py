"""Damaged payloads: whatever bytes arrive, the answer is a payload or a `WireError`.

    python -m benchmarks.fuzz --cases=200000

Takes real payloads of every registered codec, truncates, mutates, splices and replaces them, in
half of the cases with a checksum that fits, and reads them. Anything but a payload or a WireError,
and any allocation beyond a small multiple of what arrived, is a failure and shows the bytes.
"""

import logging
import tracemalloc
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from fedras_jax import registry, wire
from fedras_jax.errors import WireError
from fedras_jax.types import Codec, Context, ItemDelta, Sizes

CASES = flags.DEFINE_integer("cases", 200_000, "Damaged payloads, over all codecs.")
SEED = 0

# Settings whose bytes have another form than the codec's defaults.
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("actions", {"index": "items"}),
    ("actions", {"labels": "entropy", "dtype": "float16"}),
    ("directional", {"labels": "entropy"}),
    ("directional", {"rank": 3}),
    ("product", {"labels": "entropy"}),
    ("residual", {"labels": "entropy"}),
    ("quantized", {"scale": "payload"}),
    ("quantized", {"scale": "payload", "codes": "entropy"}),
    ("sign", {"scale": "payload"}),
    ("ternary", {"scale": "payload"}),
    ("transform", {"rank": 4}),
    ("dense", {"dtype": "bfloat16"}),
)

SIZES = Sizes(items=300, dim=8)
WIDTH = 64
# Bytes a reader may hold per byte of payload (a bit takes a byte while it is read, words take
# four or eight), and whatever the table's size.
MEMORY_FACTOR, MEMORY_FLOOR = 256, 1 << 20


def damage(random: np.random.Generator, raw: bytes, other: bytes) -> bytes:
    """One damaged form of a payload."""
    data = bytearray(raw)
    kind = random.integers(6)
    if kind == 0:
        data = data[: random.integers(len(data) + 1)]
    elif kind == 1:
        for at in random.integers(len(data), size=random.integers(1, 5)):
            data[at] ^= 1 << random.integers(8)
    elif kind == 2:  # the header lies
        at = random.integers(min(wire.HEADER_BYTES, len(data)))
        data[at] = random.integers(256)
    elif kind == 3:
        cut = random.integers(min(len(data), len(other)) + 1)
        data = data[:cut] + bytearray(other)[cut:]
    elif kind == 4:
        data = data + bytearray(random.bytes(int(random.integers(1, 40))))
    else:
        body = random.bytes(int(random.integers(0, 200)))
        data = data[: wire.HEADER_BYTES] + bytearray(body)
    if random.random() < 0.5 and len(data) >= wire.HEADER_BYTES:
        end = wire.HEADER.size
        check = zlib.crc32(data[wire.HEADER_BYTES :], zlib.crc32(data[:end]))
        data[end : wire.HEADER_BYTES] = wire.CHECK.pack(check)
    return bytes(data)


def fuzz(codec: Codec, sizes: Sizes, raws: list[bytes], *, cases: int, seed: int) -> dict[str, int]:
    """Reads `cases` damaged payloads.

    Returns:
      How many were 'refused' and how many were 'read', as a payload that could be.

    Raises:
      RuntimeError: a case did something else; the message holds its bytes.
    """
    random = np.random.default_rng(seed)
    told = {"refused": 0, "read": 0}
    for case in range(cases):
        raw = damage(random, *(raws[i] for i in random.integers(len(raws), size=2)))
        watch = case % 50 == 0  # tracing is slow
        if watch:
            tracemalloc.start()
        try:
            wire.unpack(codec, sizes, raw)
            told["read"] += 1
        except WireError:
            told["refused"] += 1
        except Exception as e:
            raise RuntimeError(f"{codec.name}, case {case}: {e!r} for {raw.hex()}") from e
        if watch:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            if peak > MEMORY_FACTOR * len(raw) + MEMORY_FLOOR:
                raise RuntimeError(f"{codec.name}, case {case}: {peak} bytes for {raw.hex()}")
    return told


def real_payloads(codec: Codec, seed: int) -> list[bytes]:
    """Payloads of a few deltas, from empty to everything touched."""
    random = np.random.default_rng(seed)
    ctx = Context(SIZES, jax.random.key(seed))

    @jax.jit
    def encode(delta):
        prepared = codec.prepare(ctx, ctx.key, delta)
        k = jnp.int32(codec.max_actions)
        return codec.encode(ctx, ctx.key, delta, prepared, k, codec.init(SIZES))[0]

    raws = []
    for n in (0, 1, 5, 30, WIDTH, SIZES.items):
        width = max(n, WIDTH)
        mask = np.arange(width) < n
        item = np.where(mask, random.permutation(SIZES.items)[:width], SIZES.items)
        row = random.normal(size=(width, SIZES.dim)) * mask[:, None]
        delta = ItemDelta(
            jnp.asarray(item, jnp.int32), jnp.asarray(row, jnp.float32), jnp.asarray(mask)
        )
        raws.append(wire.pack(codec, SIZES, jax.tree.map(np.asarray, encode(delta))))
    return raws


def main(argv: list[str]) -> None:
    del argv
    logging.getLogger().setLevel(logging.WARNING)
    forms = [*((name, {}) for name in sorted(registry.CODECS)), *FORMS]
    total = {"refused": 0, "read": 0}
    for name, args in forms:
        codec = registry.build("codec", registry.CODECS, name, **args)
        raws = real_payloads(codec, SEED)
        told = fuzz(codec, SIZES, raws, cases=-(-CASES.value // len(forms)), seed=SEED)
        form = " ".join([name, *(str(value) for value in args.values())])
        print(f"  {form:<28} refused {told['refused']:>7,}  read {told['read']:>7,}", flush=True)
        total = {key: total[key] + told[key] for key in total}
    print(f"{sum(total.values()):,} damaged payloads: {total}; none did anything else")


if __name__ == "__main__":
    app.run(main)
