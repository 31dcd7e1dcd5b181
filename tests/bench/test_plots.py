"""What a report says is what its pictures and its page show."""

from __future__ import annotations

import re
import struct

import pytest

from bench import plots
from bench.report import Report

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture
def report():
    made = Report("peers", {"dataset": "x<y", "skipped": {"redis": "no address"}})
    for system, speed in (("vecmem", 2), ("other", 1)):
        for ef, recall in ((16, 0.9), (32, 0.97), (64, 0.99)):
            made.add(system, f"recall_at_10_ef_{ef}", recall, "ratio")
            made.add(system, f"qps_16_callers_ef_{ef}", speed * 10_000 / ef, "1/s")
        made.add(system, "qps_16_callers", speed * 500, "1/s")
        made.add(system, "recall_at_10", 0.97, "ratio")
    made.add("vecmem", "qps_64_callers", 1_500, "1/s")
    made.add("vecmem", "restart_seconds", 1.5, "s")
    made.add("vecmem", "recall_at_10_share_percent_0.1", 1, "ratio")
    made.add("vecmem", "recall_at_10_share_percent_50", 0.98, "ratio")
    return made


def test_figures_on_an_axis_are_lines_and_the_others_bars(report):
    lines, bars = plots.sorted_figures(report.figures)
    assert set(lines) == {
        ("recall_at_10", "ef"),
        ("qps_16_callers", "ef"),
        ("qps", "callers"),
        ("recall_at_10", "share_percent"),
    }
    assert lines["recall_at_10", "share_percent"] == ({"vecmem": [(0.1, 1), (50, 0.98)]}, "ratio")
    assert lines["qps", "callers"][0] == {"vecmem": [(16, 1_000), (64, 1_500)], "other": [(16, 500)]}
    assert bars == {
        "recall_at_10": ({"vecmem": 0.97, "other": 0.97}, "ratio"),
        "restart_seconds": ({"vecmem": 1.5}, "s"),
    }


def test_a_line_of_one_point_is_a_bar_under_its_full_name():
    report = Report("x", {})
    report.add("a", "qps_16_callers", 5, "1/s")
    report.add("b", "qps_16_callers", 7, "1/s")
    assert plots.sorted_figures(report.figures) == ({}, {"qps_16_callers": ({"a": 5, "b": 7}, "1/s")})


def test_rate_is_drawn_over_recall():
    recalls = {"vecmem": [(16.0, 0.9), (32.0, 0.97)], "other": [(16.0, 0.8)]}
    rates = {
        "vecmem": [(16.0, 2_000.0), (32.0, 1_000.0), (64.0, 500.0)],
        "other": [(16.0, 90.0)],
        "third": [(1.0, 1.0)],
    }
    assert plots.against(recalls, rates) == {
        "vecmem": [(0.9, 2_000), (0.97, 1_000)],
        "other": [(0.8, 90)],
        "third": [],
    }


def test_the_page_shows_every_picture_and_every_figure(report, tmp_path):
    written = plots.write(report, tmp_path / "pictures")
    names = [path.name for path in written]
    assert names == [
        "peers-qps_16_callers-by-ef.png",
        "peers-qps-by-callers.png",
        "peers-recall_at_10-by-share_percent.png",
        "peers-recall_at_10.png",
        "peers-in-s.png",
    ]
    for path in written:
        head = path.read_bytes()[:24]
        assert head.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", head[16:])
        assert width > 500
        assert height > 250
    page = (tmp_path / "pictures" / "index.html").read_text()
    assert re.findall(r'<img src="([^"]+)"', page) == names
    for figure in report.figures:
        assert figure.name in page
    assert '<td class="value">1,500' in page
    assert "x&lt;y" in page
    assert "no address" in page
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == set(names), "links stay in the directory"
