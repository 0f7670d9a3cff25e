"""Sizes in bits, exact and integer, from what a codec declares (entropy codes: upper bounds).

A payload's size is `HEADER_BITS + sum(counts * widths)`. Counts are i32 and live on the device;
widths are static Python ints; the products are taken on the host, because the bits of a cohort
overflow int32 (a 10M x 64 float32 table alone is 20 Gbit). `wire` writes the same fields as bytes.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from fedras_jax import native
from fedras_jax.errors import SpecError
from fedras_jax.native import forms
from fedras_jax.types import Field, Payload, Sizes

# Every payload starts with these 20 bytes; `wire` says what they hold. Our choice; the paper does
# not give its layout.
HEADER_BITS = 160

FLOAT_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}

# What fields may be declared as.
KINDS = (*FLOAT_BITS, "uint", "exponent", "label", "entropy", "symbols", "levels", "set")

# What is added to the entropy of coded labels so that it bounds what a coder writes: probabilities
# in 24-bit fixed point cost far less than a thousandth, and the last words two times 32 bits.
ENTROPY_SLACK = 1.001
ENTROPY_TAIL = 64

# How small integers travel: each as wide as they all may be, or by their frequencies.
CODINGS = ("fixed", "entropy")

# Levels of `coded_levels` lie in -REACH to REACH.
REACH = 31

# The code of an `exponents` field that stands for what is not finite.
NOT_FINITE = 255

# Rows of larger entries count as not finite where a codec does more with them than to round: in
# float32 sums of squares would overflow, reciprocals underflow, and what is sent would be finite
# and wrong. No embedding comes near it.
LARGEST = 2.0**50


# ---------------------------------------------------------------- declaring fields


def touched(universe: int) -> Field:
    """The set of sent rows out of `universe`: Rice-coded gaps, bitmap or ids, the smallest."""
    return Field("item", 1, "set", (universe,), "set")


def values(name: str, per: str, dtype: str, *shape: int) -> Field:
    """Floating-point numbers of one of the `FLOAT_BITS`."""
    return Field(name, FLOAT_BITS[dtype] * math.prod(shape), per, shape, dtype)


def codes(name: str, per: str, width: int, *shape: int) -> Field:
    """Unsigned integers of `width` bits."""
    return Field(name, width * math.prod(shape), per, shape, "uint")


def exponents(name: str, per: str) -> Field:
    """Powers of two, a byte each; the byte `NOT_FINITE` is never written to the wire."""
    return Field(name, 8, per, (), "exponent")


def labels(per: str = "row", *shape: int) -> Field:
    """Which action: an index as wide as the client's own number of actions needs.

    Where a client has as many actions as rows, single labels do not travel: action i is that of
    the i-th row in the order of items (`own_actions`). Float32 actions are then the rows
    themselves.

    Args:
      per: 'row'; or 'item', where a further zero action stands for the rows that are not sent.
        With as many actions as rows the set of these rows travels in place of M labels.
      shape: several labels a row.
    """
    return Field("label", 1, per, shape, "label")


def coded_labels(k: int, *shape: int) -> Field:
    """Which of at most k actions, entropy-coded by frequencies that travel as well. Comes last.

    As with `labels`, single ones do not travel where every row has an action of its own.

    Args:
      k: static maximum K of actions.
      shape: several labels a row, each coded by frequencies of its own.
    """
    return Field("label", 1, "row", (k, *shape), "entropy")


def labels_as(coding: str, k: int, *shape: int) -> Field:
    """Labels of touched rows in one of the `CODINGS`; k and shape as in `coded_labels`."""
    return labels("row", *shape) if coding == "fixed" else coded_labels(k, *shape)


def coded_codes(name: str, width: int, entries: int) -> Field:
    """Unsigned integers of `width` bits, so many a row, entropy-coded by the frequencies of them
    all, which travel as well. Comes last."""
    return Field(name, 1, "row", (2**width, entries), "symbols")


def coded_levels(name: str, rank: int) -> Field:
    """Signed integers in -REACH to REACH, `rank` a row, entropy-coded column by column. Comes last.

    Each column's least and greatest level and the frequencies of those between travel as well.
    """
    return Field(name, 1, "row", (rank,), "levels")


# ---------------------------------------------------------------- counting


def index_width(n: int) -> int:
    """Bits of an index into n things, at least 1: the smallest w with 2**w >= n."""
    return max(1, (n - 1).bit_length())


def label_width(k: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
    """`index_width` for traced counts, from leading zeros: no float logarithm, so never off by one.

    Args:
      k: i32, the number of labels; 0 and 1 need no bits at all (every row says the same).
    """
    return jnp.where(k > 1, 32 - jax.lax.clz(jnp.maximum(k - 1, 0)), 0).astype(jnp.int32)


def measure(fields: Sequence[Field], sizes: Sizes, data: Mapping[str, Array]) -> Payload:
    """A payload of this data, with the count of every field.

    Args:
      fields: the codec's declaration.
      sizes: M and D.
      data: as in `Payload`.

    Raises:
      SpecError: data that are not what is declared: a size is counted for what travels.
    """
    _require_declared(fields, data)
    n = data["mask"].sum(dtype=jnp.int32)
    k = data.get("k", jnp.int32(0))

    def which(universe):
        return set_bits(data["item"], data["mask"], universe)

    def count(field):
        if field.dtype == "set":
            return which(field.shape[0])
        if field.dtype == "entropy":
            coded = entropy_bits(data["label"], data["mask"], k, field.shape[0])
            return coded if has_several_labels(field) else jnp.where(k < n, coded, 0)
        if field.dtype == "symbols":
            n_symbols, entries = field.shape
            code, sent = data[field.name].reshape(-1), jnp.repeat(data["mask"], entries)
            coded = entropy_bits(code, sent, jnp.int32(n_symbols), n_symbols)
            return jnp.where(n > 0, coded, 0)
        if field.dtype == "levels":
            tables, surprise = level_bits(data[field.name], data["mask"])
            return tables + coded_bits(surprise)
        return _count(field, sizes, n, k, which)

    counts = jnp.stack([jnp.asarray(count(field), jnp.int32) for field in fields])
    return Payload(dict(data), counts)


def _require_declared(fields: Sequence[Field], data: Mapping[str, Array]) -> None:
    """Whether a payload's leaves are those of its fields, in shape and type."""
    missing = {"item", "mask", *(f.name for f in fields if f.dtype != "set")} - data.keys()
    if missing:
        raise SpecError(f"a payload without {', '.join(sorted(missing))}, which it declares")
    beside = data.keys() - {"item", "mask", "k", *(field.name for field in fields)}
    if beside:
        raise SpecError(
            f"a payload with {', '.join(sorted(beside))}, which no field declares: it would travel "
            "for nothing"
        )
    for field in fields:
        if field.dtype == "set":
            continue
        leaf = data[field.name]
        if field.dtype in FLOAT_BITS:
            fits = leaf.dtype == jnp.dtype(field.dtype)
        else:
            fits = jnp.issubdtype(leaf.dtype, jnp.integer)
        lead = () if field.per == "once" else leaf.shape[:1]
        if field.per in ("row", "item"):
            lead = data["mask"].shape
        shape = field.shape[1:] if field.dtype in ("entropy", "symbols") else field.shape
        if not fits or leaf.shape != (*lead, *shape):
            raise SpecError(
                f"a payload whose {field.name} is {leaf.dtype}{list(leaf.shape)}, but it declares "
                f"{field.dtype}{[*lead, *shape]}"
            )


def by_actions(
    fields: Sequence[Field],
    sizes: Sizes,
    item: Int[Array, " n"],
    mask: Bool[Array, " n"],
    max_actions: int,
) -> Float[Array, " k"]:
    """Size of a client's payload for every number of actions, f32[K + 1] bits, header included.

    What a budget looks at before anything is encoded; rounded to float32. Entropy-coded labels
    count as if all actions were equally frequent, the worst case.

    Args:
      fields: the codec's declaration. sizes: M and D.
      item: i32[N], touched items. mask: bool[N].
      max_actions: K.
    """
    n = mask.sum(dtype=jnp.int32)
    touched_bits = set_bits(item, mask, sizes.items)

    k = jnp.minimum(jnp.arange(max_actions + 1, dtype=jnp.int32), n)
    size = jnp.full(k.shape, HEADER_BITS, jnp.float32)
    for field in fields:
        count: Array | int = touched_bits
        if field.dtype == "entropy":
            columns = math.prod(field.shape[1:])
            worst = jnp.ceil(n * columns * label_width(k) * ENTROPY_SLACK) + ENTROPY_TAIL
            coded = columns * k * label_width(n + 1) + jnp.where(k > 1, worst, 0)
            count = coded if has_several_labels(field) else jnp.where(k < n, coded, 0)
        elif field.dtype == "symbols":
            n_symbols, entries = field.shape
            worst = jnp.ceil(n * ENTROPY_SLACK * (entries * index_width(n_symbols))) + ENTROPY_TAIL
            count = jnp.where(n > 0, n_symbols * label_width(n * entries + 1) + worst, 0)
        elif field.dtype == "levels":
            (rank,), width = field.shape, index_width(2 * REACH + 1)
            worst = jnp.ceil(n * rank * width * ENTROPY_SLACK) + ENTROPY_TAIL
            tables = rank * (2 * width + (2 * REACH + 1) * label_width(n + 1))
            count = jnp.where(n > 0, worst + tables, 0)
        elif field.dtype != "set":
            count = _count(field, sizes, n, k, lambda _: touched_bits)
        size += jnp.float32(count) * field.bits
    return size


def least(fields: Sequence[Field], sizes: Sizes, rows: int, max_actions: int) -> int:
    """A lower bound on a payload with an action: header, action, and what a row takes.

    What the touched set and entropy-coded labels take, which differs, counts as nothing, and a
    single action needs no label, unless untouched items are told by another one. No labels are
    needed either where every row has an action of its own.

    Args:
      fields: the codec's declaration. sizes: M and D.
      rows: the fewest rows of a client, at least 1.
      max_actions: K.
    """
    free = ("label", "entropy", "symbols", "levels", "set")
    told = [f for f in fields if f.dtype not in free]

    def bound(n):
        entries = {"once": 1, "action": n, "row": n, "item": sizes.items}
        return HEADER_BITS + sum(entries[field.per] * field.bits for field in told)

    for_untouched = any(f.dtype == "label" and f.per == "item" for f in fields)
    told_apart = bound(1) + sizes.items * for_untouched
    return min(told_apart, bound(rows)) if rows <= max_actions else told_apart


def has_several_labels(field: Field) -> bool:
    """Whether a field of labels has several a row."""
    return len(field.shape) > (field.dtype == "entropy")


def _count(
    field: Field, sizes: Sizes, n: Array, k: Array, which: Callable[[int], Array]
) -> Array | int:
    """Entries of a field that n touched rows and k actions say all about, but for which these are.

    Args:
      which: bits of the set of rows out of so many.
    """
    if field.dtype == "label" and field.per == "item":
        labels = sizes.items * label_width(k + 1)
        return jnp.where(k < n, labels, which(sizes.items))
    if field.dtype == "label" and field.shape:
        return n * math.prod(field.shape) * label_width(k)
    if field.dtype == "label":
        return jnp.where(k < n, n * label_width(k), 0)
    counts: dict[str, Array | int] = {"once": n > 0, "action": k, "row": n, "item": sizes.items}
    return counts[field.per]


def own_actions(
    item: Int[Array, " n"],
    mask: Bool[Array, " n"],
    label: Int[Array, " n"],
    k: Int[Array, ""],
    n_labels: int,
    universe: int,
) -> Int[Array, " n"]:
    """The labels, or where k is the number of rows: each row's place in the order of items.

    Args:
      item: i32[N] distinct where unmasked. mask: bool[N].
      label: i32[N], of the clusters.
      k: actions in use, at most the number of rows.
      n_labels: static maximum K of actions.
      universe: number of items there could be.
    """
    first = _ascending(item, mask, universe)[:n_labels]
    if native.on():
        return forms.own(first, item, mask, label, k)
    place = jnp.sum(first[:, None] < item, axis=0, dtype=label.dtype)
    own = k == mask.sum(dtype=jnp.int32)
    return jnp.where(own, jnp.where(mask, place, 0), label)


def set_bits(item: Int[Array, " n"], mask: Bool[Array, " n"], universe: int) -> Int[Array, ""]:
    """Bits of the set of unmasked items in the smallest of its three forms.

    A bitmap takes a bit for each member of the universe, ids the width of an index each, and
    Rice-coded gaps 1 + r + floor(gap / 2^r) bits each, for the best r. Rice codes come within 3 %
    of the entropy of a random set of up to a third of the universe; of half of it and more the
    bitmap, which then is smaller, takes up to 1.4 times the entropy at four fifths.

    Args:
      item: i32[N] distinct where unmasked, in any order.
      mask: bool[N].
      universe: number of members there could be.

    Source: Rice and Plaunt, Adaptive variable-length coding, IEEE Trans. Commun. 19(6), 1971.
    """
    if native.on():
        return forms.ascending(item, mask, universe)[1]
    n = mask.sum(dtype=jnp.int32)
    order = _ascending(item, mask, universe)
    gap = jnp.diff(order, prepend=-1) - 1
    r = jnp.arange(index_width(universe))
    quotients = jnp.sum(jnp.where(order < universe, gap >> r[:, None], 0), axis=1)

    def fixed(width):
        """n times a width, as far as that is below a bitmap: it could overflow beyond."""
        return jnp.where(n <= universe // width, n * width, universe)

    rice = jnp.min(jnp.minimum(fixed(1 + r), universe - quotients) + quotients)
    ids = fixed(index_width(universe))
    # An empty and a full set are told by the header.
    some = (n > 0) & (n < universe)
    return jnp.where(some, jnp.minimum(jnp.minimum(rice, ids), universe), 0)


def _ascending(item: Int[Array, " n"], mask: Bool[Array, " n"], universe: int):
    """The unmasked items in order. Written once, so that a program sorts a client's items once."""
    if native.on():
        return forms.ascending(item, mask, universe)[0]
    return jnp.sort(jnp.where(mask, item, universe))


def entropy_bits(
    label: Integer[Array, "n *columns"], mask: Bool[Array, " n"], k: Int[Array, ""], n_labels: int
) -> Int[Array, ""]:
    """An upper bound on entropy-coded labels with a frequency table for each column.

    Within 2 % and 16 bytes of what `wire` writes; the bound covers the coder's rounding, so the
    written payload is never longer.

    Args:
      label: i32[N], or [N, P]. mask: bool[N].
      k: i32[], actions in use; a table holds a count for each.
      n_labels: static maximum K of actions.
    """
    column = label.reshape(label.shape[0], -1)
    often = _often(column, mask, 0, n_labels)
    tables = k * column.shape[1] * label_width(mask.sum(dtype=jnp.int32) + 1)
    return tables + coded_bits(_surprise(often))


def level_bits(
    level: Int[Array, "n r"], mask: Bool[Array, " n"]
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Bits of the tables of `coded_levels`, and the entropy of its levels in bits.

    Args:
      level: integer [N, r] in -REACH to REACH. mask: bool[N].
    """
    often = _often(level, mask, -REACH, 2 * REACH + 1)
    n, occurs = mask.sum(dtype=jnp.int32), often > 0
    low, high = (jnp.argmax(x, axis=0) for x in (occurs, occurs[::-1]))
    spread = jnp.sum(2 * REACH + 1 - low - high, dtype=jnp.int32)  # levels that have a frequency
    ends = 2 * level.shape[1] * index_width(2 * REACH + 1)
    return jnp.where(n > 0, ends + spread * label_width(n + 1), 0), _surprise(often)


def _often(
    symbol: Integer[Array, "n r"], mask: Bool[Array, " n"], lowest: int, n_symbols: int
) -> Int[Array, "k r"]:
    """In how many unmasked rows each column holds each of so many symbols, from the lowest on."""
    if native.on():
        return forms.often(symbol, mask, lowest, n_symbols)
    value = jnp.arange(lowest, lowest + n_symbols, dtype=jnp.int32)
    return jnp.sum((symbol == value[:, None, None]) & mask[:, None], axis=1, dtype=jnp.int32)


def coded_bits(surprise: Float[Array, ""]) -> Int[Array, ""]:
    """An upper bound on a range coder's words for symbols of so many bits of entropy."""
    coded = jnp.ceil(surprise * ENTROPY_SLACK).astype(jnp.int32) + ENTROPY_TAIL
    return jnp.where(surprise > 0, coded, 0)


def _surprise(often: Int[Array, "k *columns"]) -> Float[Array, ""]:
    """Bits of entropy of symbols that occur so often, summed over them; 0 where all are equal."""
    n = often.sum(0)
    share = often / jnp.maximum(n, 1)
    each = jnp.where((often > 0) & (often < n), often * jnp.log2(jnp.maximum(share, 1e-30)), 0)
    return -jnp.sum(each)


def as_sent(x: Float[Array, "*n"], dtype: str) -> Float[Array, "*n"]:
    """x in the number format that it travels in, rounded for good.

    A cast alone would not do: XLA may drop a float32 -> float16 -> float32 pair, and the
    simulated server would then read digits that were never sent.
    """
    if dtype == "float16":
        # `reduce_precision` has no subnormal numbers: those are multiples of 2^-24.
        small = jnp.round(x * 2.0**24) * 2.0**-24
        normal = jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
        x = jnp.where(jnp.abs(x) < 2.0**-14, small, normal)
    elif dtype == "bfloat16":
        x = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x.astype(dtype)


def in_range(row: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The numbers, and NaN for those beyond `LARGEST`.

    A codec that computes with rows takes them through here, so that its payload is not finite
    where they are not: the simulation sees the NaN, and `wire` refuses it.
    """
    return jnp.where(jnp.abs(row) <= LARGEST, row, jnp.nan)


def largest(row: Float[Array, "*n"], axis: int | None = None) -> Float[Array, "*m"]:
    """The largest magnitude, and NaN where any is not `in_range`: XLA's maximum may drop NaN."""
    size = jnp.abs(row)
    return jnp.where(jnp.all(size <= LARGEST, axis), jnp.max(size, axis), jnp.nan)


def dense_bits(sizes: Sizes, shared: int = 0) -> int:
    """Bits of a dense float32 table with `shared` further float32 parameters, header included."""
    return HEADER_BITS + 32 * (sizes.items * sizes.dim + shared)


def row_bytes(sizes: Sizes, n: np.ndarray, shared: int = 0) -> np.ndarray:
    """Bytes of n touched rows in float32, and which they are as a bitmap or ids, if smaller.

    What reductions against touched rows are measured with: `codecs.rows` less its Rice codes,
    which depend on the items and would make it a percent smaller at most.

    Args:
      n: integer [...], touched rows. shared: dense float32 parameters beside them.
    """
    n = np.asarray(n, np.int64)
    which = np.minimum(n * index_width(sizes.items), sizes.items)
    return (HEADER_BITS + which + 32 * (n * sizes.dim + shared)) / 8


def float_bits(fields: Sequence[Field], counts: Int[Array, "*batch f"]) -> Float[Array, "*batch"]:
    """`payload_bits` on device, rounded to float32: for clocks, not for accounts."""
    widths = jnp.array([float(f.bits) for f in fields], jnp.float32)
    return HEADER_BITS + jnp.sum(counts * widths, axis=-1)


def payload_bits(fields: Sequence[Field], counts: np.ndarray | jax.Array) -> np.ndarray:
    """Exact payload sizes, header included.

    Args:
      fields: the F declared fields.
      counts: integer [..., F] entries sent per field.

    Returns:
      int64 [...] bits.
    """
    counts = np.asarray(counts, np.int64)
    if counts.shape[-1] != len(fields):
        raise ValueError(f"{counts.shape[-1]} counts for {len(fields)} fields")
    return np.asarray(HEADER_BITS + counts @ np.array([f.bits for f in fields], np.int64))
