"""JSON documents over a real server: what is refused, what is repeated, and what a kill leaves."""

from __future__ import annotations

import json

import pytest

from tests.support.api import connect, expect_refusal
from vecmem.v1 import admin_pb2, common_pb2, json_pb2, json_pb2_grpc, pipeline_pb2, pipeline_pb2_grpc

SECONDS_MAX = 60.0
DOCUMENT = b'{"b":1,"a":[1.0,-0.0,1e-7,9223372036854775807,"\\u0000\xc3\xa9"],"z":{"n":null}}'


class Documents:
    """The service, and pipelines, of one channel."""

    def __init__(self, api) -> None:
        self.stub = json_pb2_grpc.JsonServiceStub(api.channel)
        self.pipelines = pipeline_pb2_grpc.PipelineServiceStub(api.channel)

    def call(self, method, **fields):
        request = getattr(json_pb2, f"{method}Request")(**fields)
        return getattr(self.stub, method)(request, timeout=SECONDS_MAX)

    def text(self, key: bytes, path: str = "$") -> bytes:
        [found] = self.call("GetJson", key=key, paths=[path]).matches
        return found.values_json


def test_documents_outlive_a_kill_and_a_checkpoint(own_server):
    retry_safe = common_pb2.WriteOptions(request_id="again")

    def add(documents: Documents) -> list[int]:
        added = documents.call("AddJsonNumber", key=b"k", path="$.b", integer=1, write=retry_safe)
        return [each.integer for each in added.sums]

    with connect(own_server.address) as api:
        documents = Documents(api)
        documents.call("SetJson", key=b"k", path="$", value_json=DOCUMENT)
        assert add(documents) == add(documents) == [2]
        documents.call("DeleteJson", key=b"k", path="$.z.n")
        documents.call("AppendJsonArray", key=b"k", path="$.a", items_json=[b"{}"])
        version = documents.call("GetJson", key=b"k").version
    expected = b'[{"b":2,"a":[1.0,-0.0,1e-7,9223372036854775807,"\\u0000\xc3\xa9",{}],"z":{}}]'
    for _ in range(2):
        own_server.kill()
        own_server.start()
        with connect(own_server.address) as api:
            documents = Documents(api)
            assert documents.text(b"k") == expected
            assert documents.call("GetJson", key=b"k").version == version
            assert add(documents) == [2]
            assert documents.text(b"k") == expected
            api.call("CreateCheckpoint", admin_pb2.CreateCheckpointRequest())


@pytest.mark.parametrize(
    ("method", "fields", "code", "reason", "field"),
    [
        ("SetJson", {"path": "$.", "value_json": b"1"}, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "path"),
        ("SetJson", {"path": "$", "value_json": b"[NaN]"}, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "value_json"),
        ("SetJson", {"path": "$.a", "value_json": b"1"}, "NOT_FOUND", "KEY_NOT_FOUND", "key"),
        ("GetJson", {"paths": ["$", "$[?match(@.a, 'x')]"]}, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "paths[1]"),
    ],
)
def test_refusals_name_the_field(api, collection_name, method, fields, code, reason, field):
    refused = expect_refusal(lambda: Documents(api).call(method, key=collection_name.encode(), **fields))
    assert (refused.code, refused.reason, refused.field) == (code, reason, field)


def test_a_path_that_looks_at_too_much_is_refused_and_the_rest_of_a_pipeline_done(api, collection_name):
    documents, key = Documents(api), collection_name.encode()
    wide = json.dumps([{"a": number, "b": [number]} for number in range(3_000)]).encode()
    documents.call("SetJson", key=key, path="$", value_json=wide)
    refused = expect_refusal(lambda: documents.call("GetJson", key=key, paths=["$[?count($..*) > 1]"]))
    assert (refused.code, refused.reason, refused.field) == ("INVALID_ARGUMENT", "LIMIT_EXCEEDED", "paths[0]")
    operations = [
        pipeline_pb2.Operation(delete_json=json_pb2.DeleteJsonRequest(key=key, path="$[?count($..*) > 1]")),
        pipeline_pb2.Operation(delete_json=json_pb2.DeleteJsonRequest(key=key, path="$[1:]")),
        pipeline_pb2.Operation(get_json=json_pb2.GetJsonRequest(key=key)),
    ]
    results = documents.pipelines.Pipeline(
        pipeline_pb2.PipelineRequest(operations=operations), timeout=SECONDS_MAX
    ).results
    assert results[0].error.reason == "LIMIT_EXCEEDED"
    assert results[1].delete_json.deleted_count == 2_999
    assert results[2].get_json.matches[0].values_json == b'[[{"a":0,"b":[0]}]]'
