"""One table maps every error to a gRPC code on purpose, and ErrorInfo carries its reason to the caller."""

from __future__ import annotations

import asyncio
import inspect

import grpc
import pytest

from tests.support.api import expect_refusal
from vecmem import errors
from vecmem.server.error_table import CODES, abort, error_message, status_code
from vecmem.v1 import points_pb2

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.VecmemError) and kind is not errors.VecmemError
]
INTERNAL = {errors.CheckpointError}
"""Errors that are the server's own fault; everything else says what the caller can do about it."""


def make(kind):
    return kind("a message", path="a path") if kind is errors.CorruptionError else kind("a message")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_row_in_the_table(kind):
    assert any(issubclass(kind, row) for row, _ in CODES)
    assert (status_code(make(kind)) is grpc.StatusCode.INTERNAL) == (kind in INTERNAL)


def test_no_row_is_hidden_by_one_before_it():
    for index, (kind, _) in enumerate(CODES):
        assert not any(issubclass(kind, earlier) for earlier, _ in CODES[:index])


def test_only_what_a_client_may_simply_send_again_is_unavailable():
    unavailable = {kind for kind in CLASSES if status_code(make(kind)) is grpc.StatusCode.UNAVAILABLE}
    assert unavailable == {
        errors.UnavailableError,
        errors.WritesStoppedError,
        errors.MovedError,
        errors.SlotMovingError,
        errors.ShuttingDownError,
    }


def test_reasons_are_unique_and_spelled_as_google_rpc_wants_them():
    reasons = [kind.reason for kind in (errors.VecmemError, *CLASSES)]
    assert len(set(reasons)) == len(reasons)
    for reason in reasons:
        assert reason == reason.upper()
        assert reason.replace("_", "").isalnum()
        assert len(reason) <= 63


def test_every_class_stands_in_the_tree_that_the_module_draws():
    assert errors.__doc__ is not None
    assert [kind.__name__ for kind in CLASSES if kind.__name__ not in errors.__doc__] == []


def test_an_error_inside_a_batch_says_the_same_as_a_status():
    message = error_message(errors.DimensionMismatchError("has 3 elements", field="queries[1].nearest"))
    assert (message.code, message.reason) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "DIMENSION_MISMATCH")
    assert message.message == "queries[1].nearest: has 3 elements"
    assert dict(message.metadata) == {"field": "queries[1].nearest"}


def test_error_info_travels_with_reason_domain_and_metadata(api):
    refusal = expect_refusal(lambda: api.call("Get", points_pb2.GetRequest(collection="nobody", ids=["a"])))
    assert (refusal.code, refusal.reason, refusal.domain) == ("NOT_FOUND", "COLLECTION_NOT_FOUND", "vecmem")
    position = {"min_position": {"sequence": 2**63}}
    refusal = expect_refusal(lambda: api.call("Count", points_pb2.CountRequest(collection="nobody", read=position)))
    assert refusal.reason == "POSITION_AHEAD"
    assert int(refusal.metadata["applied_sequence"]) < 2**63


def test_a_message_with_line_breaks_and_other_scripts_arrives_whole(api, collection_name):
    name = "zwei\nZeilen — データ"
    refusal = expect_refusal(lambda: api.call("Count", points_pb2.CountRequest(collection=name)))
    assert repr(name) in refusal.message


def test_a_reply_whose_message_would_be_too_long_for_headers_is_cut_and_arrives(api, collection_name):
    refusal = expect_refusal(lambda: api.get("x" * 100_000, "a"))
    assert refusal.reason == "COLLECTION_NOT_FOUND"
    assert len(refusal.message) < 8_192


async def test_a_call_that_has_ended_already_is_not_told_and_leaves_no_trace():
    """As grpcio says it of a call whose deadline passed while it was about to be refused."""

    class Ended:
        async def abort(self, *_):
            raise grpc.aio.InternalError("the call has ended")

    with pytest.raises(asyncio.CancelledError):
        await abort(Ended(), errors.DeadlineExceededError("too late"))
