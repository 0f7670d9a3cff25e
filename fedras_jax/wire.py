"""Payloads as bytes, and back, from the codec's own field declaration.

    byte  0      version
    byte  1      form of the set of sent rows (2 bits), Rice parameter (5 bits)
    bytes 2-3    fingerprint of the codec's name and fields: the other side has the same settings
    bytes 4-5    embedding width D
    bytes 6-7    actions in use k
    bytes 8-11   items M
    bytes 12-15  sent rows n
    bytes 16-19  CRC-32 of everything else
    then         the declared fields, bit after bit, rows by ascending item, zeros at the end

Numbers are big-endian, floating-point values IEEE 754 (or bfloat16) as they are. Everything runs
on the host: simulations count bits on device (`bits.measure`), and a test holds the two together.

A payload's rows may lie in any order on device; `canonical` is the same payload with its rows in
the wire's order and nothing that does not travel, and `unpack(pack(p))` is that, bit for bit.
"""

import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedras_jax import bits, coding
from fedras_jax.errors import WireError
from fedras_jax.types import Codec, Field, Payload, Sizes

VERSION = 3
HEADER = struct.Struct(">BBHHHII")
CHECK = struct.Struct(">I")
HEADER_BYTES = HEADER.size + CHECK.size
_UINT = {16: np.uint16, 32: np.uint32}


class _Head(NamedTuple):
    version: int
    form: int
    fingerprint: int
    dim: int
    k: int
    items: int
    n: int


def canonical(codec: Codec, sizes: Sizes, payload: Payload) -> dict[str, np.ndarray]:
    """The payload's leaves as they arrive: sent rows by ascending item, unused actions zero.

    Returns:
      `item` i32[n], `mask` bool[n] (all True), `k`, where the codec has actions, and a leaf for
      each field: [n, ...] for fields by row, [K, ...] by action, [...] for those sent once.

    Raises:
      WireError: the payload does not fit the codec or the table, or is not finite.
    """
    data = {name: np.asarray(leaf) for name, leaf in payload.data.items()}
    universe = _universe(codec, sizes)
    sent = np.flatnonzero(data["mask"])
    order = sent[np.argsort(data["item"][sent], kind="stable")]
    item = data["item"][order].astype(np.int32)
    if item.size and not (item[0] >= 0 and item[-1] < universe and np.all(np.diff(item) > 0)):
        raise WireError(f"rows must be distinct and in 0 to {universe - 1}")
    k = int(data.get("k", 0))
    if not 0 <= k <= codec.max_actions:
        raise WireError(f"{k} actions, but codec {codec.name} holds at most {codec.max_actions}")
    if k > item.size:
        raise WireError(f"{k} actions for {item.size} rows")
    if codec.max_actions and item.size and not k:
        raise WireError(f"{item.size} rows and no action: codec {codec.name} sends at least one")
    out = {"item": item, "mask": np.ones(item.size, bool)}
    if "k" in data:
        out["k"] = np.asarray(k, np.int32)
    for field in codec.fields(sizes):
        if field.dtype == "set":
            continue
        leaf = data[field.name]
        if field.per in ("row", "item"):
            leaf = leaf[order]
        elif field.per == "action":
            used = np.arange(leaf.shape[0]) < k
            leaf = np.where(used.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, np.zeros_like(leaf))
        elif not item.size:
            leaf = np.zeros_like(leaf)
        if (
            field.dtype in ("label", "entropy")
            and leaf.size
            and not 0 <= leaf.min() <= leaf.max() < k
        ):
            raise WireError(f"labels {leaf.min()} to {leaf.max()}, but only {k} actions")
        if field.dtype == "symbols" and leaf.size and leaf.max() >= field.shape[0]:
            raise WireError(f"a code of {leaf.max()}, but they are below {field.shape[0]}")
        if field.dtype == "levels" and leaf.size:
            most = np.abs(leaf.astype(np.int32)).max()
            if most > bits.REACH:
                raise WireError(f"a level of {most}, but they reach {bits.REACH} at most")
        if _own_actions(field, item.size, k) and not np.array_equal(leaf, np.arange(k)):
            raise WireError("every row has an action of its own, but not in the order of items")
        if field.dtype in bits.FLOAT_BITS and not np.isfinite(leaf.astype(np.float32)).all():
            raise WireError(
                f"{field.name} is not finite: training has diverged, or its values are beyond "
                f"the range of {field.dtype}"
            )
        if field.dtype == "exponent" and np.any(leaf == bits.NOT_FINITE):
            raise WireError(
                f"{field.name} is not finite: training has diverged, or its values are beyond "
                f"the range of codec {codec.name}"
            )
        out[field.name] = leaf
    return out


def pack(codec: Codec, sizes: Sizes, payload: Payload, shared: np.ndarray | None = None) -> bytes:
    """A payload's bytes, with the model's shared parameters after it, and what a budget reports.

    Args:
      codec: whose payload it is.
      sizes: M and D.
      payload: one client's.
      shared: float32 [S], the parameters, and then the report (`Budget.report`) if there is one;
        none when None.

    Raises:
      WireError: as `canonical`.
    """
    data = canonical(codec, sizes, payload)
    n, k = data["item"].size, int(data.get("k", 0))
    if sizes.dim > 0xFFFF or sizes.items > 0xFFFFFFFF:
        raise WireError(f"a table of {sizes.items} x {sizes.dim} does not fit the header")
    form, parts = 0, []
    for field in codec.fields(sizes):
        if field.dtype == "set":
            form, part = coding.write_set(data["item"], field.shape[0])
        elif _own_actions(field, n, k):
            part = np.zeros(0, np.uint8)
            if field.per == "item":
                form, part = coding.write_set(data["item"], sizes.items)
        elif field.dtype == "entropy":
            part = coding.write_labels(data["label"].reshape(n, math.prod(field.shape[1:])), k)
        elif field.dtype == "symbols":
            flat = data[field.name].reshape(-1, 1)
            part = coding.write_labels(flat, field.shape[0]) if n else np.zeros(0, np.uint8)
        elif field.dtype == "levels":
            part = coding.write_levels(data[field.name], bits.REACH) if n else np.zeros(0, np.uint8)
        else:
            part = _write(field, data, k, sizes)
        parts.append(part)
    if shared is not None:
        if not np.isfinite(shared).all():
            raise WireError("a shared parameter is not finite: training has diverged")
        parts.append(_float_bits(np.asarray(shared, np.float32)))
    head = _Head(VERSION, form, _fingerprint(codec, sizes), sizes.dim, k, sizes.items, n)
    body = np.packbits(np.concatenate(parts)).tobytes()
    header = HEADER.pack(*head)
    return header + CHECK.pack(zlib.crc32(body, zlib.crc32(header))) + body


def unpack(
    codec: Codec, sizes: Sizes, raw: bytes, n_shared: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What `pack` was given, in `canonical` form, ready for `codec.decode`, and the shared part.

    Nothing is allocated beyond what the bytes account for and what the receiver's own codec and
    table fix.

    Raises:
      WireError: the bytes are truncated, damaged, of another version, codec or table, or say what
        `pack` never writes.
    """
    head = _read_header(codec, sizes, raw)
    stream = coding.Reader(np.frombuffer(raw, np.uint8, offset=HEADER_BYTES))
    n, k = head.n, head.k
    data: dict[str, Any] = {}
    fields = codec.fields(sizes)
    if head.form and not any(_sends_set(field, n, k) for field in fields):
        raise WireError(f"a form of the touched set, {head.form}, but no set")
    for field in fields:
        if field.dtype == "set":
            data["item"] = coding.read_set(stream, head.form, n, field.shape[0])
        elif _own_actions(field, n, k):
            data[field.name] = np.arange(n, dtype=np.int32)
            if field.per == "item":
                data["item"] = coding.read_set(stream, head.form, n, sizes.items)
        elif field.per == "item":
            data |= _read_items(stream, field, head, sizes)
        elif field.dtype == "entropy":
            shape = field.shape[1:]
            found = coding.read_labels(stream, n, k, math.prod(shape), reserve=32 * n_shared)
            data["label"] = found.reshape(n, *shape)
        elif field.dtype == "symbols":
            data[field.name] = _read_symbols(stream, field, n, reserve=32 * n_shared)
        elif field.dtype == "levels":
            data[field.name] = coding.read_levels(
                stream, n, field.shape[0], bits.REACH, reserve=32 * n_shared
            )
        else:
            data[field.name] = _read(stream, field, n, k, codec.max_actions, sizes)
    shared = _floats(stream.take(32 * n_shared), "float32")
    if not np.isfinite(shared).all():
        raise WireError("a shared parameter is not finite")
    stream.finish()
    data["mask"] = np.ones(n, bool)
    if codec.max_actions:
        data["k"] = np.asarray(k, np.int32)
    return data, shared


def _read_header(codec: Codec, sizes: Sizes, raw: bytes) -> _Head:
    if len(raw) < HEADER_BYTES:
        raise WireError(f"{len(raw)} bytes: a payload has a header of {HEADER_BYTES}")
    head = _Head(*HEADER.unpack_from(raw))
    if head.version != VERSION:
        raise WireError(f"wire version {head.version}: this library reads version {VERSION}")
    (check,) = CHECK.unpack_from(raw, HEADER.size)
    if check != zlib.crc32(raw[HEADER_BYTES:], zlib.crc32(raw[: HEADER.size])):
        raise WireError("checksum does not match: the payload is truncated or damaged")
    if (head.items, head.dim) != sizes:
        raise WireError(
            f"payload for a table of {head.items} x {head.dim}, but this one is "
            f"{sizes.items} x {sizes.dim}"
        )
    if head.fingerprint != _fingerprint(codec, sizes):
        raise WireError(f"payload of another codec than {codec.name}, or of other settings")
    universe = _universe(codec, sizes)
    if head.n > universe:
        raise WireError(f"{head.n} rows sent out of {universe}")
    if head.k > head.n:
        raise WireError(f"{head.k} actions for {head.n} rows")
    if head.k > codec.max_actions or (codec.max_actions and head.n and not head.k):
        raise WireError(f"{head.k} actions: codec {codec.name} holds 1 to {codec.max_actions}")
    return head


def _fingerprint(codec: Codec, sizes: Sizes) -> int:
    """16 bits that tell codecs and their settings apart."""
    described = repr((codec.name, codec.max_actions, codec.fields(sizes)))
    return zlib.crc32(described.encode()) & 0xFFFF


def _universe(codec: Codec, sizes: Sizes) -> int:
    """How many rows could be sent."""
    return next((f.shape[0] for f in codec.fields(sizes) if f.dtype == "set"), sizes.items)


# ---------------------------------------------------------------- plain fields


def _own_actions(field: Field, n: int, k: int) -> bool:
    """Whether the field is of labels that do not travel, because every row has its own action."""
    return field.dtype in ("entropy", "label") and not bits.has_several_labels(field) and k == n > 0


def _sends_set(field: Field, n: int, k: int) -> bool:
    """Whether the field is written as the set of sent rows."""
    return field.dtype == "set" or (field.per == "item" and _own_actions(field, n, k))


def _entries(field: Field, n: int, k: int, sizes: Sizes) -> int:
    return {"once": int(n > 0), "action": k, "row": n, "item": sizes.items}[field.per]


def _width(field: Field, k: int) -> int:
    """Bits of one element."""
    if field.dtype == "label":
        return int(k + (field.per == "item") - 1).bit_length() if k else 0
    return field.bits // math.prod(field.shape)


def _write(field: Field, data: Mapping[str, np.ndarray], k: int, sizes: Sizes) -> np.ndarray:
    """A field's elements as bits."""
    leaf, n = data[field.name], data["item"].size
    if field.per == "item":
        # What is not sent is zero; labels count from 1 then.
        table = np.zeros((sizes.items, *field.shape), leaf.dtype)
        table[data["item"]] = leaf + 1 if field.dtype == "label" else leaf
        leaf = table
    used = leaf[: _entries(field, n, k, sizes)] if field.per != "once" else leaf
    if field.per == "once" and not n:
        used = used.reshape(-1)[:0]
    if field.dtype in bits.FLOAT_BITS:
        return _float_bits(used)
    return coding.uint_bits(used, _width(field, k))


def _read(stream: coding.Reader, field: Field, n: int, k: int, max_actions: int, sizes: Sizes):
    """The leaf of a field, as `canonical` has it."""
    entries, width = _entries(field, n, k, sizes), _width(field, k)
    flat = stream.take(entries * width * math.prod(field.shape))
    if field.dtype in bits.FLOAT_BITS:
        leaf = _floats(flat, field.dtype)
        if not np.isfinite(leaf.astype(np.float32)).all():
            raise WireError(f"{field.name} is not finite")
    elif width:
        leaf = coding.uints(flat, width).astype(_dtype(field, width))
    else:
        leaf = np.zeros(entries * math.prod(field.shape), _dtype(field, width))
    if field.dtype == "exponent" and np.any(leaf == bits.NOT_FINITE):
        raise WireError(f"{field.name} is not finite")
    if field.dtype == "label" and leaf.size and leaf.max() >= k + (field.per == "item"):
        raise WireError(f"label {leaf.max()}, but only {k} actions")
    if field.per == "once":
        return leaf.reshape(field.shape) if n else np.zeros(field.shape, leaf.dtype)
    leaf = leaf.reshape(entries, *field.shape)
    if field.per == "action":
        return np.concatenate([leaf, np.zeros((max_actions - k, *field.shape), leaf.dtype)])
    return leaf


def _read_symbols(stream: coding.Reader, field: Field, n: int, reserve: int) -> np.ndarray:
    """Entropy-coded codes [n, entries]."""
    n_symbols, entries = field.shape
    dtype = _dtype(field, bits.index_width(n_symbols))
    if not n:
        return np.zeros((0, entries), dtype)
    found = coding.read_labels(stream, n * entries, n_symbols, 1, reserve)
    return found.reshape(n, entries).astype(dtype)


def _read_items(stream: coding.Reader, field: Field, head: _Head, sizes: Sizes) -> dict[str, Any]:
    """A field with an entry for every item: what is not zero was sent."""
    leaf = _read(stream, field, head.n, head.k, 0, sizes)
    item = np.flatnonzero((leaf.reshape(sizes.items, -1) != 0).any(1)).astype(np.int32)
    if item.size != head.n:
        raise WireError(f"{item.size} rows are not zero, but the header says {head.n}")
    return {"item": item, field.name: leaf[item] - (field.dtype == "label")}


def _dtype(field: Field, width: int) -> type:
    if field.dtype == "label":
        return np.int32
    return np.uint8 if width <= 8 else np.uint16 if width <= 16 else np.uint32


def _float_bits(x: np.ndarray) -> np.ndarray:
    words = np.ascontiguousarray(x).view(_UINT[8 * x.dtype.itemsize])
    return np.unpackbits(words.astype(words.dtype.newbyteorder(">")).reshape(-1).view(np.uint8))


def _floats(flat: np.ndarray, dtype: str) -> np.ndarray:
    word = np.dtype(_UINT[bits.FLOAT_BITS[dtype]])
    big = np.packbits(flat).view(word.newbyteorder(">"))
    return big.astype(word).view(jnp.dtype(dtype))
