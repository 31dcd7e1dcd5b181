"""Calls that wait, over a real server on both engines: who goes away takes nothing, and the end of the server ends the wait."""

from __future__ import annotations

import threading
import time

import grpc
import pytest

from tests.support.api import connect, expect_refusal
from tests.support.server import ServerProcess
from vecmem.config import GRPC_ENGINES
from vecmem.v1 import lists_pb2, lists_pb2_grpc

SECONDS_MAX = 60.0
ENGINES = [engine for engine in GRPC_ENGINES if engine != "auto"]
LEFT, RIGHT = lists_pb2.LIST_END_LEFT, lists_pb2.LIST_END_RIGHT


@pytest.fixture(params=ENGINES)
def process(tmp_path, request):
    arguments = ["--grpc-engine", request.param, "--grace-seconds", "600"]
    with ServerProcess(tmp_path / "data", arguments=arguments) as running:
        yield running


def pop(key: bytes, wait_ms: int = 50_000, request_id: str = "") -> lists_pb2.PopListItemsRequest:
    request = lists_pb2.PopListItemsRequest(key=key, end=LEFT, wait_ms=wait_ms)
    if request_id:
        request.write.request_id = request_id
    return request


def push(api, key: bytes, *items: bytes) -> None:
    stub = lists_pb2_grpc.ListServiceStub(api.channel)
    stub.PushListItems(lists_pb2.PushListItemsRequest(key=key, items=items, end=RIGHT), timeout=SECONDS_MAX)


def length(api, key: bytes) -> int:
    stub = lists_pb2_grpc.ListServiceStub(api.channel)
    return stub.GetListItem(lists_pb2.GetListItemRequest(key=key), timeout=SECONDS_MAX).item_count


@pytest.mark.parametrize("way", ["cancelled", "deadline", "connection"])
def test_who_goes_away_takes_nothing(process, way):
    with connect(process.address) as api:
        with connect(process.address) as other:
            stub = lists_pb2_grpc.ListServiceStub(other.channel)
            timeout = 0.3 if way == "deadline" else SECONDS_MAX
            calls = [stub.PopListItems.future(pop(b"k"), timeout=timeout) for _ in range(5)]
            time.sleep(0.3)
            if way == "cancelled":
                for call in calls:
                    call.cancel()
            elif way == "deadline":
                for call in calls:
                    with pytest.raises(grpc.RpcError):
                        call.result()
        # The server hears of it a moment later: whoever comes then is alone. The test's timeout bounds this.
        while True:
            push(api, b"k", b"item")
            time.sleep(0.05)
            if length(api, b"k"):
                break
        stub = lists_pb2_grpc.ListServiceStub(api.channel)
        assert stub.PopListItems(pop(b"k"), timeout=SECONDS_MAX).items == [b"item"]
        push(api, b"k", *[b"next"] * 3)
        time.sleep(0.05)
        assert length(api, b"k") == 3


def test_the_end_of_the_server_ends_the_wait_and_a_repeat_goes_on(process):
    outcome = []

    def wait() -> None:
        with connect(process.address) as api:
            stub = lists_pb2_grpc.ListServiceStub(api.channel)
            outcome.append(expect_refusal(lambda: stub.PopListItems(pop(b"k", request_id="r"), timeout=SECONDS_MAX)))

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.3)
    process.stop()
    waiting.join()
    assert [(refusal.code, refusal.reason) for refusal in outcome] == [("UNAVAILABLE", "SHUTTING_DOWN")]
    process.start()
    with connect(process.address) as api:
        stub = lists_pb2_grpc.ListServiceStub(api.channel)
        again = stub.PopListItems.future(pop(b"k", request_id="r"), timeout=SECONDS_MAX)
        push(api, b"k", b"item")
        assert again.result().items == [b"item"]
        assert stub.PopListItems(pop(b"k", request_id="r"), timeout=SECONDS_MAX).items == [b"item"]
        assert length(api, b"k") == 0
