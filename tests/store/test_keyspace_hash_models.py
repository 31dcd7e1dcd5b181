"""Hashes: that a plain model, a replay from any checkpoint and redis-server agree, and what is dumped."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tests.support.keyspace import (
    NOW,
    contents,
    do,
    field_expiries,
    fields_of,
    our_answer,
    outcome_of,
    pairs,
    redis_answer,
    reloaded,
    whole_hash,
)
from tests.support.redis_server import redis_client  # noqa: F401  (a fixture)
from vecmem import limits
from vecmem.store.keyspace.hashes import HashValue
from vecmem.store.keyspace.keyspace import NEVER, Keyspace
from vecmem.store.keyspace.packing import pack
from vecmem.v1 import hashes_pb2, keys_pb2

IF_ABSENT = hashes_pb2.HASH_FIELD_CONDITION_ABSENT
IF_PRESENT = hashes_pb2.HASH_FIELD_CONDITION_PRESENT

FIELDS = st.sampled_from([b"", b"a", b"b", b"c", b"\xff\x00"])
NAMED = st.lists(FIELDS, min_size=1, max_size=3)
VALUES = st.sampled_from([b"", b"1", b"-3", b"x", b"2.5", b"9223372036854775807"]) | st.binary(max_size=4)
KEYS = st.sampled_from([b"{t}a", b"{t}b"])
EXPIRIES = st.builds(keys_pb2.Expiry, ttl_ms=st.integers(1, 6)) | st.builds(
    keys_pb2.Expiry, at_unix_ms=st.integers(NOW - 2, NOW + 30)
)
CHANGES = st.one_of(
    st.tuples(
        st.just("set_hash_fields"),
        st.fixed_dictionaries(
            {"key": KEYS, "fields": st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3).map(pairs)},
            optional={
                "condition": st.integers(0, 2),
                "expiry": EXPIRIES | st.just(keys_pb2.Expiry(keep=True)),
            },
        ),
    ),
    st.tuples(st.just("delete_hash_fields"), st.fixed_dictionaries({"key": KEYS, "fields": NAMED})),
    st.tuples(
        st.just("expire_hash_fields"),
        st.fixed_dictionaries({"key": KEYS, "fields": NAMED, "expiry": EXPIRIES, "condition": st.integers(0, 4)}),
    ),
    st.tuples(st.just("persist_hash_fields"), st.fixed_dictionaries({"key": KEYS, "fields": NAMED})),
    st.tuples(
        st.just("add_hash_integer"),
        st.fixed_dictionaries(
            {"key": KEYS, "field": FIELDS, "delta": st.integers(-3, 3)}, optional={"expiry_if_absent": EXPIRIES}
        ),
    ),
    st.tuples(st.just("rename_key"), st.fixed_dictionaries({"key": KEYS, "new_key": KEYS})),
)
Model = dict[bytes, dict[bytes, tuple[bytes, int]]]


def apply_to_model(model: Model, kind: str, fields: dict[str, Any], now: int) -> None:
    """What an operation does, said as plainly as can be: expired fields and empty hashes are deleted before and after each."""
    expiry = fields.get("expiry", fields.get("expiry_if_absent"))
    given = NEVER
    if expiry is not None and expiry.WhichOneof("kind") != "keep":
        given = expiry.at_unix_ms or now + expiry.ttl_ms
    held = model.setdefault(fields["key"], {})
    match kind:
        case "set_hash_fields":
            existing = [item.field in held for item in fields["fields"]]
            refused = {IF_ABSENT: any(existing), IF_PRESENT: not all(existing)}.get(fields.get("condition", 0), False)
            for item in [] if refused else fields["fields"]:
                kept = held.get(item.field, (b"", NEVER))[1] if expiry is not None and expiry.keep else given
                held[item.field] = (item.value, kept)
        case "delete_hash_fields":
            for field in fields["fields"]:
                held.pop(field, None)
        case "expire_hash_fields":
            for field in fields["fields"]:
                if field in held:
                    value, old = held[field]
                    end = old or 2**60
                    if [True, not old, bool(old), given > end, given < end][fields["condition"]]:
                        held[field] = (value, given)
                    expire_in_model(model, now)
        case "persist_hash_fields":
            for field in fields["fields"]:
                if field in held:
                    held[field] = (held[field][0], NEVER)
        case "add_hash_integer":
            value, old = held.get(fields["field"], (b"0", given))
            try:
                total = int(value)
            except ValueError:
                total = limits.INT64_MAX + 10
            if b"%d" % total == value and abs(total + fields["delta"]) <= limits.INT64_MAX:
                held[fields["field"]] = (b"%d" % (total + fields["delta"]), old)
        case "rename_key" if held:
            model[fields["new_key"]] = model.pop(fields["key"])


def expire_in_model(model: Model, now: int) -> None:
    for held in model.values():
        for field in [field for field, (_, expires_at) in held.items() if NEVER < expires_at <= now]:
            del held[field]


@given(st.lists(st.tuples(CHANGES, st.integers(0, 4)), max_size=40), st.integers(0, 40))
def test_a_model_and_a_replay_agree(steps: list[tuple[tuple[str, dict[str, Any]], int]], checkpoint: int) -> None:
    one, other = Keyspace(), Keyspace()
    model: Model = {}
    now = NOW
    for number, ((kind, fields), later_ms) in enumerate(steps):
        now += later_ms
        if number == checkpoint:
            other = reloaded(other)
        expire_in_model(model, now)
        apply_to_model(model, kind, fields, now)
        expire_in_model(model, now)
        assert outcome_of(one, kind, now=now, **fields) == outcome_of(other, kind, now=now, **fields)
        for key in (b"{t}a", b"{t}b"):
            expected = model.get(key, {})
            assert whole_hash(one, key, now=now) == {field: value for field, (value, _) in expected.items()}
            assert do(one, "check_keys", keys=[key], now=now).existing[0] == bool(expected)
            assert do(one, "describe_key", key=key, now=now).size == len(expected)
            assert field_expiries(one, key, *(expected or [b"x"]), now=now) == [
                expires_at for _, expires_at in expected.values()
            ] or [None]
        if number % 7 == 6:
            expired = one.expired_keys(now, 10)[0]
            assert one.remove_expired(expired, now) == other.remove_expired(expired, now) == len(expired)
            assert all(one.find(key, now) is not None for key in one.values)
    assert contents(one) == contents(other)
    assert contents(reloaded(one)) == contents(one)


@given(
    st.dictionaries(st.binary(max_size=5), st.tuples(st.binary(max_size=9), st.integers(0, 2**54)), min_size=1),
    st.randoms(use_true_random=False),
)
def test_what_is_dumped_is_loaded(fields: dict[bytes, tuple[bytes, int]], random: Any) -> None:
    one, other = HashValue(), HashValue()
    for field, (value, expires_at) in fields.items():
        one.put(field, value, expires_at)
    shuffled = list(fields.items())
    random.shuffle(shuffled)
    for field, (value, expires_at) in shuffled:
        other.put(field, b"before", 7)
        other.put(field, value, expires_at)
    assert one.dump() == other.dump(), "the order of writes leaves no trace"
    loaded = HashValue.load(one.dump())
    assert loaded == one == other
    assert loaded.size_bytes == one.size_bytes == other.size_bytes
    assert loaded.ends_at_unix_ms == one.ends_at_unix_ms


EXPIRING = (0).to_bytes(4, "little") + (5).to_bytes(8, "little")


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        pack([]),
        pack([b""]),
        pack([b"a", b"1"]),
        pack([b"a", b"a", b"1", b"2", b""]),
        pack([b"b", b"a", b"1", b"2", b""]),
        pack([b"a", b"1", b"x"]),
        pack([b"a", b"1", EXPIRING * 2]),
        pack([b"a", b"1", b"\x01" + EXPIRING[1:]]),
        pack([b"a", b"1", EXPIRING[:4] + bytes(8)]),
        pack([b"a", b"1", EXPIRING])[:-1],
    ],
)
def test_damage_is_told(damaged: bytes) -> None:
    assert len(HashValue.load(pack([b"a", b"1", EXPIRING]))) == 1
    with pytest.raises(ValueError):  # noqa: PT011
        HashValue.load(damaged)


# -- redis agrees ----------------------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("hset"), KEYS, st.dictionaries(FIELDS, VALUES, min_size=1, max_size=4)),
    st.tuples(st.just("hset"), KEYS, st.dictionaries(FIELDS, VALUES, min_size=1, max_size=4)),
    st.tuples(st.just("hsetnx"), KEYS, FIELDS, VALUES),
    st.tuples(st.just("hmget"), KEYS, NAMED),
    st.tuples(st.just("hgetall"), KEYS, st.integers(1, 3)),
    st.tuples(st.just("hexists"), KEYS, FIELDS),
    st.tuples(st.just("hdel"), KEYS, NAMED),
    st.tuples(st.just("hincrby"), KEYS, FIELDS, st.integers(-4, 4) | st.just(limits.INT64_MIN)),
    st.tuples(st.just("hincrbyfloat"), KEYS, FIELDS, st.integers(-9, 9).map(lambda quarters: quarters / 4)),
    st.tuples(st.just("hlen"), KEYS),
    st.tuples(st.just("set"), KEYS),
    st.tuples(st.just("expire"), KEYS),
    st.tuples(st.just("rename"), KEYS, KEYS),
    st.tuples(st.just("del"), KEYS),
)


def both(keyspace: Keyspace, client: redis.Redis, step: tuple[Any, ...]) -> tuple[Any, Any]:
    """Do one thing in both; returns what each answered, with the reason for an error."""

    def ours(kind: str, take: Any, **fields: Any) -> Any:
        return our_answer(keyspace, kind, take, **fields)

    match step:
        case ("hset", key, values):
            return ours("set_hash_fields", lambda it: it.new_count, key=key, fields=pairs(values)), redis_answer(
                lambda: client.hset(key, mapping=values)
            )
        case ("hsetnx", key, field, value):
            one = pairs({field: value})
            return ours(
                "set_hash_fields", lambda it: it.written, key=key, fields=one, condition=IF_ABSENT
            ), redis_answer(lambda: bool(client.hsetnx(key, field, value)))
        case ("hmget", key, fields):
            there = redis_answer(lambda: client.hmget(key, fields))
            if isinstance(there, str):
                return ours("get_hash_fields", lambda it: it, key=key, fields=fields), there
            return fields_of(keyspace, key, *fields), there
        case ("hgetall", key, page_size):
            there = redis_answer(lambda: client.hgetall(key))
            if isinstance(there, str):
                return ours("get_hash", lambda it: it, key=key), there
            return whole_hash(keyspace, key, page_size=page_size), there
        case ("hexists", key, field):
            return ours("check_hash_fields", lambda it: it.existing[0], key=key, fields=[field]), redis_answer(
                lambda: client.hexists(key, field)
            )
        case ("hdel", key, fields):
            return ours("delete_hash_fields", lambda it: it.deleted_count, key=key, fields=fields), redis_answer(
                lambda: client.hdel(key, *fields)
            )
        case ("hincrby", key, field, delta):
            return ours("add_hash_integer", lambda it: it.value, key=key, field=field, delta=delta), redis_answer(
                lambda: client.hincrby(key, field, delta)
            )
        case ("hincrbyfloat", key, field, delta):
            there = redis_answer(lambda: client.hincrbyfloat(key, field, delta))
            here = ours("add_hash_float", lambda it: it.value, key=key, field=field, delta=delta)
            if not isinstance(there, str):
                # Redis adds with more digits than a double has.
                here = pytest.approx(here)
                client.hset(key, field, fields_of(keyspace, key, field)[0])
            return here, there
        case ("hlen", key):
            there = redis_answer(lambda: client.hlen(key))
            if isinstance(there, str):
                return ours("get_hash", lambda it: it, key=key), there
            return do(keyspace, "describe_key", key=key).size, there
        case ("set", key):
            return ours("set_string", lambda it: it.written, key=key, value=b"text"), client.set(key, b"text")
        case ("expire", key):
            expiry = keys_pb2.Expiry(ttl_ms=5_000_000)
            return ours("expire_key", lambda it: it.changed, key=key, expiry=expiry), client.expire(key, 5_000)
        case ("rename", key, new_key):
            renamed = outcome_of(keyspace, "rename_key", key=key, new_key=new_key).rename_key.renamed
            try:
                return renamed, bool(client.rename(key, new_key))
            except redis.ResponseError:
                return renamed, False
        case ("del", key):
            return ours("delete_keys", lambda it: it.deleted_count, keys=[key]), client.delete(key)
    raise AssertionError(step)


@given(st.lists(STEPS, max_size=40))
def test_redis_answers_the_same(redis_client: redis.Redis, steps: list[tuple[Any, ...]]) -> None:  # noqa: F811
    redis_client.flushall()
    keyspace = Keyspace()
    for step in steps:
        ours, theirs = both(keyspace, redis_client, step)
        assert ours == theirs, step
    for key in (b"{t}a", b"{t}b"):
        kind = redis_client.type(key)
        assert do(keyspace, "describe_key", key=key).type == {b"none": 0, b"string": 1, b"hash": 2}[kind]
        assert (redis_client.ttl(key) > 0) == bool(keyspace.expires_at(key))
        if kind == b"hash":
            assert whole_hash(keyspace, key) == redis_client.hgetall(key)
    assert contents(reloaded(keyspace)) == contents(keyspace)
