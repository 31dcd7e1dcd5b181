"""Lists and sorted sets beside a redis-server: what was answered, and the same state at the end. See tests.support.keyspace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import redis

from tests.support.keyspace import NOW
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.lists import ListValue
from vecmem.store.keyspace.sets import SetValue
from vecmem.store.keyspace.sorted_set_value import SortedSetValue
from vecmem.v1 import pipeline_pb2


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
