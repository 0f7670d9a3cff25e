"""The loops as JAX functions of one client, under `vmap` and `jit` as any others.

Operands and results are those of the functions that call them. Room that a loop needs for itself
is a further result, which nobody reads: memory that XLA hands out is not returned to the system
between clients.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, UInt32

_MODULES = {
    "fold": "keys",
    "words": "keys",
    "shuffled": "drawing",
    "draw": "drawing",
    "train": "training",
    "look_up": "rows",
    "add_rows": "rows",
    "some": "rows",
    "squares": "rows",
    "apart": "rows",
    "coordinates": "rows",
    "line_table": "line",
    "line_levels": "line",
    "lloyd": "clusters",
    "averages": "clusters",
    "means": "clusters",
    "kept": "clusters",
    "main_directions": "directions",
    "ascending": "sets",
    "own": "sets",
    "find": "sets",
    "often": "counting",
    "largest": "entries",
    "by_item": "entries",
}

_BOOL, _I32, _U32, _F32 = jnp.bool_, jnp.int32, jnp.uint32, jnp.float32


def _shape(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _loops(name: str) -> Any:
    """The module that holds a loop, which makes it known to XLA."""
    return importlib.import_module(f"fedras_jax.native.{_MODULES[name]}")


def _as(dtype: Any, x: Any, *shape: int) -> Array:
    """An operand as its loop reads it, which knows nothing of what is in memory.

    Raises:
      ValueError: another shape.
    """
    x = jnp.asarray(x)
    if x.shape != shape:
        raise ValueError(f"an operand of shape {x.shape} where {shape} is needed")
    return x.astype(dtype)


def _call(name: str, results: Any, *operands: Any, in_place: bool = False) -> Any:
    """A loop's results.

    Args:
      operands: as `_as` gives them.
      in_place: whether the first result takes the memory of the first operand.
    """
    _loops(name)
    run = jax.ffi.ffi_call(
        f"fedras_jax.{name}",
        results,
        # What is the same for all clients is not copied, unless it is to be changed.
        vmap_method="broadcast_all" if in_place else "expand_dims",
        input_output_aliases={0: 0} if in_place else None,
    )
    return run(*operands)


def fold(key: UInt32[Array, " 2"], part: Any) -> UInt32[Array, " 2"]:
    """`jax.random.fold_in` of a key's data."""
    part = jnp.asarray(part, _U32)
    return _call("fold", _shape(_U32, 2), _as(_U32, key, 2), _as(_U32, part))


def words(key: UInt32[Array, " 2"], count: int) -> UInt32[Array, " n"]:
    """`jax.random.bits` of a key's data, so many words."""
    return _call("words", _shape(_U32, count), _as(_U32, key, 2))


def shuffled(
    words: UInt32[Array, "r 2"], index: Int[Array, " n"], size: Int[Array, ""]
) -> Int[Array, " n"]:
    """`rng.shuffled`."""
    n = index.shape[0]
    operands = _as(_U32, words, *words.shape), _as(_U32, index, n), _as(_U32, size)
    return _call("shuffled", _shape(_U32, n), *operands).astype(_I32)


def draw(
    orders: Array, data: Any, client: Array, live: Array, n_items: int, negatives: int, width: int
) -> tuple[Array, Array, Array, Array]:
    """Items, labels, mask and `short` of `examples.draw`."""
    results = (
        _shape(_I32, width),
        _shape(_F32, width),
        _shape(_BOOL, width),
        _shape(_I32),
        _shape(_U32, 3, width),
    )
    sizes = jnp.array([n_items, negatives], _I32)
    operands = (
        _as(_U32, orders, *orders.shape),
        _as(_I32, data.offset, *data.offset.shape),
        _as(_I32, data.item, *data.item.shape),
        _as(_I32, client),
        _as(_BOOL, live),
    )
    return _call("draw", results, *operands, sizes)[:4]


def train(
    private: Float[Array, " d"],
    rows: Float[Array, "l d"],
    label: Float[Array, " l"],
    mask: Bool[Array, " l"],
    lr: Any,
    weight_decay: Any,
    epochs: int,
    batch_size: int,
) -> tuple[Array, Array, Array]:
    """The private vector, the rows' changes and the loss of `factored.factored`."""
    room = _loops("train").scratch_size(*rows.shape, epochs, batch_size)
    results = (
        _shape(_F32, *private.shape),
        _shape(_F32, *rows.shape),
        _shape(_F32),
        _shape(_F32, room),
    )
    plan = jnp.array([epochs, batch_size], _I32)
    n_slots, dim = rows.shape
    operands = (
        _as(_F32, private, dim),
        _as(_F32, rows, n_slots, dim),
        _as(_F32, label, n_slots),
        _as(_BOOL, mask, n_slots),
        _as(_F32, lr),
        _as(_F32, weight_decay),
    )
    return _call("train", results, *operands, plan)[:3]


def look_up(table: Float[Array, "m d"], item: Int[Array, " l"]) -> Float[Array, "l d"]:
    """Rows of a table; zeros where there is no such row."""
    n, operands = item.shape[0], (_as(_F32, table, *table.shape), _as(_I32, item, *item.shape))
    return _call("look_up", _shape(_F32, n, table.shape[1]), *operands)


def add_rows(
    table: Float[Array, "m d"],
    item: Int[Array, "c l"],
    row: Float[Array, "c k d"],
    label: Int[Array, "#c l"],
    weight: Float[Array, " c"],
) -> Float[Array, "m d"]:
    """The table, and to its rows the weighted ones of some clients, but those of weight 0.

    Args:
      label: which of a client's rows is added to each item.
    """
    c, k = row.shape[:2]
    operands = (
        _as(_F32, table, *table.shape),
        _as(_I32, item, *item.shape),
        _as(_F32, row, c, k, table.shape[1]),
        jnp.broadcast_to(label, item.shape).astype(_I32),
        _as(_F32, weight, item.shape[0]),
    )
    return _call("add_rows", _shape(_F32, *table.shape), *operands, in_place=True)


def some(row: Float[Array, "n d"]) -> Bool[Array, " n"]:
    """Whether a row has an entry that is not zero."""
    return _call("some", _shape(_BOOL, row.shape[0]), _as(_F32, row, *row.shape))


def squares(row: Float[Array, "n d"]) -> Float[Array, ""]:
    """Sum of all squared entries."""
    return _call("squares", _shape(_F32), _as(_F32, row, *row.shape))


def apart(
    row: Float[Array, "n d"], other: Float[Array, "m d"], label: Int[Array, " n"]
) -> Float[Array, " 2"]:
    """Sums of all squared differences, and of all squared entries of the first.

    Args:
      label: which of the others a row is compared with; with zeros where there is none.
    """
    (n, dim), m = row.shape, other.shape[0]
    operands = _as(_F32, row, n, dim), _as(_F32, other, m, dim), _as(_I32, label, n)
    return _call("apart", _shape(_F32, 2), *operands)


def coordinates(
    row: Float[Array, "n d"], basis: Float[Array, "r d"], length: Float[Array, " r"]
) -> Float[Array, "n r"]:
    """Products with vectors, each over its length."""
    (n, dim), rank = row.shape, basis.shape[0]
    operands = _as(_F32, row, n, dim), _as(_F32, basis, rank, dim), _as(_F32, length, rank)
    return _call("coordinates", _shape(_F32, n, rank), *operands)


def line_table(
    values: Float[Array, " n"],
    mask: Bool[Array, " n"],
    weight: Float[Array, " n"],
    n_clusters: int,
    bins: int,
) -> tuple[Array, ...]:
    """Fields of `kmeans1d.Table`."""
    n = values.shape[0]
    room, words = _loops("line_table").table_scratch(n, bins)
    results = (
        _shape(_F32, n_clusters + 1),
        _shape(_F32, n_clusters + 1, bins + 1),
        _shape(_F32, bins + 1, bins + 1),
        _shape(_F32, bins),
        _shape(_F32, bins),
        _shape(_I32, n),
        _shape(_F32, room),
        _shape(_U32, words),
    )
    operands = _as(_F32, values, n), _as(_BOOL, mask, n), _as(_F32, weight, n)
    return _call("line_table", results, *operands)[:6]


def line_levels(
    table: Any,
    values: Float[Array, " n"],
    weight: Float[Array, " n"],
    k: Integer[Array, ""] | int,
    polish: int,
) -> tuple[Array, Array]:
    """Fields of `kmeans1d.Levels`."""
    n, n_clusters, bins = values.shape[0], table.best.shape[0] - 1, table.mass.shape[0]
    results = (
        _shape(_F32, n_clusters),
        _shape(_I32, n),
        _shape(_F32, 2 * n),
        _shape(_I32, n_clusters + 1),
    )
    operands = (
        _as(_F32, values, n),
        _as(_F32, weight, n),
        _as(_I32, table.order, n),
        _as(_F32, table.best, n_clusters + 1, bins + 1),
        _as(_F32, table.cost, bins + 1, bins + 1),
        _as(_F32, table.mass, bins),
        _as(_F32, table.mean, bins),
    )
    return _call("line_levels", results, *operands, _as(_I32, k), _as(_I32, polish))[:2]


def lloyd(
    points: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    weight: Float[Array, " n"],
    start: Float[Array, "k d"],
    k: Integer[Array, ""] | int,
    iterations: int,
) -> tuple[Array, Array, Array]:
    """Fields of `kmeans.Clusters`."""
    n, dim = points.shape
    room = _loops("lloyd").lloyd_scratch(n, dim, start.shape[0])
    results = _shape(_F32, *start.shape), _shape(_I32, n), _shape(_F32), _shape(_F32, room)
    operands = (
        _as(_F32, points, n, dim),
        _as(_BOOL, mask, n),
        _as(_F32, weight, n),
        _as(_F32, start, start.shape[0], dim),
        _as(_I32, k),
        _as(_I32, iterations),
    )
    return _call("lloyd", results, *operands)[:3]


def averages(
    points: Float[Array, "n d"],
    weight: Float[Array, " n"],
    score: Float[Array, "k n"],
    centroid: Float[Array, "k d"],
    k: Integer[Array, ""] | int,
) -> tuple[Array, Array]:
    """Centroids after a Lloyd step, f32[K, D], and the labels that they are means of, i32[N].

    Args:
      score: what is highest for the centroid that is nearest.
    """
    (n, dim), n_clusters = points.shape, centroid.shape[0]
    results = (
        _shape(_F32, n_clusters, dim),
        _shape(_I32, n),
        _shape(_F32, n),
        _shape(_F32, n_clusters),
    )
    operands = (
        _as(_F32, points, n, dim),
        _as(_F32, weight, n),
        _as(_F32, score, n_clusters, n),
        _as(_F32, centroid, n_clusters, dim),
        jnp.minimum(_as(_I32, k), n_clusters),
    )
    return _call("averages", results, *operands)[:2]


def means(
    points: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    label: Int[Array, " n"],
    n_clusters: int,
    largest: float,
) -> Float[Array, "k d"]:
    """`kmeans.means`."""
    n, dim = points.shape
    results = _shape(_F32, n_clusters, dim), _shape(_F32, n_clusters)
    operands = _as(_F32, points, n, dim), _as(_BOOL, mask, n), _as(_I32, label, n)
    return _call("means", results, *operands, _as(_F32, largest))[0]


def kept(
    rows: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    label: Int[Array, "e n"],
    sizes: np.ndarray,
) -> Float[Array, " e"]:
    """What clusters' means keep of the squares of the rows, for several labellings.

    Args:
      sizes: integer [E], clusters of each labelling.
    """
    (n, dim), e, n_clusters = rows.shape, len(sizes), int(sizes.sum())
    results = _shape(_F32, e), _shape(_F32, n_clusters, dim), _shape(_F32, n_clusters)
    operands = _as(_F32, rows, n, dim), _as(_BOOL, mask, n), _as(_I32, label, e, n)
    return _call("kept", results, *operands, _as(_I32, sizes, e))[0]


def main_directions(
    points: Float[Array, "n d"], mask: Bool[Array, " n"], rank: int, iterations: int, largest: float
) -> Float[Array, "r d"]:
    """`kmeans.main_directions`."""
    n, dim = points.shape
    results = _shape(_F32, rank, dim), _shape(_F32, dim)
    operands = _as(_F32, points, n, dim), _as(_BOOL, mask, n), _as(_I32, iterations)
    return _call("main_directions", results, *operands, _as(_F32, largest))[0]


def ascending(
    item: Int[Array, " n"], mask: Bool[Array, " n"], universe: int
) -> tuple[Array, Array]:
    """The unmasked items in order, i32[N], `universe` beyond them; and bits of the set, i32[]."""
    n = item.shape[0]
    room = _loops("ascending").ROOM
    results = _shape(_I32, n), _shape(_I32), _shape(_U32, 3, n), _shape(_U32, room)
    operands = _as(_I32, item, n), _as(_BOOL, mask, n), _as(_I32, universe)
    return _call("ascending", results, *operands)[:2]


def own(
    first: Int[Array, " k"],
    item: Int[Array, " n"],
    mask: Bool[Array, " n"],
    label: Int[Array, " n"],
    k: Int[Array, ""],
) -> Int[Array, " n"]:
    """`bits.own_actions`.

    Args:
      first: the items in order, as many as there are labels.
    """
    n = item.shape[0]
    operands = _as(_I32, item, n), _as(_BOOL, mask, n), _as(_I32, label, n), _as(_I32, k)
    found = _call("own", _shape(_I32, n), _as(_I32, first, first.shape[0]), *operands)
    return found.astype(label.dtype)


def often(
    symbol: Integer[Array, "n r"], mask: Bool[Array, " n"], lowest: int, n_symbols: int
) -> Int[Array, "k r"]:
    """How often each of so many symbols, from the lowest on, occurs in each column."""
    n, columns = symbol.shape
    operands = _as(_I32, symbol, n, columns), _as(_BOOL, mask, n), _as(_I32, lowest)
    return _call("often", _shape(_I32, n_symbols, columns), *operands)


def find(
    among: Int[Array, " q"], item: Int[Array, " n"], mask: Bool[Array, " n"]
) -> tuple[Array, Array]:
    """`sets.find`."""
    q, n = among.shape[0], item.shape[0]
    results = _shape(_BOOL, n), _shape(_I32, n), _shape(_I32, _loops("find").find_scratch(q))
    return _call("find", results, _as(_I32, among, q), _as(_I32, item, n), _as(_BOOL, mask, n))[:2]


def largest(x: Float[Array, " n"], count: int) -> Int[Array, " k"]:
    """`reductions.largest`."""
    results = _shape(_I32, count), _shape(_U32, _loops("largest").COUNTS)
    return _call("largest", results, _as(_F32, x, x.shape[0]))[0]


def by_item(
    position: Int[Array, " n"],
    mask: Bool[Array, " n"],
    value: Float[Array, " n"],
    n_items: int,
    dim: int,
) -> tuple[Array, Array, Array]:
    """Items, rows and mask of `top_entries`' decoded delta."""
    n = position.shape[0]
    results = (
        _shape(_I32, n),
        _shape(_F32, n, dim),
        _shape(_BOOL, n),
        _shape(_U32, 4, n),
        _shape(_U32, 2 ** _loops("by_item").sorting.DIGIT),
    )
    operands = _as(_I32, position, n), _as(_BOOL, mask, n), _as(_F32, value, n), _as(_I32, n_items)
    return _call("by_item", results, *operands)[:3]
