"""JSON documents in the `vecmem` command: run and shown."""

from __future__ import annotations

import base64
import json


def text(value):
    return base64.b64encode(value.encode()).decode()


def test_a_document_is_changed_and_shown(ask, vecmem, server, collection_name):
    document = {"title": "Graphs é", "stock": [3, 1.5, None, True]}
    operations = [
        {"setJson": {"key": text(collection_name), "path": "$", "valueJson": text(json.dumps(document))}},
        {"addJsonNumber": {"key": text(collection_name), "path": "$.stock[0]", "integer": 4}},
        {"getJson": {"key": text(collection_name), "paths": ["$["]}},
    ]
    results = ask("keys", "run", *map(json.dumps, operations))["results"]
    assert results[1]["sums"] == [{"integer": "7"}]
    assert results[2]["error"]["reason"] == "INVALID_ARGUMENT"
    document["stock"][0] = 7
    described = ask("keys", "describe", collection_name)
    assert (described["type"], described["size"]) == ("json", 2)
    assert ask("keys", "show", collection_name)["items"] == [{"value": document}]
    told = vecmem("--address", server.address, "keys", "show", collection_name)
    assert json.loads(told.stdout) == document
    assert '  "title": "Graphs é",' in told.stdout
    assert "items" not in told.stderr
    assert collection_name in ask("keys", "scan", f"{collection_name}*", "--type", "json")["keys"]
