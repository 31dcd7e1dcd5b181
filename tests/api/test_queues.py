"""Delayed queues and pages of leaderboards over a real server: who gets what, what is refused, and what a kill leaves."""

from __future__ import annotations

import threading

import pytest

from tests.support.api import connect, expect_refusal
from vecmem.v1 import (
    admin_pb2,
    common_pb2,
    pipeline_pb2,
    pipeline_pb2_grpc,
    queues_pb2,
    queues_pb2_grpc,
    sorted_sets_pb2,
    sorted_sets_pb2_grpc,
)

SECONDS_MAX = 60.0
HOUR_MS = 3_600_000


class Queues:
    """The services of one channel, and one key."""

    def __init__(self, api, key: bytes) -> None:
        self.key = key
        self.stubs = [
            queues_pb2_grpc.QueueServiceStub(api.channel),
            sorted_sets_pb2_grpc.SortedSetServiceStub(api.channel),
            pipeline_pb2_grpc.PipelineServiceStub(api.channel),
        ]

    def call(self, method, request):
        stub = next(stub for stub in self.stubs if hasattr(stub, method))
        return getattr(stub, method)(request, timeout=SECONDS_MAX)

    def put(self, *bodies: bytes, **due) -> list[int]:
        messages = [queues_pb2.NewQueueMessage(body=body, **due) for body in bodies]
        return list(
            self.call("EnqueueMessages", queues_pb2.EnqueueMessagesRequest(key=self.key, messages=messages)).message_ids
        )

    def receive(self, count: int = 100, request_id: str = "", timeout_ms: int = HOUR_MS, **fields):
        request = queues_pb2.ReceiveMessagesRequest(
            key=self.key, count=count, visibility_timeout_ms=timeout_ms, **fields
        )
        if request_id:
            request.write.request_id = request_id
        return self.call("ReceiveMessages", request)

    def acknowledge(self, messages) -> list[bool]:
        return list(self.call("AcknowledgeMessages", acknowledgement(self.key, messages)).acknowledged)

    def describe(self) -> queues_pb2.DescribeQueueResponse:
        return self.call("DescribeQueue", queues_pb2.DescribeQueueRequest(key=self.key))


def acknowledgement(key: bytes, messages) -> queues_pb2.AcknowledgeMessagesRequest:
    receipts = [queues_pb2.MessageReceipt(message_id=one.message_id, receipt=one.receipt) for one in messages]
    return queues_pb2.AcknowledgeMessagesRequest(key=key, receipts=receipts)


@pytest.fixture
def queue(api, collection_name) -> Queues:
    """A queue that no other test uses."""
    return Queues(api, b"{%s}" % collection_name.encode())


def test_a_receive_that_is_repeated_returns_the_same_deliveries(queue):
    queue.put(b"a", b"b", b"c")
    name = queue.key.decode()
    first = queue.receive(2, request_id=name)
    again = queue.receive(2, request_id=name)
    assert again.messages == first.messages
    assert again.header.position == first.header.position
    assert [message.body for message in first.messages] == [b"a", b"b"]
    assert [message.body for message in queue.receive().messages] == [b"c"]
    assert queue.acknowledge(again.messages) == [True, True]
    told = queue.receive(2, request_id=name)
    assert told.messages == first.messages, "what has been acknowledged since is not delivered, but told again"
    assert queue.describe().in_flight_count == 1


def test_a_pipeline_sees_its_own_messages(queue):
    put = queues_pb2.EnqueueMessagesRequest(
        key=queue.key, messages=[{"body": b"a"}, {"body": b"b", "delay_ms": HOUR_MS}]
    )
    take = queues_pb2.ReceiveMessagesRequest(key=queue.key, count=9, visibility_timeout_ms=HOUR_MS)
    look = queues_pb2.DescribeQueueRequest(key=queue.key)
    request = pipeline_pb2.PipelineRequest(
        operations=[
            pipeline_pb2.Operation(enqueue_messages=put),
            pipeline_pb2.Operation(describe_queue=look),
            pipeline_pb2.Operation(receive_messages=take),
            pipeline_pb2.Operation(describe_queue=look),
        ]
    )
    _, before, taken, after = queue.call("Pipeline", request).results
    counts = [(each.describe_queue.ready_count, each.describe_queue.in_flight_count) for each in (before, after)]
    assert counts == [(1, 0), (0, 1)]
    assert [message.body for message in taken.receive_messages.messages] == [b"a"]
    assert 0 < taken.receive_messages.next_due_in_ms <= HOUR_MS


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason", "field"),
    [
        (
            "EnqueueMessages",
            queues_pb2.EnqueueMessagesRequest(key=b"q"),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "messages",
        ),
        (
            "ReceiveMessages",
            queues_pb2.ReceiveMessagesRequest(key=b"q"),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "visibility_timeout_ms",
        ),
        (
            "ReceiveMessages",
            queues_pb2.ReceiveMessagesRequest(key=b"q", count=1_025, visibility_timeout_ms=1),
            "INVALID_ARGUMENT",
            "LIMIT_EXCEEDED",
            "count",
        ),
        (
            "PeekMessages",
            queues_pb2.PeekMessagesRequest(key=b"q", page_token="no"),
            "INVALID_ARGUMENT",
            "INVALID_PAGE_TOKEN",
            "page_token",
        ),
        ("DescribeQueue", queues_pb2.DescribeQueueRequest(), "INVALID_ARGUMENT", "INVALID_KEY", "key"),
    ],
)
def test_bad_requests_are_refused_and_log_nothing(api, queue, method, request_, code, reason, field):
    before = api.info().log_last_sequence
    refusal = expect_refusal(lambda: queue.call(method, request_))
    assert (refusal.code, refusal.reason, refusal.field) == (code, reason, field)
    assert api.info().log_last_sequence == before


def test_another_type_is_refused(queue):
    queue.put(b"a")
    request = sorted_sets_pb2.GetSortedSetPageRequest(key=queue.key, member=b"m")
    refusal = expect_refusal(lambda: queue.call("GetSortedSetPage", request))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "WRONG_TYPE")


def test_consumers_at_the_same_time_never_get_the_same_message(server, queue):
    bodies = [b"%d" % number for number in range(600)]
    for start in range(0, len(bodies), 200):
        queue.put(*bodies[start : start + 200])
    lock = threading.Lock()
    got: list[bytes] = []
    told: list[bool] = []

    def consume() -> None:
        with connect(server.address) as api:
            mine = Queues(api, queue.key)
            while messages := mine.receive(7).messages:
                acknowledged = mine.acknowledge(messages)
                with lock:
                    got.extend(message.body for message in messages)
                    told.extend(acknowledged)

    threads = [threading.Thread(target=consume) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(bodies)
    assert all(told)
    described = queue.describe()
    described.ClearField("header")
    assert described == queues_pb2.DescribeQueueResponse()


def test_receipts_outlive_a_kill_and_a_checkpoint(own_server):
    with connect(own_server.address) as api:
        queue = Queues(api, b"q")
        queue.put(b"a", b"b", b"poison")
        queue.put(b"late", delay_ms=HOUR_MS)
        first = list(queue.receive().messages)
        release = queues_pb2.ReleaseMessagesRequest(key=b"q", receipts=acknowledgement(b"q", first[2:]).receipts)
        queue.call("ReleaseMessages", release)
        assert queue.receive(max_deliveries=1).dead_count == 1
        api.call("CreateCheckpoint", admin_pb2.CreateCheckpointRequest())
        assert queue.acknowledge(first[:1]) == [True]
    own_server.kill()
    own_server.start()
    with connect(own_server.address) as api:
        queue = Queues(api, b"q")
        assert api.info().recovery.checkpoint_sequence > 0
        described = queue.describe()
        assert (described.ready_count, described.delayed_count) == (0, 1)
        assert (described.in_flight_count, described.dead_count) == (1, 1)
        assert queue.acknowledge(first[:2]) == [False, True]
        [new] = queue.put(b"new")
        assert new > max(max(message.message_id, message.receipt) for message in first)


def test_a_page_of_a_leaderboard_reflects_a_position(queue):
    members = [sorted_sets_pb2.ScoredMember(member=b"%d" % number, score=number) for number in range(9)]
    written = queue.call(
        "AddSortedSetMembers", sorted_sets_pb2.AddSortedSetMembersRequest(key=queue.key, members=members)
    ).header.position
    request = sorted_sets_pb2.GetSortedSetPageRequest(
        key=queue.key, member=b"4", count_before=1, count_after=1, reverse=True,
        read=common_pb2.ReadOptions(min_position=written),
    )  # fmt: skip
    page = queue.call("GetSortedSetPage", request)
    assert page.header.position.sequence >= written.sequence
    assert [(each.member, each.rank) for each in page.members] == [(b"5", 3), (b"4", 4), (b"3", 5)]
    ranks = sorted_sets_pb2.GetSortedSetScoreRanksRequest(key=queue.key, scores=[4.5], reverse=True)
    assert queue.call("GetSortedSetScoreRanks", ranks).ranks[0].rank == 4
