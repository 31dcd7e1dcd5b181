"""Strings, counters, expiry and patterns beside a real redis-server: whatever the operations, it answers the same and ends with the same."""

from __future__ import annotations

from typing import Any

import redis
from hypothesis import given
from hypothesis import strategies as st

from tests.support.keyspace import do, outcome_of
from tests.support.redis_server import redis_client  # noqa: F401  (a fixture)
from vecmem import limits
from vecmem.store.keyspace.glob import compile_glob
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.v1 import keys_pb2, strings_pb2

LATER_UNIX_MS = 4_000_000_000_000
"""Times are absolute and far ahead: what redis-server's clock says meanwhile decides nothing."""

KEYS = st.sampled_from([b"{t}a", b"{t}b", b"{t}c"])
VALUES = st.sampled_from([b"", b"0", b"10", b"-3", b"x", b"hello", b"9223372036854775807", b"2.5"]) | st.binary(
    max_size=8
)
INDEXES = st.integers(-12, 12)
STEPS = st.one_of(
    st.tuples(
        st.just("set"),
        KEYS,
        VALUES,
        st.sampled_from([None, "NX", "XX"]),
        st.sampled_from([None, "KEEP", LATER_UNIX_MS, LATER_UNIX_MS + 1]),
    ),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("mget"), st.lists(KEYS, min_size=1, max_size=3)),
    st.tuples(st.just("mset"), st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), st.booleans()),
    st.tuples(st.just("getdel"), KEYS),
    st.tuples(st.just("append"), KEYS, VALUES),
    st.tuples(st.just("getrange"), KEYS, INDEXES, INDEXES),
    st.tuples(st.just("setrange"), KEYS, st.integers(0, 12), VALUES),
    st.tuples(st.just("incrby"), KEYS, st.integers(-5, 5) | st.just(limits.INT64_MAX)),
    st.tuples(st.just("del"), st.lists(KEYS, min_size=1, max_size=3)),
    st.tuples(st.just("exists"), KEYS),
    st.tuples(st.just("rename"), KEYS, KEYS, st.booleans()),
    st.tuples(
        st.just("expire"),
        KEYS,
        st.integers(LATER_UNIX_MS - 1, LATER_UNIX_MS + 2),
        st.sampled_from([None, "NX", "XX", "GT", "LT"]),
    ),
    st.tuples(st.just("persist"), KEYS),
)
CONDITIONS = {None: 0, "NX": 1, "XX": 2, "GT": 3, "LT": 4}


def both(keyspace: Keyspace, client: redis.Redis, step: tuple[Any, ...]) -> tuple[Any, Any]:
    """Do one thing in both; returns what each answered, `ERROR` for an error."""
    match step:
        case ("set", key, value, condition, expiry):
            options: list[Any] = [condition] if condition else []
            ours = (
                keys_pb2.Expiry(keep=True)
                if expiry == "KEEP"
                else keys_pb2.Expiry(at_unix_ms=expiry)
                if expiry
                else None
            )
            options += ["KEEPTTL"] if expiry == "KEEP" else ["PXAT", expiry] if expiry else []
            response = do(keyspace, "set_string", key=key, value=value, condition=CONDITIONS[condition], expiry=ours)
            return response.written, bool(client.execute_command("SET", key, value, *options))
        case ("get", key):
            return _value(do(keyspace, "get_string", key=key)), client.get(key)
        case ("mget", keys):
            return [_value(found) for found in do(keyspace, "get_strings", keys=keys).values], client.mget(keys)
        case ("mset", values, only_new):
            items = [strings_pb2.KeyValue(key=key, value=value) for key, value in values.items()]
            response = do(keyspace, "set_strings", values=items, only_if_all_absent=only_new)
            return response.written, bool(client.msetnx(values) if only_new else client.mset(values))
        case ("getdel", key):
            return _value(do(keyspace, "take_string", key=key)), client.getdel(key)
        case ("append", key, value):
            return do(keyspace, "append_string", key=key, value=value).size_bytes, client.append(key, value)
        case ("getrange", key, start, stop):
            # Redis takes a stop before the first byte for the first one, which is a slip of its own.
            stop = max(stop, -len(client.get(key) or b"")) if stop < 0 else stop
            return do(keyspace, "get_string_range", key=key, start=start, stop=stop).value, client.getrange(
                key, start, stop
            )
        case ("setrange", key, offset, value):
            return (
                do(keyspace, "set_string_range", key=key, offset=offset, value=value).size_bytes,
                client.setrange(key, offset, value),
            )
        case ("incrby", key, delta):
            outcome = outcome_of(keyspace, "add_integer", key=key, delta=delta)
            try:
                theirs: Any = client.incrby(key, delta)
            except redis.ResponseError:
                theirs = "ERROR"
            return "ERROR" if outcome.HasField("error") else outcome.add_integer.value, theirs
        case ("del", keys):
            return do(keyspace, "delete_keys", keys=keys).deleted_count, client.delete(*keys)
        case ("exists", key):
            return do(keyspace, "check_keys", keys=[key]).existing[0], bool(client.exists(key))
        case ("rename", key, new_key, only_new):
            outcome = outcome_of(keyspace, "rename_key", key=key, new_key=new_key, only_if_absent=only_new)
            try:
                theirs = client.renamenx(key, new_key) if only_new else bool(client.rename(key, new_key))
            except redis.ResponseError:
                theirs = "ERROR"
            return "ERROR" if outcome.HasField("error") else outcome.rename_key.renamed, theirs
        case ("expire", key, at_unix_ms, condition):
            expiry = keys_pb2.Expiry(at_unix_ms=at_unix_ms)
            response = do(keyspace, "expire_key", key=key, expiry=expiry, condition=CONDITIONS[condition])
            options = [condition] if condition else []
            return response.changed, bool(client.execute_command("PEXPIREAT", key, at_unix_ms, *options))
        case ("persist", key):
            return do(keyspace, "persist_key", key=key).changed, client.persist(key)
    raise AssertionError(step)


def _value(response: Any) -> bytes | None:
    return response.value if response.HasField("value") else None


@given(st.lists(STEPS, max_size=40))
def test_redis_answers_the_same(redis_client: redis.Redis, steps: list[tuple[Any, ...]]) -> None:  # noqa: F811
    redis_client.flushall()
    keyspace = Keyspace()
    for step in steps:
        ours, theirs = both(keyspace, redis_client, step)
        assert ours == theirs, step
    for key in (b"{t}a", b"{t}b", b"{t}c"):
        assert _value(do(keyspace, "get_string", key=key)) == redis_client.get(key)
        assert keyspace.expires_at(key) == max(0, redis_client.execute_command("PEXPIRETIME", key))


@given(
    st.lists(
        st.sampled_from([b"*", b"?", b"a", b"b", b"[ab]", b"[^a]", b"[a-c]", b"\\*", b"\\", b"[", b"-", b"]"]),
        max_size=6,
    ),
    st.lists(
        st.binary(min_size=1, max_size=4) | st.text("ab*-]\\[^", min_size=1, max_size=5).map(str.encode),
        min_size=1,
        max_size=6,
    ),
)
def test_redis_matches_the_same_keys(redis_client: redis.Redis, parts: list[bytes], keys: list[bytes]) -> None:  # noqa: F811
    redis_client.flushall()
    pattern = b"".join(parts)
    for key in keys:
        redis_client.set(key, b"")
    fullmatch = compile_glob(pattern).fullmatch
    assert {key for key in keys if fullmatch(key)} == set(redis_client.keys(pattern)), pattern
