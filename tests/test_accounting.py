"""What rounds cost, against sums by hand."""

import functools

import jax
import numpy as np
import pytest

from fedras_jax import accounting, network
from fedras_jax.types import Algorithm, Arrived, Field, Outcome, RoundInfo, Sizes

ALGORITHM = Algorithm(
    init=lambda: None,
    step=lambda: None,
    sizes=Sizes(items=100, dim=4),
    fields=(Field("item", 1, "set", (100,), "set"), Field("row", 128, "row"), Field("shared", 32)),
    n_shared=3,
    down_fields=(Field("change", 10),),
    snapshot_bits=1000,
)
SHARED = 96  # bits


def info() -> RoundInfo:
    """Three rounds of five slots; nobody is drawn in the first.

    In the second everyone has missed what the first published: client 7 is done, 2 fails while it
    fetches, 5 while it sends, 9 has no examples, and a slot is empty. In the third 7 follows, 2 has
    missed more than the whole table takes, 9 holds it, 5 fails at once, and a slot is empty.
    """
    outcome = Outcome(
        seconds=[[0] * 5, [9.5, 1.5, 8.0, 0, 0], [4.0, 6.0, 5.0, 0, 0]],
        phases=[
            [[0] * 5] * 5,
            [[0.5, 2, 3, 0, 4], [0.5, 1, 0, 0, 0], [1, 1, 4, 1, 1], [0] * 5, [0] * 5],
            [[0, 1, 2, 0, 1], [1, 2, 2, 0.25, 0.75], [0, 0, 4, 0, 1], [0] * 5, [0] * 5],
        ],
        finished=[[1] * 5, [1, 0, 0, 1, 1], [1, 1, 1, 0, 1]],
        share_down=[[1] * 5, [1, 0.5, 1, 1, 1], [1, 1, 1, 0, 1]],
        share_up=[[1] * 5, [1, 0, 0.25, 1, 1], [1, 1, 1, 0, 1]],
    )
    arrived = Arrived(
        client=[[0] * 6, [7, 0, 0, 0, 0, 0], [7, 2, 9, 7, 0, 0]],
        weight=[[0] * 6, [1.0, 0, 0, 0, 0, 0], [0.5, 1, 0, 0.25, 0, 0]],
        staleness=[[0] * 6, [0, 5, 5, 5, 5, 5], [0, 0, 9, 3, 9, 9]],
    )
    found = RoundInfo(
        client=[[0] * 5, [7, 2, 5, 9, 0], [7, 2, 9, 5, 0]],
        mask=[[0] * 5, [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]],
        role=[[0] * 5] * 3,
        loss=[[0] * 5, [0.5, 0.25, 0.75, 0, 0], [1.0, 2.0, 3.0, 2.0, 0]],
        n_examples=[[0] * 5, [10, 4, 60, 0, 0], [10, 4, 8, 60, 0]],
        n_short=[[0] * 5, [0, 2, 1, 0, 0], [0, 3, 0, 0, 0]],
        n_actions=[[0] * 5, [4, 2, 6, 0, 0], [1, 2, 3, 2, 0]],
        distortion=[[0] * 5, [0.5, 0.125, 0.125, 0, 0], [0.5] * 4 + [0]],
        counts_up=[
            [[0] * 3] * 5,
            [[17, 2, 3], [5, 1, 3], [9, 2, 3], [0] * 3, [0] * 3],
            [[17, 2, 3], [5, 1, 3], [8, 3, 3], [9, 2, 3], [0] * 3],
        ],
        synced=[[0] * 5, [0, 0, 0, 0, 1], [1, 0, 2, 0, 2]],
        counts_down=[[30], [40], [200]],
        outcome=outcome,
        weight=[[0] * 5, [1.0, 0, 0, 0, 0], [0.5, 1.0, 0, 0, 0]],
        arrived=arrived,
        seconds=[0.25, 9.5, 6.0],
        spent=[[0] * 5, [0.5, 2, 3, 0, 4], [1, 2, 2, 0.25, 0.75]],
    )
    lists = functools.partial(jax.tree.map, np.asarray, is_leaf=lambda x: isinstance(x, list))
    found = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, lists(found))
    flags = found.outcome.replace(finished=found.outcome.finished.astype(bool))
    return found.replace(mask=found.mask.astype(bool), outcome=flags)


@functools.cache
def added():
    return accounting.Account(ALGORITHM, 12).add(info())


def column(name: str) -> list:
    return [row[name] for row in added()[0]]


def test_bytes_up():
    """Header, fields and shared parameters; who failed is charged for a share, in whole bytes."""
    done = (160 + 17 + 2 * 128 + SHARED) / 8
    failed = 17  # a quarter of (160 + 9 + 2 * 128 + SHARED) / 8 = 65.125 is 16.3
    small, large = (160 + 5 + 128 + SHARED) / 8, (160 + 8 + 3 * 128 + SHARED) / 8
    assert column("up_bytes") == [0, done + failed, done + small + large]


def test_bytes_down():
    """Clients fetch what they missed or the whole, those without examples too."""
    published = [160 + 300, 160 + 400, 160 + 2000]
    assert column("published_bytes") == [x / 8 for x in published]
    first, second = ((x + SHARED) / 8 for x in published[:2])
    failed = 35  # half of 69.5 is 34.75
    whole = (1000 + SHARED) / 8
    assert published[0] + published[1] > 1000
    assert column("down_bytes") == [0, first + failed + first + first, second + whole]


def test_the_first_table_is_free():
    """The run's second round, as if it were its first: everyone holds the table of round 0."""
    first = jax.tree.map(lambda x: x[1:2], info()).replace(synced=np.zeros((1, 5), np.int32))
    rows, clients = accounting.Account(ALGORITHM, 12).add(first)
    assert rows[0]["down_bytes"] == 0
    assert not clients["down_bytes"].any()


def test_bytes_of_lossless_rows():
    """A bitmap of 100 where ids of 7 bits each are more."""

    def rows(n):
        return (160 + min(7 * n, 100) + 128 * n + SHARED) / 8

    third = rows(10) + rows(4) + rows(8) + rows(60)
    assert column("row_bytes") == [0, rows(10) + rows(4) + rows(60), third]


def test_the_clock_adds_up():
    assert column("seconds") == [0.25, 9.5, 6]
    assert column("clock_s") == [0.25, 9.75, 15.75]
    assert column("round") == [1, 2, 3]


def test_what_the_server_waited_for():
    spent = np.array([column(f"{phase}_s") for phase in network.PHASES]).T
    np.testing.assert_array_equal(spent, [[0] * 5, [0.5, 2, 3, 0, 4], [1, 2, 2, 0.25, 0.75]])


def test_who_took_part():
    assert column("clients") == [0, 4, 4]
    assert column("failed") == [0, 2, 1]
    assert column("arrived") == [0, 1, 3]
    assert column("staleness") == [0, 0, 1]
    assert column("examples") == [0, 74, 82]
    assert column("short_of_negatives") == [0, 2, 1]


def test_how_often_each_client_took_part():
    account = accounting.Account(ALGORITHM, 12)
    account.add(info())
    drawn, counted = np.zeros((2, 12), int)
    drawn[[7, 2, 5, 9]] = 2
    counted[[7, 2]] = 3, 1
    np.testing.assert_array_equal(account.drawn, drawn)
    np.testing.assert_array_equal(account.counted, counted)


def test_nothing_published_is_free():
    quiet = info()
    down = quiet.counts_down.copy()
    down[0] = 0
    rows, _ = accounting.Account(ALGORITHM, 12).add(quiet.replace(counts_down=down))
    assert rows[0]["published_bytes"] == 0
    assert rows[1]["down_bytes"] == 0  # what everyone holds is still the newest


def test_means_are_over_those_with_examples():
    assert column("loss") == [0, 0.5, 2]
    assert column("n_actions") == [0, 4, 2]
    assert column("distortion") == [0, 0.25, 0.5]


def test_a_table_of_clients():
    """A row for everyone who was drawn, in order; empty slots have none."""
    table = added()[1]
    expected = {
        "round": [2, 2, 2, 2, 3, 3, 3, 3],
        "client": [7, 2, 5, 9, 7, 2, 9, 5],
        "finished": [1, 0, 0, 1, 1, 1, 1, 0],
        "weight": [1, 0, 0, 0, 0.5, 1, 0, 0],
        "examples": [10, 4, 60, 0, 10, 4, 8, 60],
        "n_actions": [4, 2, 6, 0, 1, 2, 3, 2],
        "distortion": [0.5, 0.125, 0.125, 0, 0.5, 0.5, 0.5, 0.5],
        "payload_bytes": [66.125, 48.625, 65.125, 0, 66.125, 48.625, 81, 65.125],
        "up_bytes": [66.125, 0, 17, 0, 66.125, 48.625, 81, 0],
        "down_bytes": [69.5, 35, 69.5, 69.5, 82, 137, 0, 0],
        "seconds": [9.5, 1.5, 8, 0, 4, 6, 5, 0],
    }
    assert list(table) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(table[name], values, err_msg=name)


def test_the_two_tables_agree():
    rows, clients = added()
    for name in ("up_bytes", "down_bytes"):
        for row in rows:
            assert clients[name][clients["round"] == row["round"]].sum() == row[name]


@pytest.mark.parametrize("cut", [1, 2])
def test_segments_add_up_to_a_run(cut):
    account = accounting.Account(ALGORITHM, 12)
    first = account.add(jax.tree.map(lambda x: x[:cut], info()))
    second = account.add(jax.tree.map(lambda x: x[cut:], info()))
    assert first[0] + second[0] == added()[0]
    for name, values in added()[1].items():
        np.testing.assert_array_equal(np.append(first[1][name], second[1][name]), values)


def test_rounds_on_the_device_are_the_same():
    rows, clients = accounting.Account(ALGORITHM, 12).add(jax.tree.map(jax.numpy.asarray, info()))
    assert rows == added()[0]
    for name, values in added()[1].items():
        np.testing.assert_array_equal(clients[name], values)


def test_sums_are_exact_beyond_float32():
    """A million rows of 64 float32 make 2 Gbit, and a further bit is not lost."""
    fields = (Field("row", 2048, "row"), Field("bit", 1), Field("shared", 32))
    big = info()
    counts = np.zeros((3, 5, 3), np.int64)
    counts[1, 0] = [1_000_000, 1, 3]
    rows, _ = accounting.Account(ALGORITHM._replace(fields=fields), 12).add(
        big.replace(counts_up=counts.astype(np.int32))
    )
    failed = 5  # a quarter of a header
    assert rows[1]["up_bytes"] == (160 + 2_048_000_000 + 1 + SHARED) / 8 + failed


def test_payload():
    """Per client and round, against 100 x 4 float32 with 3 shared parameters."""
    rows = added()[0]
    found = accounting.payload(ALGORITHM, rows)
    dense = (160 + 32 * 403) / 8
    up, down, lossless = (sum(column(name)) / 8 for name in ("up_bytes", "down_bytes", "row_bytes"))
    assert found == {
        "dense_bytes": dense,
        "table_bytes": 125,
        "shared_bytes": 12,
        "row_bytes_mean": lossless,
        "up_bytes_mean": up,
        "down_bytes_mean": down,
        "up_reduction": 1 - up / dense,
        "up_reduction_against_rows": 1 - up / lossless,
        "down_reduction": 1 - down / dense,
        "total_reduction": 1 - (up + down) / (2 * dense),
    }


def test_payload_of_nobody():
    found = accounting.payload(ALGORITHM, added()[0][:1])
    assert found["up_bytes_mean"] == 0
    assert found["up_reduction_against_rows"] == 0
    assert found["total_reduction"] == 1


def test_clock():
    assert accounting.clock(added()[0]) == {
        "seconds": 15.75,
        "latency_s": 1.5,
        "download_s": 4,
        "train_s": 5,
        "encode_s": 0.25,
        "upload_s": 4.75,
    }
