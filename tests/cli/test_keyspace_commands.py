"""`vecmem keys`, `strings` and `counters` against a real server."""

from __future__ import annotations

import base64
import json

from tests.support.server import ServerProcess


def test_a_string_is_written_read_described_renamed_and_deleted(ask, refused, collection_name):
    key, other = f"{{{collection_name}}}", f"{{{collection_name}}}.2"
    written = ask("strings", "set", key, "grüße", "--ttl", 1000)
    assert written["written"]
    assert ask("strings", "get", key) == {"value": "grüße", "version": written["version"]}
    described = ask("keys", "describe", key)
    assert (described["type"], described["size"], described["version"]) == ("string", 7, written["version"])
    assert described["expires_at"].startswith("20")
    assert ask("keys", "persist", key) == {"changed": True}
    assert ask("keys", "describe", key)["expires_at"] is None
    assert ask("keys", "rename", key, other) == {"renamed": True}
    assert refused("strings", "get", key).code == 1
    assert ask("keys", "delete", other, key, "--yes") == {"deleted_count": 1}


def test_conditions_are_kept(ask, collection_name):
    first = ask("strings", "set", collection_name, "1", "--only-if", "absent")
    assert not ask("strings", "set", collection_name, "2", "--only-if", "absent")["written"]
    assert not ask("strings", "set", collection_name, "2", "--expected-version", first["version"] + 1)["written"]
    assert ask("strings", "set", collection_name, "2", "--expected-version", first["version"])["written"]


def test_bytes_that_are_no_text_travel_by_file(ask, tmp_path, collection_name):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)))
    ask("strings", "set", collection_name, "--file", source)
    found = ask("strings", "get", collection_name, "--output", target)
    assert target.read_bytes() == source.read_bytes()
    assert base64.b64decode(found["value"]["base64"]) == source.read_bytes()


def test_scan_lists_what_matches(ask, collection_name):
    for number in range(5):
        ask("strings", "set", f"{collection_name}.{number}", "x")
    listed = ask("keys", "scan", f"{collection_name}.[0-3]")
    assert listed == {"keys": [f"{collection_name}.{number}" for number in range(4)], "more": False}
    assert ask("keys", "scan", f"{collection_name}*", "--limit", 2)["more"]
    assert ask("keys", "scan", f"{collection_name}*", "--type", "hash")["keys"] == []


def test_a_counter_counts_both_ways(ask, refused, collection_name):
    assert ask("counters", "add", collection_name)["value"] == 1
    assert ask("counters", "add", collection_name, "-5")["value"] == -4
    ask("strings", "set", collection_name, "four")
    result = refused("counters", "add", collection_name)
    assert (result.code, result.error["reason"]) == (1, "NOT_A_NUMBER")


def test_what_is_not_there_is_said(refused, vecmem, collection_name):
    assert refused("keys", "describe", collection_name).error["reason"] == "KEY_NOT_FOUND"
    assert refused("keys", "expire", collection_name, "--ttl", 5).error["reason"] == "KEY_NOT_FOUND"
    assert refused("keys", "delete", "a", "b", "--yes").error["reason"] == "CROSS_SLOT"
    assert vecmem("strings", "set", "key").code == 2


def text(value):
    return base64.b64encode(value.encode()).decode()


def test_any_operation_can_be_run_and_any_value_shown(ask, vecmem, server, collection_name):
    prefix = f"{{{collection_name}}}"
    operations = [
        {"pushListItems": {"key": text(prefix + "l"), "end": "LIST_END_RIGHT", "items": [text("a"), text("b")]}},
        {"addSetMembers": {"key": text(prefix + "s"), "members": [text("x")]}},
        {"setHashFields": {"key": text(prefix + "h"), "fields": [{"field": text("f"), "value": text("v")}]}},
        {"addSortedSetMembers": {"key": text(prefix + "z"), "members": [{"member": text("m"), "score": 1.5}]}},
        {"addInteger": {"key": text(prefix + "l"), "delta": 1}},
    ]
    results = ask("keys", "run", *map(json.dumps, operations))["results"]
    assert results[0] == {"itemCount": "2"}
    assert results[4]["error"]["reason"] == "WRONG_TYPE"
    ask("strings", "set", prefix, "text")
    shown = {suffix: ask("keys", "show", prefix + suffix)["items"] for suffix in ("", "l", "s", "h", "z")}
    assert shown == {
        "": [{"value": "text"}],
        "l": [{"index": 0, "item": "a"}, {"index": 1, "item": "b"}],
        "s": [{"member": "x"}],
        "h": [{"field": "f", "value": "v"}],
        "z": [{"score": 1.5, "member": "m"}],
    }
    told = vecmem("--address", server.address, "keys", "show", prefix + "l", "--limit", 1)
    assert "1 of 2 items" in told.stderr
    for wrong in ("{", "{}", '{"fly": {}}'):
        assert vecmem("keys", "run", wrong).code == 2


def test_the_server_counts_its_keys(ask, collection_name):
    before = ask("info")
    ask("strings", "set", collection_name, "x")
    after = ask("info")
    assert after["key_count"] == before["key_count"] + 1
    assert after["key_memory_bytes"] > before["key_memory_bytes"]


def test_info_tells_of_the_memory_limit(ask, vecmem, tmp_path, collection_name):
    unlimited = ask("info")
    assert (unlimited["memory_limit_bytes"], unlimited["eviction_policy"], unlimited["evicted_key_count"]) == (
        0,
        "none",
        0,
    )
    arguments = ["--memory-limit-bytes", "20000", "--eviction-policy", "lru"]
    with ServerProcess(tmp_path / "data", arguments=arguments) as limited:
        for number in range(30):
            assert (
                vecmem("--address", limited.address, "strings", "set", f"{collection_name}{number}", "x" * 500).code
                == 0
            )
        info = vecmem("--address", limited.address, "info", "--json").document
        assert (info["memory_limit_bytes"], info["eviction_policy"]) == (20_000, "lru")
        assert info["evicted_key_count"] == 30 - info["key_count"] > 0
        assert info["data_memory_bytes"] > info["key_memory_bytes"] > 0
        shown = vecmem("--address", limited.address, "info").stdout
        assert "evicted_key_count" in shown
        assert "memory_limit_bytes" in shown
