"""The three files of the neural collaborative filtering (NCF) evaluation protocol.

`X.train.rating` holds training pairs, `X.test.rating` each user's held-out item and
`X.test.negative` the items that it is ranked against: "(user,item)" and then the negatives, tab
separated. The first two have the columns user, item and optionally rating and time.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedras_jax.data.columns import as_ids, index_ids, integers_if_canonical
from fedras_jax.data.filters import drop_repeats
from fedras_jax.data.interactions import HeldOut, Interactions, row_offsets
from fedras_jax.data.storage import FileSet, sibling
from fedras_jax.data.tables import Columns, Events, bare_events, first_line, parse_text
from fedras_jax.errors import DataError

SUFFIXES = (".train.rating", ".test.rating", ".test.negative")


def prefix_of(plain_name: str) -> str | None:
    """X of `X.train.rating` and its two companions; None for other names."""
    for suffix in SUFFIXES:
        if plain_name.endswith(suffix):
            return plain_name.removesuffix(suffix)
    return None


def read_triple(
    files: FileSet, beside: str, prefix: str, name: str, columns: Columns | None
) -> Interactions:
    """Reads the triple that lies beside one of its files.

    Users and items are those of all three files, in the sorted order of their original ids. A
    user's history ends with the held-out item, unless the files have times that say otherwise.
    Users without a test line have the held-out item -1.

    Args:
        files: where the files lie.
        beside: the name of one of the three in `files`.
        prefix: what the three names share.
        name: the dataset's name.
        columns: `{"time": None}` to ignore times.

    Raises:
        DataError: one of the three is missing or malformed, or they contradict each other.
    """
    parts = {suffix: sibling(files, beside, prefix + suffix) for suffix in SUFFIXES}
    if missing := [prefix + suffix for suffix, part in parts.items() if part is None]:
        raise DataError(
            f"{files}: expected {', '.join(prefix + s for s in SUFFIXES)} (each plain, .gz or "
            f".zip) in one folder, {' and '.join(missing)} is missing."
        )
    train_file, test_file, negative_file = (str(part) for part in parts.values())
    train, test = (
        bare_events(files.read(f), files.where(f), "\t", columns, rated=False, minimum=2)
        for f in (train_file, test_file)
    )
    where = files.where(negative_file)
    key_user, key_item, negatives = _negatives(files.read(negative_file), where)

    # Ids are integers only if they are in all three files.
    user_ids, (train_user, test_user, key_user) = _index_together(
        [train.users, test.users, key_user], "user", where
    )
    item_ids, (train_item, test_item, key_item, *drawn) = _index_together(
        [train.items, test.items, key_item, *negatives], "item", where
    )
    held_out = _held_out(
        test_user, test_item, key_user, key_item, np.stack(drawn, axis=1), user_ids, where
    )
    users, items, times = drop_repeats(
        np.concatenate([train_user, test_user]),
        np.concatenate([train_item, test_item]),
        _joint_times(train, test),
    )
    return Interactions(
        name=name,
        client_ids=user_ids,
        item_ids=item_ids,
        offsets=row_offsets(users, len(user_ids)),
        items=items.astype(np.int32),
        times=None if times is None else np.floor(times).astype(np.int64),
        held_out=held_out,
    )


def _negatives(data: bytes, where: str) -> tuple[pa.Array, pa.Array, list[pa.Array]]:
    """The user and the item of each row's "(user,item)", and the columns of negatives."""
    line = first_line(data)
    n_columns = line.count("\t") + 1
    if n_columns < 2:
        raise DataError(
            f"{where}: expected '(user,item)' and at least one negative a row, tab separated; "
            f"found {line[:80]!r}."
        )
    keys, *negatives = parse_text(data, where, "\t", n_columns, range(n_columns))
    pairs = pc.call_function(
        "extract_regex",
        [keys],
        pc.ExtractRegexOptions(r"^\(\s*(?P<user>[^,]+?)\s*,\s*(?P<item>[^)]+?)\s*\)$"),
    )
    if bad := np.flatnonzero(pairs.is_null().to_numpy(zero_copy_only=False)).tolist():
        raise DataError(
            f"{where}: expected '(user,item)' in the first column, found "
            f"{keys[bad[0]].as_py()!r} in row {bad[0] + 1}."
        )
    return pairs.field("user"), pairs.field("item"), negatives


def _index_together(
    parts: list[pa.Array], what: str, where: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Numbers the ids of several columns by the sorted order of all of them."""
    texts = pa.concat_arrays([part.cast(pa.large_string()) for part in parts])
    ids, index = index_ids(integers_if_canonical(as_ids(texts, what, where)))
    return ids, np.split(index, np.cumsum([len(part) for part in parts])[:-1])


def _held_out(
    test_user: np.ndarray,
    test_item: np.ndarray,
    key_user: np.ndarray,
    key_item: np.ndarray,
    negatives: np.ndarray,
    user_ids: np.ndarray,
    where: str,
) -> HeldOut:
    """One row a client from the test lines and the negatives, joined by user."""
    n_clients = len(user_ids)
    test = np.full(n_clients, -1, np.int32)
    keyed = np.full(n_clients, -1, np.int32)
    candidates = np.full((n_clients, negatives.shape[1]), -1, np.int32)
    for user, item, target, file in (
        (test_user, test_item, test, "test.rating"),
        (key_user, key_item, keyed, "test.negative"),
    ):
        if repeated := np.flatnonzero(np.bincount(user) > 1).tolist():
            raise DataError(
                f"{where}: expected one line a user in {file}, user {user_ids[repeated[0]]} "
                "has several."
            )
        target[user] = item
    if differ := np.flatnonzero(test != keyed).tolist():
        raise DataError(
            f"{where}: expected the (user,item) pairs of test.rating, {len(differ)} differ, the "
            f"first for user {user_ids[differ[0]]}; the files belong to different splits."
        )
    candidates[key_user] = negatives
    return HeldOut(test=test, candidates=candidates)


def _joint_times(train: Events, test: Events) -> np.ndarray | None:
    """Times of both files in a row, or None: half a history's times order nothing."""
    if train.times is None or test.times is None:
        return None
    return np.concatenate([train.times, test.times])
