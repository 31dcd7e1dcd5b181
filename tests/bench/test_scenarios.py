"""Every scenario runs end to end on little data, prints one JSON object with its rows, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.__main__ import SCENARIOS
from bench.engines.registry import BY_URL, PEERS
from tests.support.fixtures import later

ROOT = Path(__file__).resolve().parent.parent.parent
SLOW = ("ann", "churn", "cluster", "kv", "memory", "peers", "scale")
"""Scenarios that take long however little they measure."""
SHARES = ("50", "20", "10", "5", "1", "0.1")

ARGUMENTS = {
    "ann": ("--callers", "4", "--upserts", 20, "--grpc-engine", "both"),
    "filter": (),
    "churn": ("--rounds", 1),
    "ingest": ("--seconds", 0.5, "--rate", 400, "--queries", 200),
    "memory": (),
    "peers": ("--systems", "vecmem,hnswlib,faiss,qdrant,redis"),
    "scale": ("--sizes", "300,600", "--dimension", 16),
    "kernel": (),
    "rpc": ("--calls", 200),
    "cluster": (
        *(
            "--without",
            "moving",
            "--kills",
            1,
            "--nats-kills",
            1,
            "--handovers",
            1,
            "--writes",
            20,
            "--lease-seconds",
            1,
        ),
        *("--ingest-rounds", 1, "--gather-shards", 2, "--shard-counts", "1,2", "--callers", 4),
    ),
    "scaling": ("--shard-counts", "1,4", "--trials", 200),
    "kv": ("--operations", 2_000, "--keys", 2_000, "--expiring", 1_000, "--members", 1_500),
}
ROWS_BY_SCENARIO = {
    "ann": {
        "vecmem": {
            "ingest_points_per_second": "1/s",
            "graph_complete_seconds": "s",
            "rss_bytes_per_point": "bytes",
            "recall_at_10": "ratio",
            "latency_ms_p50_1_caller": "ms",
            "latency_ms_p99_1_caller": "ms",
            "qps_1_caller": "1/s",
            "qps_4_callers": "1/s",
            "empty_call_ms_p50_1_caller": "ms",
            "empty_call_ms_p99_1_caller": "ms",
            "empty_calls_per_second_4_callers": "1/s",
            "latency_to_empty_call_ratio_1_caller": "ratio",
            "durable_upsert_ms_p50": "ms",
            "durable_upsert_ms_p99": "ms",
            "restart_seconds": "s",
        },
        "vecmem-grpcio": {"recall_at_10": "ratio", "qps_4_callers": "1/s", "empty_call_ms_p50_1_caller": "ms"},
        "hnswlib": {"recall_at_10": "ratio", "graph_complete_seconds": "s", "latency_ms_p50_1_caller": "ms"},
    },
    "filter": {
        "vecmem": {"recall_at_10": "ratio", "qps_16_callers": "1/s"}
        | {
            f"{name}_{infix}share_percent_{share}": unit
            for infix in ("", "region_")
            for share in SHARES
            for name, unit in (
                ("recall_at_10", "ratio"),
                ("qps_16_callers", "1/s"),
                ("qps_ratio_to_unfiltered", "ratio"),
            )
        }
    },
    "churn": {
        "vecmem": {
            "recall_at_10_round_0": "ratio",
            "recall_at_10_round_1": "ratio",
            "qps_16_callers_round_1": "1/s",
            "recall_at_10_fresh": "ratio",
            "recall_at_10_after_churn": "ratio",
            "qps_16_callers_ratio_to_fresh": "ratio",
        }
    },
    "ingest": {
        "vecmem": {
            "ingest_points_per_second": "1/s",
            "ingest_acknowledged_seconds": "s",
            "graph_complete_seconds": "s",
            "latency_ms_p99_idle": "ms",
            "paced_ingest_points_per_second": "1/s",
            "bulk_load_points_per_second": "1/s",
        }
    },
    "memory": {
        "vecmem": {
            f"{name}_{storage}": unit
            for storage in ("float32", "float16")
            for name, unit in (
                ("rss_bytes_per_point", "bytes"),
                ("rss_to_raw_float32_ratio", "ratio"),
                ("rss_to_raw_float32_ratio_after_restart", "ratio"),
                ("restart_seconds", "s"),
                ("recall_at_10", "ratio"),
            )
        }
    },
    "peers": {
        system: {
            "ingest_points_per_second": "1/s",
            "graph_complete_seconds": "s",
            "recall_at_10": "ratio",
            "ef": "candidates",
            "latency_ms_p50_1_caller": "ms",
            "latency_ms_p99_1_caller": "ms",
            "qps_1_caller": "1/s",
            "qps_16_callers": "1/s",
            "recall_at_10_ef_16": "ratio",
            "qps_16_callers_ef_16": "1/s",
        }
        | ({"qps_64_callers": "1/s", "qps_256_callers": "1/s"} if system == "vecmem" else {})
        for system in ("vecmem", "hnswlib", "faiss")
    },
    "scale": {
        "vecmem": {"build_to_n_log_n_ratio": "ratio"}
        | {
            f"{name}_points_{size}": unit
            for size in (300, 600)
            for name, unit in (
                ("graph_complete_seconds", "s"),
                ("recall_at_10", "ratio"),
                ("latency_ms_p50_1_caller", "ms"),
                ("qps_16_callers", "1/s"),
                ("restart_seconds", "s"),
                ("rss_bytes_per_point", "bytes"),
            )
        }
    },
    "kernel": {
        "vecmem": {
            "graph_build_seconds": "s",
            "graph_build_ratio_to_hnswlib": "ratio",
            "qps_1_thread": "1/s",
            "qps_1_thread_ratio_to_hnswlib": "ratio",
            "recall_at_10": "ratio",
            "ef": "candidates",
            "qps_1_thread_ef_12": "1/s",
        },
        "hnswlib": {"graph_build_seconds": "s", "qps_1_thread": "1/s", "recall_at_10": "ratio", "ef": "candidates"},
    },
    "rpc": {
        system: {f"{call}_calls_per_second_32_in_flight": "1/s" for call in ("empty", "get", "query")}
        | {"query_to_empty_call_rate_ratio": "ratio", "get_to_empty_call_rate_ratio": "ratio"}
        for system in ("vecmem", "vecmem-grpcio")
    },
    "cluster": {
        "vecmem": {
            "durable_write_ms_p50": "ms",
            "durable_write_ms_p99": "ms",
            "bare_jetstream_append_ms_p50": "ms",
            "bare_jetstream_append_ms_p99": "ms",
            "durable_write_to_bare_append_ratio": "ratio",
            "log_bytes_per_write": "bytes",
            "idle_nats_messages_per_second_nodes_3": "1/s",
            "handover_writes_blocked_ms_p50": "ms",
            "handover_writes_blocked_ms_max": "ms",
            **{
                f"{name}_{figure}": unit
                for name in ("failover", "stream_leader_killed")
                for figure, unit in (
                    ("seconds_p50", "s"),
                    ("seconds_p99", "s"),
                    ("seconds_max", "s"),
                    ("acknowledged_writes", "writes"),
                    ("acknowledged_writes_lost", "writes"),
                )
            },
            "failover_replica_reads_failed": "reads",
            "ingest_points_per_second_alone": "1/s",
            "ingest_points_per_second_replicated": "1/s",
            "ingest_replicated_to_alone_ratio": "ratio",
            "gather_query_ms_p50": "ms",
            "gather_slowest_shard_ms_p50": "ms",
            "gather_added_ms_p50": "ms",
            "query_ms_p50_shards_2": "ms",
            "query_ms_p99_shards_2": "ms",
            "qps_4_callers_shards_2": "1/s",
            "ingest_points_per_second_shards_2": "1/s",
            "topology_bytes_shards_2": "bytes",
        },
        "model": {
            "part_cost_ms": "ms",
            "query_ms_p50_shards_2": "ms",
            "query_ms_p99_to_measured_shards_2": "ratio",
            "qps_4_callers_to_measured_shards_2": "ratio",
            "topology_bytes_shards_2": "bytes",
        },
    },
    "scaling": {
        "model": {
            "query_ms_p50_shards_4": "ms",
            "query_ms_p99_slow_hedged_shards_4": "ms",
            "gathers_that_meet_a_slow_shard_shards_4": "ratio",
            "topology_bytes_shards_4": "bytes",
            "coordination_requests_per_second_shards_4": "1/s",
            "appends_per_second_of_a_nats_server_shards_4": "1/s",
        }
    },
    "kv": {
        "vecmem": {
            "pipelined_set_operations_per_second": "1/s",
            "pipelined_get_operations_per_second": "1/s",
            "get_to_empty_call_ratio": "ratio",
            "set_to_get_plus_fsync_ratio": "ratio",
            "get_p99_ratio_to_idle_expiry": "ratio",
            "sorted_set_range_of_100_ms_p50": "ms",
            "rss_megabytes": "MB",
            "restart_seconds": "s",
        }
    },
}


def bench(*arguments):
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.parametrize("scenario", [later(name) if name in SLOW else name for name in SCENARIOS])
def test_a_scenario_reports_its_rows(scenario, small, tmp_path):
    if scenario == "rpc" and shutil.which("h2load") is None:
        pytest.skip("h2load is not installed")
    if scenario == "peers" and find_spec("faiss") is None:
        pytest.skip("faiss-cpu is not installed")
    dataset = () if scenario in ("scale", "kv") else ("--dataset", small)
    load = () if scenario == "scaling" else (*dataset, "--queries", 20, "--work-dir", tmp_path / "work")
    done = bench(scenario, "--json", *load, *ARGUMENTS[scenario])
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(document) == ["scenario", "version", "started_at", "machine", "parameters", "figures"]
    assert document["scenario"] == scenario
    assert set(document["machine"]) == {"cores", "cpu", "memory_gib"}
    figures = {(figure["system"], figure["name"]): figure for figure in document["figures"]}
    assert len(figures) == len(document["figures"])
    for system, rows in ROWS_BY_SCENARIO[scenario].items():
        for name, unit in rows.items():
            assert figures[system, name]["unit"] == unit
    for (_, name), figure in figures.items():
        if name.startswith("recall"):
            # The points of a curve begin with little effort.
            assert (0.8 if "_ef_" in name else 0.9) < figure["value"] <= 1, name
        elif name.endswith(("_lost", "_failed")):
            assert figure["value"] == 0, name
        elif "rss" not in name and "added" not in name and "processor" not in name:
            assert figure["value"] > 0, name
    assert not (tmp_path / "work").exists()


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_run_is_drawn_where_it_is_told_to(small, tmp_path):
    done = bench("kernel", "--dataset", small, "--queries", 20, "--plot", tmp_path / "plots")
    assert done.returncode == 0, done.stderr
    assert "qps_1_thread_ratio_to_hnswlib" in done.stdout
    assert (tmp_path / "plots" / "kernel-qps_1_thread-by-ef.png").read_bytes().startswith(b"\x89PNG")
    assert "kernel-qps_1_thread-by-ef.png" in (tmp_path / "plots" / "index.html").read_text()
    assert str(tmp_path / "plots" / "index.html") in done.stderr


def test_peers_that_cannot_be_had_are_skipped_with_the_reason(small, tmp_path):
    arguments = ("--systems", "qdrant,redis,milvus,pgvector", "--work-dir", tmp_path / "work")
    done = bench("peers", "--json", "--dataset", small, "--queries", 20, *arguments)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["figures"] == []
    assert set(document["parameters"]["skipped"]) == set(BY_URL)
    modules = {"qdrant": "qdrant_client", "redis": "redis", "milvus": "pymilvus", "pgvector": "pgvector"}
    for name, reason in document["parameters"]["skipped"].items():
        assert f"--{name}-url" in reason if find_spec(modules[name]) else modules[name] in reason


def test_a_system_that_does_not_exist_is_refused(small):
    done = bench("peers", "--dataset", small, "--systems", "vecmem,elsewhere")
    assert done.returncode == 1
    assert "elsewhere not of vecmem, " in done.stderr
    assert "elsewhere" not in PEERS


def test_without_h2load_the_rpc_scenario_says_so(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = bench("rpc", "--json", "--dataset", small)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["figures"] == []
    assert "nghttp2" in document["parameters"]["skipped"]["h2load"]


def test_parts_of_a_cluster_that_do_not_exist_are_refused():
    done = bench("cluster", "--parts", "write,elsewhere")
    assert done.returncode == 2
    assert "elsewhere not of write, handover, failover, stream-leader, ingest, moving, gather, shards" in done.stderr
