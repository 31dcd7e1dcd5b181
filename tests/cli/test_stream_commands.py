"""Streams in the `vecmem` command: run and shown."""

from __future__ import annotations

import base64
import json


def text(value):
    return base64.b64encode(value if isinstance(value, bytes) else value.encode()).decode()


def test_a_stream_is_appended_to_read_and_shown(ask, vecmem, server, collection_name):
    def run(**operation):
        [result] = ask("keys", "run", json.dumps(operation))["results"]
        return result

    key = text(collection_name)
    for number in (1, 2, 3):
        fields = [{"field": text("n"), "value": text(str(number))}, {"field": text("raw"), "value": text(b"\xff")}]
        run(appendStreamEntry={"key": key, "fields": fields, "explicitId": {"timeUnixMs": number, "sequence": 7}})
    run(createStreamGroup={"key": key, "group": text("g")})
    read = run(readStreamGroup={"key": key, "group": text("g"), "consumer": text("ada"), "count": 1})
    assert [entry["id"] for entry in read["entries"]] == [{"timeUnixMs": "1", "sequence": "7"}]
    assert run(describeStreamGroup={"key": key, "group": text("g")})["group"]["lag"] == "2"
    refused = run(createStreamGroup={"key": key, "group": text("g")})
    assert refused["error"]["reason"] == "STREAM_GROUP_EXISTS"

    described = ask("keys", "describe", collection_name)
    assert (described["type"], described["size"]) == ("stream", 3)
    shown = ask("keys", "show", collection_name)["items"]
    assert shown == [
        {"id": f"{number}-7", "fields": [["n", str(number)], ["raw", {"base64": "/w=="}]]} for number in (1, 2, 3)
    ]
    assert collection_name in ask("keys", "scan", f"{collection_name}*", "--type", "stream")["keys"]
    told = vecmem("--address", server.address, "keys", "show", collection_name, "--limit", 2)
    assert "2 of 3 items" in told.stderr
    assert '[["n", "1"], ["raw", {"base64": "/w=="}]]' in told.stdout
