"""Sets, labels and levels as bits, and back, on the host: what `wire` writes fields with.

Bits are uint8 arrays of zeros and ones. Readers refuse what writers never write, so that a
payload has one form; nothing is allocated beyond what the bits account for and what the sizes fix
that the reader is asked for.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fedras_jax import bits
from fedras_jax.errors import WireError

FORMS = ("bitmap", "ids", "rice")


class Reader:
    """Bits, in order.

    Args:
      raw: uint8 bytes.
    """

    def __init__(self, raw: np.ndarray):
        self._bits, self._at = np.unpackbits(raw), 0

    @property
    def left(self) -> int:
        """Bits not read yet."""
        return self._bits.size - self._at

    def take(self, n: int) -> np.ndarray:
        """The next n bits; WireError where there are fewer."""
        if not 0 <= n <= self.left:
            raise WireError(f"truncated: {max(n, 0)} more bits expected, {self.left} left")
        self._at += n
        return self._bits[self._at - n : self._at]

    def until_zeros(self, n: int) -> np.ndarray:
        """Lengths of the next n runs of ones, each ended by a zero; WireError where fewer."""
        ends = np.flatnonzero(self._bits[self._at :] == 0)[:n]
        if ends.size < n:
            raise WireError(f"truncated: {n} unary numbers expected, {ends.size} found")
        if n:
            self._at += int(ends[-1]) + 1
        return np.diff(ends, prepend=-1) - 1

    def finish(self) -> None:
        """WireError where more is left than fills the last byte with zeros."""
        if self.left >= 8 or self._bits[self._at :].any():
            raise WireError(f"{self.left} bits left over")


def uint_bits(x: np.ndarray, width: int) -> np.ndarray:
    """Unsigned integers as `width` bits each, the highest first."""
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint32)
    return ((x.astype(np.uint32).reshape(-1, 1) >> shifts) & 1).astype(np.uint8).reshape(-1)


def uints(flat: np.ndarray, width: int) -> np.ndarray:
    """The inverse of `uint_bits`, as uint32."""
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint32)
    return (flat.reshape(-1, width).astype(np.uint32) << shifts).sum(1, dtype=np.uint32)


# ---------------------------------------------------------------- the touched set


def write_set(item: np.ndarray, universe: int) -> tuple[int, np.ndarray]:
    """A set of numbers in its smallest form; ids before the bitmap before Rice codes.

    Args:
      item: integer [n], ascending and distinct.
      universe: they are below it.

    Returns:
      The form (2 bits for its place in FORMS, 5 for the Rice parameter), and the bits; none for
      an empty and for a full set, which their size tells.
    """
    n, width = item.size, bits.index_width(universe)
    if n in (0, universe):
        return 0, np.zeros(0, np.uint8)
    gap: np.ndarray = np.diff(item.astype(np.int64), prepend=np.int64(-1)) - 1
    rice = [n * (1 + r) + int((gap >> r).sum()) for r in range(width)]
    r = int(np.argmin(rice))
    size = {"ids": n * width, "bitmap": universe, "rice": rice[r]}
    form = min(size, key=lambda name: size[name])
    if form == "ids":
        return FORMS.index(form), uint_bits(item, width)
    if form == "bitmap":
        member = np.zeros(universe, np.uint8)
        member[item] = 1
        return FORMS.index(form), member
    unary = np.ones(int((gap >> r).sum()) + n, np.uint8)
    unary[np.cumsum((gap >> r) + 1) - 1] = 0
    low = uint_bits(gap & ((1 << r) - 1), r) if r else np.zeros(0, np.uint8)
    return FORMS.index(form) | r << 2, np.concatenate([low, unary])


def read_set(stream: Reader, form: int, n: int, universe: int) -> np.ndarray:
    """The set of n numbers below `universe`, int32 [n]; WireError where the bits are no such."""
    name, r = FORMS[form & 3] if form & 3 < len(FORMS) else "", form >> 2
    if n in (0, universe):
        item = np.arange(n)
    elif name == "ids":
        width = bits.index_width(universe)
        item = uints(stream.take(n * width), width).astype(np.int64)
    elif name == "bitmap":
        item = np.flatnonzero(stream.take(universe))
    elif name == "rice" and r < bits.index_width(universe):
        low = uints(stream.take(n * r), r).astype(np.int64) if r else np.zeros(n, np.int64)
        item = np.cumsum((stream.until_zeros(n).astype(np.int64) << r) + low + 1) - 1
    else:
        raise WireError(f"unknown form of the touched set: {form}")
    if item.size != n or (n and (item[-1] >= universe or np.any(np.diff(item) <= 0))):
        raise WireError(f"the touched set is not {n} ascending numbers below {universe}")
    if form != write_set(item, universe)[0]:
        raise WireError(f"the touched set is not in its smallest form, but {form}")
    return item.astype(np.int32)


# ---------------------------------------------------------------- entropy coding


def write_labels(label: np.ndarray, k: int) -> np.ndarray:
    """For each column a count of each of k labels; then one coder's words for all columns.

    Args:
      label: integer [n, P] in 0 to k - 1.
    """
    width = int(label.shape[0]).bit_length()
    counts = [np.bincount(column, minlength=k) for column in label.T]
    return np.concatenate([*(uint_bits(often, width) for often in counts), _code(label.T, counts)])


def read_labels(stream: Reader, n: int, k: int, columns: int, reserve: int) -> np.ndarray:
    """What `write_labels` wrote, int32 [n, P]; all but the last `reserve` bits are its words.

    Raises:
      WireError: the bits are not what it writes.
    """
    counts = [_counts(stream, n, k) for _ in range(columns)]
    return np.stack(_decode(stream, n, counts, reserve), axis=1).astype(np.int32)


def write_levels(level: np.ndarray, reach: int) -> np.ndarray:
    """For each column its least and greatest level and a count for each between; then one coder's
    words for all columns.

    Args:
      level: integer [n, r] in -reach to reach; n at least 1.
    """
    width, head = int(level.shape[0]).bit_length(), bits.index_width(2 * reach + 1)
    lows, highs = level.min(0).astype(np.int64), level.max(0).astype(np.int64)
    tables, columns, counts = [], [], []
    for column, low, high in zip(level.T, lows, highs, strict=True):
        columns.append(column - low)
        counts.append(np.bincount(columns[-1], minlength=high - low + 1))
        ends = uint_bits(np.array([low + reach, high + reach]), head)
        tables += [ends, uint_bits(counts[-1], width)]
    return np.concatenate([*tables, _code(columns, counts)])


def read_levels(stream: Reader, n: int, rank: int, reach: int, reserve: int) -> np.ndarray:
    """What `write_levels` wrote, int8 [n, rank]; all but the last `reserve` bits are its words.

    Raises:
      WireError: the bits are not what it writes.
    """
    if not n:
        return np.zeros((0, rank), np.int8)
    head, lows, counts = bits.index_width(2 * reach + 1), [], []
    for _ in range(rank):
        low, high = uints(stream.take(2 * head), head).astype(np.int64) - reach
        if not low <= high <= reach:
            raise WireError(f"levels from {low} to {high}, but they reach {reach} at most")
        often = _counts(stream, n, int(high - low + 1))
        if not (often[0] and often[-1]):
            raise WireError("the least or the greatest level does not occur")
        lows.append(low)
        counts.append(often)
    columns = _decode(stream, n, counts, reserve)
    return np.stack([c + low for c, low in zip(columns, lows, strict=True)], 1).astype(np.int8)


def _counts(stream: Reader, n: int, k: int) -> np.ndarray:
    """How often each of k symbols occurs among n."""
    width = n.bit_length()
    flat = stream.take(k * width)
    often = uints(flat, width) if width else np.zeros(k, np.uint32)
    if often.sum(dtype=np.int64) != n:
        raise WireError(f"frequencies of {often.sum(dtype=np.int64)} symbols for {n} rows")
    return often


def _coder() -> Any:
    try:
        import constriction
    except ImportError as e:
        raise WireError(
            "entropy-coded fields are written with constriction: pip install 'fedras_jax[wire]'"
        ) from e
    return constriction.stream


def _model(often: np.ndarray) -> tuple[np.ndarray, Any]:
    """The symbols that occur, and a model of their frequencies."""
    occurs = np.flatnonzero(often)
    share = often[occurs] / often.sum()
    return occurs, _coder().model.Categorical(share.astype(np.float64), perfect=False)


def _code(columns: Iterable[np.ndarray], counts: Sequence[np.ndarray]) -> np.ndarray:
    """The columns' symbols through one coder; a column of one symbol needs no bits."""
    varied = [(c, often) for c, often in zip(columns, counts, strict=True) if _varied(often)]
    if not varied:
        return np.zeros(0, np.uint8)
    encoder = _coder().queue.RangeEncoder()
    for column, often in varied:
        occurs, model = _model(often)
        encoder.encode(np.searchsorted(occurs, column).astype(np.int32), model)
    return uint_bits(encoder.get_compressed(), 32)


def _decode(stream: Reader, n: int, counts: Sequence[np.ndarray], reserve: int) -> list[np.ndarray]:
    """The inverse of `_code`: int64 [n] symbols of every column."""
    if not any(map(_varied, counts)):
        return [np.full(n, np.argmax(often) if n else 0) for often in counts]
    words = uints(stream.take((stream.left - reserve) // 32 * 32), 32)
    decoder = _coder().queue.RangeDecoder(words)
    columns = []
    for often in counts:
        if not _varied(often):
            columns.append(np.full(n, np.argmax(often)))
            continue
        occurs, model = _model(often)
        try:
            columns.append(occurs[decoder.decode(model, n)])
        except AssertionError as e:  # how constriction says that no encoder writes such words
            raise WireError("the coded words hold no such symbols") from e
        if not np.array_equal(np.bincount(columns[-1], minlength=often.size), often):
            raise WireError("symbols do not have the frequencies that the payload says")
    if not np.array_equal(_code(columns, counts), uint_bits(words, 32)):
        raise WireError("the coded words are not what an encoder writes, or more follows them")
    return columns


def _varied(often: np.ndarray) -> bool:
    return int(np.count_nonzero(often)) > 1
