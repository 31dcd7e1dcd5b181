"""The model of larger clusters: it agrees with what is known, with itself, and with what it is fitted to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import scaling
from bench.report import Report
from vecmem.cluster import member
from vecmem.cluster import topology as layout

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def part_ms():
    return scaling.lognormal(1.0, 4.0, 50_000, np.random.default_rng(1))


def measured(part_ms, shards, part_cost_ms, **more):
    gathered = 0.4 + scaling.simulated(part_ms, shards, part_cost_ms=part_cost_ms, cores=2, seed=2)
    given = {"queries_per_second": 1_000.0 / shards, "points_per_second": 1.0} | more
    return scaling.Measured(shards=shards, gathered_ms=gathered, part_ms=part_ms + 0.4, empty_ms=0.4, **given)


def test_a_lognormal_distribution_has_the_percentiles_it_is_made_of(part_ms):
    assert np.percentile(part_ms, 50) == pytest.approx(1.0, rel=0.02)
    assert np.percentile(part_ms, 99) == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("shards", [1, 2, 8, 50])
def test_without_costs_and_with_machines_of_their_own_a_gather_is_its_slowest_part(part_ms, shards):
    found = scaling.simulated(part_ms, shards, part_cost_ms=0.0)
    for share in (0.5, 0.9):
        assert np.quantile(found, share) == pytest.approx(scaling.gather_quantile(part_ms, shards, share), rel=0.05)


@pytest.mark.parametrize("shards", [1, 3, 9])
@pytest.mark.parametrize("hedged", [False, True])
def test_the_chance_of_a_slow_shard_is_that_of_the_simulation(shards, hedged):
    fast_ms = np.array([1.0])
    hedge = scaling.Hedge(after_ms=5.0) if hedged else None
    slowness = scaling.Slowness(chance=0.1, ms=1_000.0)
    found = scaling.simulated(fast_ms, shards, part_cost_ms=0.0, slowness=slowness, hedge=hedge)
    expected = scaling.chance_of_slow(0.1, shards, hedged=hedged)
    assert np.mean(found > 500.0) == pytest.approx(expected, abs=0.02)


def test_the_same_seed_gives_the_same_times_and_another_one_others(part_ms):
    once, again, other = (scaling.simulated(part_ms, 4, part_cost_ms=0.3, seed=seed) for seed in (5, 5, 6))
    assert (once == again).all()
    assert (once != other).any()


def test_more_of_anything_costs_more_and_more_processors_less(part_ms):
    def median(shards, cost, cores):
        return float(np.median(scaling.simulated(part_ms, shards, part_cost_ms=cost, cores=cores)))

    by_shards = [median(shards, 0.3, 2) for shards in (2, 4, 8, 16)]
    assert by_shards == sorted(by_shards)
    by_cost = [median(8, cost, 2) for cost in (0.0, 0.2, 1.0)]
    assert by_cost == sorted(by_cost)
    by_cores = [median(8, 0.3, cores) for cores in (1, 2, 4, 8)]
    assert by_cores == sorted(by_cores, reverse=True)
    assert median(8, 0.3, 0) <= by_cores[-1]


def test_on_shared_processors_no_work_is_lost_or_done_twice():
    """Parts of equal length in even rounds."""
    found = scaling.simulated(np.array([2.0]), 8, part_cost_ms=0.0, cores=2, trials=3)
    assert found.tolist() == [8.0] * 3


def test_a_hedge_needs_another_machine(part_ms):
    with pytest.raises(ValueError, match="second member"):
        scaling.simulated(part_ms, 4, part_cost_ms=0.3, cores=2, hedge=scaling.Hedge(after_ms=1.0))


@pytest.mark.parametrize("part_cost_ms", [0.2, 1.5])
def test_the_cost_of_a_part_is_found_again(part_ms, part_cost_ms):
    assert scaling.fitted(measured(part_ms, 2, part_cost_ms), 2) == pytest.approx(part_cost_ms, rel=0.1)


def test_predictions_stand_beside_what_was_measured(part_ms):
    """Measurements that follow the model are met by it."""
    taken_ms = {shards: 1.0 + shards * 1.0 + 0.3 * (shards - 1) for shards in (1, 2, 4, 8)}
    runs = [measured(part_ms, shards, 0.5, queries_per_second=2e3 / taken) for shards, taken in taken_ms.items()]
    report = Report("cluster", {})
    scaling.compare(report, runs, cores=2, callers=16)
    figures = {figure.name: figure.value for figure in report.figures}
    assert {figure.system for figure in report.figures} == {"model"}
    assert len(figures) == len(report.figures)
    for shards in taken_ms:
        for name in ("query_ms_p50", "query_ms_p99", "qps_16_callers"):
            assert figures[f"{name}_to_measured_shards_{shards}"] == pytest.approx(1.0, rel=0.1), (name, shards)


@pytest.mark.parametrize("shards", [1, 8, 500])
def test_a_topology_has_the_size_of_the_message(shards):
    assert scaling.topology_bytes(shards) == layout.initial("vecmem", shards).ByteSize()
    assert scaling.topology_bytes(shards, ranges_per_shard=4) >= scaling.topology_bytes(shards)


def test_what_is_asked_grows_with_the_square_of_the_nodes():
    few, many = (scaling.coordination(nodes, 100) for nodes in (300, 3_000))
    assert many.requests_per_second == 10 * few.requests_per_second
    assert 90 < many.answers_per_second / few.answers_per_second < 100


def test_the_load_of_the_logs_is_in_proportion():
    one = scaling.log_load(1, writes_per_second=100.0, write_bytes=500.0, lease_seconds=2.0, servers=3)
    assert one.appends_per_second == 102.0
    assert one.disk_bytes_per_second == 51_000.0
    assert one.network_bytes_per_second == 51_000.0 * 7 / 3
    ten = scaling.log_load(10, writes_per_second=100.0, write_bytes=500.0, lease_seconds=2.0, servers=3)
    assert ten.appends_per_second == pytest.approx(10 * one.appends_per_second)
    gathered = scaling.log_load(
        1, writes_per_second=100.0, write_bytes=500.0, lease_seconds=2.0, servers=3, writes_per_message=50.0
    )
    assert gathered.appends_per_second == 4.0


def test_the_scenario_gives_the_same_figures_again():
    def figures():
        command = [sys.executable, "-m", "bench", "scaling", "--json", "--shard-counts", "1,10,500", "--trials", "500"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["figures"]

    found = figures()
    assert found == figures()
    by_name = {figure["name"]: figure["value"] for figure in found}
    for name in (
        "query_ms_p50",
        "topology_bytes",
        "coordination_requests_per_second",
        "gathers_that_meet_a_slow_shard",
    ):
        values = [by_name[f"{name}_shards_{shards}"] for shards in (1, 10, 500)]
        assert values == sorted(values), name
    assert by_name["query_ms_p99_slow_hedged_shards_10"] < by_name["query_ms_p99_slow_shards_10"]


def test_the_page_has_the_figures_of_the_model():
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    table = text.partition("<!-- model: begin -->")[2].partition("<!-- model: end -->")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    command = [sys.executable, "-m", "bench", "scaling", "--json", "--shard-counts", "10,100,500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    found = {figure["name"]: figure["value"] for figure in json.loads(done.stdout)["figures"]}
    assert len(rows) > 10
    for name, *cells in rows[2:]:
        for shards, cell in zip((10, 100, 500), cells, strict=True):
            expected = found[f"{name}_shards_{shards}"]
            assert float(cell.replace(",", "")) == pytest.approx(expected, rel=0.01), (name, shards)


def test_the_model_goes_by_the_renewals_that_there_are() -> None:
    assert scaling.RENEWALS_PER_LEASE == member.RENEWALS_PER_LEASE
