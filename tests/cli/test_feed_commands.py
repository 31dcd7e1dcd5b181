"""`vecmem watch`, `subscribe`, `publish` and `commit` against a real server."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

VECMEM = str(Path(sys.executable).with_name("vecmem"))
SECONDS_MAX = 60.0


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def run_beside(server):
    """Start a command that goes on; returns it when it has said that it is ready. Ended with the test."""
    running = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "VECMEM_ADDRESS": server.address}
        process = subprocess.Popen(
            [VECMEM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        running.append(process)
        assert process.stderr is not None
        assert process.stderr.readline().startswith(("watching", "listening"))
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_watch_shows_changes_as_they_happen(ask, vecmem, server, run_beside, collection_name):
    key = f"{{{collection_name}}}"
    watching = run_beside("watch", key, "--prefix", key + ":", "--count", "3")
    ask("strings", "set", key, "v")
    ask("counters", "add", key + ":n")
    ask("keys", "delete", key, "--yes")
    lines = watching.communicate(timeout=SECONDS_MAX)[0].splitlines()
    assert watching.returncode == 0
    words = [line.split() for line in lines]
    assert [(kind, name) for _, _, kind, name in words] == [
        ("written", key),
        ("written", key + ":n"),
        ("deleted", key),
    ]
    position = words[0][0]
    again = vecmem(
        "--address", server.address, "watch", key, "--after", position, "--count", "1", "--content", "--json"
    )
    document = json.loads(again.stdout)
    assert (document["kind"], document["key"], document["position"]) == ("deleted", key, words[2][0])
    assert document["operation"] == {"deleteKeys": {"keys": [encoded(key)]}}


@pytest.mark.parametrize("command", ["watch", "subscribe"])
def test_an_interrupt_ends_what_goes_on(run_beside, collection_name, command):
    watching = run_beside(command, collection_name)
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=SECONDS_MAX)
    assert watching.returncode == 130


def test_publish_and_subscribe(ask, run_beside, collection_name):
    assert ask("publish", collection_name, "lost") == {"subscriber_count": 0}
    one = run_beside("subscribe", collection_name, "--count", "2")
    several = run_beside("subscribe", "--pattern", collection_name + "*", "--count", "3")
    assert ask("publish", collection_name, "a", "grüße") == {"subscriber_count": 2}
    assert ask("publish", collection_name + ".x", "c") == {"subscriber_count": 1}
    assert one.communicate(timeout=SECONDS_MAX)[0] == f"{collection_name}: a\n{collection_name}: grüße\n"
    assert several.communicate(timeout=SECONDS_MAX)[0].splitlines()[-1] == f"{collection_name}.x: c"
    assert (one.returncode, several.returncode) == (0, 0)


def test_commit_takes_a_transaction_from_a_file(ask, refused, tmp_path, collection_name):
    key = encoded(f"{{{collection_name}}}")
    request = {
        "compare": [{"key": key, "exists": False}],
        "then": [{"operation": {"addInteger": {"key": key, "delta": "5"}}}],
        "otherwise": [{"operation": {"getString": {"key": key}}}],
    }
    file = tmp_path / "transaction.json"
    file.write_text(json.dumps(request))
    first = ask("commit", file)
    assert first["succeeded"]
    assert first["results"][0]["value"] == "5"
    second = ask("commit", file)
    assert not second["succeeded"]
    assert second["results"][0]["value"] == encoded("5")
    file.write_text(json.dumps({"then": [{"operation": {"getString": {"key": ""}}}]}))
    assert refused("commit", file).error["reason"] == "INVALID_KEY"


@pytest.mark.parametrize(
    "arguments",
    [
        ["watch"],
        ["watch", "k", "--after", "x"],
        ["watch", "k", "--after", "1", "--earliest"],
        ["subscribe"],
        ["publish", "c"],
    ],
)
def test_wrong_usage(vecmem, server, arguments):
    assert vecmem("--address", server.address, *arguments).code == 2


def test_a_file_that_holds_no_transaction(vecmem, server, tmp_path):
    file = tmp_path / "t.json"
    for content in ("no json", '{"then": [{}]}', '{"then": [{"operation": {}}]}'):
        file.write_text(content)
        assert vecmem("--address", server.address, "commit", file).code == 2
