import csv

import numpy as np
import pytest

from fedras_jax import report
from fedras_jax.spec import Spec


def _summary(up, hr=0.5, speed=10.0):
    return {
        "metrics": {"hr@10": hr, "ndcg@10": hr / 2},
        "payload": {
            "up_bytes_mean": up,
            "down_bytes_mean": 1000.0,
            "up_reduction": 1 - up / 1000,
            "up_reduction_against_rows": 1 - up / 500,
            "down_reduction": 0.0,
        },
        "speed": {"clients_per_s": speed},
        "clients": {"total": 60},
    }


def test_comparison_averages_over_seeds():
    rows = report.comparison(
        {
            "dense": [_summary(1000.0)],
            "actions:k=4": [_summary(20.0, hr=0.4), _summary(40.0, hr=0.6)],
        }
    )
    assert [row["arm"] for row in rows] == ["dense", "actions:k=4"]
    assert rows[1]["up_bytes"] == pytest.approx(30)
    assert rows[1]["hr@10"] == pytest.approx(0.5)
    assert rows[1]["up_reduction"] == pytest.approx(0.97)
    assert rows[1]["runs"] == 2


def test_table_is_aligned_and_says_what_is_larger():
    lines = report.render(report.comparison({"dense": [_summary(1000.0)]})).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "-100.00%" in lines[2]  # dense is twice the touched rows
    assert "0.00%" in lines[2]


def test_heading_says_among_how_many_items_there_are():
    for candidates, clients, told in (
        (99, {}, "ranked among 99 sampled items.\n"),
        (
            99,
            {"candidates_mean": 45.25, "candidates_least": 38},
            "45.2 sampled items on average, 38",
        ),
        (99, {"candidates_mean": 48.0, "candidates_least": 48}, "ranked among 48 sampled items.\n"),
        (0, {"candidates_mean": 45.25, "candidates_least": 38}, "among all unseen items.\n"),
    ):
        summary = {"clients": {"total": 60, **clients}}
        assert told in report.heading(Spec(candidates=candidates), summary, [0])


def test_comparison_is_written_in_full(tmp_path):
    rows = report.comparison({"dense": [_summary(1000.0 / 3)]})
    report.write_comparison(tmp_path, rows)
    with (tmp_path / "comparison.csv").open() as file:
        stored = next(csv.DictReader(file))
    assert float(stored["up_bytes"]) == 1000.0 / 3


def test_folder_names_are_plain():
    assert report.folder_name("actions:k=16,dtype=float16") == "actions-k16-dtypefloat16"
    assert report.folder_name("dense") == "dense"


def test_plot_draws_every_arm_and_time_where_it_passes(tmp_path):
    widths = []
    for seconds in (0.0, 60.0):
        rows = [
            {"round": i, "up_bytes": 5.0, "clients": 2, "clock_s": seconds * i}
            | ({"ndcg@10": 0.1 * i} if i % 2 else {})
            for i in range(1, 6)
        ]
        report.plot(tmp_path / "p.png", Spec(), {"a": rows, "b": rows})
        png = (tmp_path / "p.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        width, height = np.frombuffer(png[16:24], ">u4")
        assert height > 400
        widths.append(width)
    assert widths[1] > widths[0] > 1000
