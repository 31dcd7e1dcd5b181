"""Running operations whose requests have messages inside them, and comparing a keyspace with a redis-server: see tests.support.keyspace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import redis

from tests.support.keyspace import NOW, contents
from vecmem.errors import VecmemError
from vecmem.store.keyspace import operations
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.lists import ListValue
from vecmem.store.keyspace.operation import Moment
from vecmem.store.keyspace.sets import SetValue
from vecmem.store.keyspace.sorted_set_value import SortedSetValue
from vecmem.v1 import pipeline_pb2


def outcome_of(keyspace: Keyspace, kind: str, *, now: int = NOW, **fields: Any) -> pipeline_pb2.OperationResult:
    """What an operation answers, whose request has these fields; messages are dictionaries."""
    operation = pipeline_pb2.Operation(**{kind: fields})
    operations.check(operation)
    outcome = pipeline_pb2.OperationResult()
    operations.run(keyspace, operation, outcome, Moment(now))
    return outcome


def do(keyspace: Keyspace, kind: str, *, now: int = NOW, **fields: Any) -> Any:
    """Run an operation that is to succeed; returns its response."""
    outcome = outcome_of(keyspace, kind, now=now, **fields)
    assert not outcome.HasField("error"), outcome.error
    return getattr(outcome, kind)


def refusal(keyspace: Keyspace, kind: str, *, now: int = NOW, **fields: Any) -> tuple[str, str]:
    """Run an operation that the state refuses; returns reason and field. Nothing may have changed."""
    before = contents(keyspace)
    outcome = outcome_of(keyspace, kind, now=now, **fields)
    assert outcome.WhichOneof("kind") == "error"
    assert contents(keyspace) == before
    return outcome.error.reason, outcome.error.metadata["field"]


def check_refusal(kind: str, **fields: Any) -> tuple[str, str]:
    """Check an operation that is wrong whatever the state; returns reason and field."""
    try:
        operations.check(pipeline_pb2.Operation(**{kind: fields}))
    except VecmemError as error:
        return error.reason, error.metadata["field"]
    raise AssertionError("it was let through")


def ours(outcome: pipeline_pb2.OperationResult, answer: Callable[[Any], Any]) -> Any:
    """What was answered, or WRONG_TYPE or ERROR."""
    if outcome.HasField("error"):
        return "WRONG_TYPE" if outcome.error.reason == "WRONG_TYPE" else "ERROR"
    return answer(getattr(outcome, outcome.WhichOneof("kind") or ""))


def theirs(call: Callable[[], Any]) -> Any:
    """What redis-server answers, or WRONG_TYPE or ERROR."""
    try:
        return call()
    except redis.ResponseError as error:
        return "WRONG_TYPE" if str(error).startswith("WRONGTYPE") else "ERROR"


def paired(reply: Any) -> Any:
    """Members with scores, which redis-server lists in pairs or, to clients of its older protocol, one after the other."""
    if isinstance(reply, str):
        return reply
    flat = [part for item in reply for part in (item if isinstance(item, list | tuple) else (item,))]
    return [(flat[place], float(flat[place + 1])) for place in range(0, len(flat), 2)]


def assert_same_state(keyspace: Keyspace, client: redis.Redis, keys: Iterable[bytes]) -> None:
    """Both hold the same under each key. Expiries have to be 1,000 seconds away, and more."""
    for key in keys:
        value = keyspace.find(key, NOW)
        match client.type(key):
            case b"none":
                assert value is None
            case b"string":
                assert keyspace.string(key, NOW) == client.get(key)
            case b"list":
                assert isinstance(value, ListValue)
                assert value.items(0, len(value)) == client.lrange(key, 0, -1)
            case b"set":
                assert isinstance(value, SetValue)
                assert set(value) == client.smembers(key)
            case b"zset":
                assert isinstance(value, SortedSetValue)
                pairs = [(member, score) for score, member in value.order]
                assert pairs == paired(client.zrange(key, 0, -1, withscores=True))
                assert dict(pairs) == value.scores
        left_ms = client.pttl(key)
        expires_at = keyspace.expires_at(key)
        assert (left_ms > 0) == bool(expires_at)
        assert not expires_at or abs(expires_at - NOW - left_ms) < 500_000
