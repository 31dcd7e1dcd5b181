"""`vecmem cluster`: a whole cluster by one command, what it tells of itself, a handover, and shards that come and go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.server import dying_with_parent

VECMEM = str(Path(sys.executable).with_name("vecmem"))
SECONDS_MAX = 60.0


@pytest.fixture
def ready(tmp_path):
    """What `vecmem cluster dev` says when it is ready; it is ended, and its end looked at, with the test."""
    command = [
        VECMEM,
        "--json",
        "cluster",
        "dev",
        "--nodes",
        "1",
        "--shards",
        "2",
        "--replicas",
        "1",
        "--directory",
        str(tmp_path / "c"),
    ]
    with subprocess.Popen(dying_with_parent(command), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS_MAX) == 0


def run(ready: dict, *arguments: str) -> Any:
    addresses = ",".join(node["address"] for node in ready["nodes"])
    ran = subprocess.run(
        [VECMEM, "--address", addresses, "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=True,
    )
    return json.loads(ran.stdout)


def failure(ready: dict, *arguments: str) -> str:
    """Why a command is refused."""
    addresses = ",".join(node["address"] for node in ready["nodes"])
    command = [VECMEM, "--address", addresses, "--json", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert ran.returncode in (1, 2)
    return json.loads(ran.stderr)["error"]["reason"]


def nodes_of(status: dict) -> dict[str, dict]:
    return {node["name"]: node for shard in status["shards"] for node in shard["nodes"]}


def status_when(ready: dict, condition: Callable[[dict], bool]) -> dict:
    """What `cluster status` says as soon as that is so."""
    while not condition(found := run(ready, "cluster", "status")):
        pass
    return found


def is_led(status: dict) -> bool:
    return len(nodes_of(status)) == 4 and all(shard["primary"] for shard in status["shards"])


def test_a_cluster_of_shards_serves_and_is_shown(ready):
    names = [f"shard-{shard}-node-{number}" for shard in (0, 1) for number in (0, 1)]
    assert [node["node"] for node in ready["nodes"]] == names
    status = status_when(ready, is_led)
    assert list(nodes_of(status)) == names
    assert [shard["slot_count"] for shard in status["shards"]] == [8_192, 8_192]
    assert [shard["slots"] for shard in status["shards"]] == [
        [{"first": 0, "last": 8_191}],
        [{"first": 8_192, "last": 16_383}],
    ]
    assert (status["migrations"], status["errors"], status["epoch"] > 0) == ([], {}, True)
    for shard in status["shards"]:
        assert [node["name"] for node in shard["nodes"] if node["leads"]] == [shard["primary"]]
        assert {node["shard"] for node in shard["nodes"]} == {shard["number"]}
    run(ready, "strings", "set", "bar", "v")
    run(ready, "strings", "set", "foo", "v")
    positions = [shard["nodes"][0]["sequence"] for shard in status["shards"]]
    status_when(
        ready,
        lambda found: all(
            node["sequence"] > positions[shard["number"]] and not node["lag"]
            for shard in found["shards"]
            for node in shard["nodes"]
        ),
    )
    shown = subprocess.run(
        [VECMEM, "--address", ready["nodes"][3]["address"], "cluster", "status"],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=True,
    ).stdout
    assert (shown.count("primary"), shown.count("replica")) == (2, 2)
    assert all(name in shown for name in names)

    def led_by_another(found: dict) -> bool:
        return is_led(found) and found["shards"][0]["primary"] != status["shards"][0]["primary"]

    leader = nodes_of(status)[status["shards"][0]["primary"]]["address"]
    assert run({"nodes": [{"address": leader}]}, "cluster", "handover")["took_ms"] > 0
    after = status_when(ready, led_by_another)
    assert after["shards"][1]["primary"] == status["shards"][1]["primary"]
    assert run(ready, "strings", "get", "bar")

    os.kill(ready["nodes"][0]["pid"], signal.SIGKILL)
    told = run(ready, "cluster", "status")
    assert list(told["errors"]) == [ready["nodes"][0]["address"]]
    assert run(ready, "strings", "get", "bar")


def test_shards_come_and_go(ready):
    status = status_when(ready, is_led)
    added = run(ready, "cluster", "add-shard", "--expected-epoch", str(status["epoch"]))
    assert added == {"shard": 2}
    assert [shard["number"] for shard in run(ready, "cluster", "status")["shards"]] == [0, 1, 2]
    assert failure(ready, "cluster", "add-shard", "--expected-epoch", str(status["epoch"])) == "TOPOLOGY_CONFLICT"
    assert failure(ready, "cluster", "remove-shard", "1") == "INVALID_TOPOLOGY"
    assert failure(ready, "cluster", "move-slots", "0", "2", "0-9") == "INVALID_TOPOLOGY"
    assert failure(ready, "cluster", "move-slots", "0", "1", "9-0") == "USAGE"
    assert failure(ready, "cluster", "move-slots", "0", "1", "16384") == "USAGE"
    assert failure(ready, "cluster", "rebalance", "--dry-run", "--wait") == "USAGE"
    assert run(ready, "cluster", "remove-shard", "2") == {"shard": 2}
    assert run(ready, "cluster", "cancel") == {"slot_count": 0}
    after = run(ready, "cluster", "status")
    assert [shard["slot_count"] for shard in after["shards"]] == [8_192, 8_192]
