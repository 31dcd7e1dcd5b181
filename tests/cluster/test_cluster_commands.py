"""`vecmem cluster`: a whole cluster by one command, what it tells of itself, and a handover."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

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
        "2",
        "--nats-servers",
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


def run(ready: dict, *arguments: str) -> object:
    addresses = ",".join(node["address"] for node in ready["nodes"])
    ran = subprocess.run(
        [VECMEM, "--address", addresses, "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=True,
    )
    return json.loads(ran.stdout)


def test_a_cluster_serves_and_hands_over(ready):
    assert len(ready["nodes"]) == 2
    while not any(node["leads"] for node in run(ready, "cluster", "status")):
        pass
    run(ready, "strings", "set", "k", "v")
    before = run(ready, "cluster", "status")
    assert [node["node"] for node in before] == ["node-1", "node-2"]
    assert sum(node["leads"] for node in before) == 1
    assert run(ready, "cluster", "handover")["took_ms"] > 0
    while not any(node["leads"] for node in run(ready, "cluster", "status")):
        pass
    after = run(ready, "cluster", "status")
    assert [node["leads"] for node in after] == [not node["leads"] for node in before]
    assert run(ready, "strings", "get", "k")
    [info] = [run({"nodes": [node]}, "info") for node in ready["nodes"][:1]]
    assert info["member"]["node"] == "node-1"
    os.kill(ready["nodes"][0]["pid"], signal.SIGKILL)
    told = run(ready, "cluster", "status")
    assert (told[0]["address"], bool(told[0]["error"])) == (ready["nodes"][0]["address"], True)
    assert not told[1]["error"]
