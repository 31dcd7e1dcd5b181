"""Streams beside redis-server: it answers the same, and holds the same in the end.

The clocks differ, so ids are said and idle times are either almost nothing or hours, which a claim makes of them.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.keyspace_support import ours, theirs
from tests.store.stream_histories import assert_consistent
from tests.support.keyspace import contents, do, outcome_of, reloaded
from tests.support.redis_server import redis_client  # noqa: F401  (a fixture)
from vecmem.store.keyspace import stream_entries
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.stream_value import StreamValue

NOW = 10**12
HOURS_MS, LESS_MS, MORE_MS = 10**7, 10**6, 10**9
SEQUENCE_MAX = 2**64 - 1

Id = tuple[int, int]
KEYS = st.sampled_from([b"{t}a", b"{t}b"])
GROUPS = st.sampled_from([b"g", b"h"])
CONSUMERS = st.sampled_from([b"ada", b"bob", b"cem"])
IDS = st.tuples(st.integers(0, 6), st.sampled_from([0, 1, 2, 2, SEQUENCE_MAX]))
NEW_IDS = st.tuples(st.integers(0, 9), st.none() | st.integers(0, 2)).filter(lambda one: one != (0, 0))
SOME_IDS = st.lists(IDS, min_size=1, max_size=4)
FIELDS = st.lists(st.sampled_from([b"", b"a", b"b", b"\xff"]), min_size=1, max_size=3).map(
    lambda names: [(name, name * 2) for name in names]
)
TRIMS = st.tuples(st.just("MAXLEN"), st.integers(0, 4)) | st.tuples(st.just("MINID"), IDS)
BOUNDS = st.none() | st.tuples(IDS, st.booleans()).filter(lambda bound: bound != ((0, 0), True))
"""redis-server refuses to leave out the least id; here that is a range without entries."""
STARTS = st.none() | st.just("$") | IDS
COUNTS = st.integers(1, 5)
IDLE = st.sampled_from([0, 0, LESS_MS, MORE_MS])
ADD = st.tuples(st.just("add"), KEYS, NEW_IDS, FIELDS, st.none() | TRIMS, st.booleans())
READ_NEW = st.tuples(st.just("read_new"), KEYS, GROUPS, CONSUMERS, COUNTS, st.sampled_from([False, False, True]))
CLAIM = st.tuples(
    st.just("claim"),
    KEYS,
    GROUPS,
    CONSUMERS,
    IDLE,
    SOME_IDS,
    st.booleans(),
    st.booleans(),
    st.none() | st.just(HOURS_MS),
    st.none() | st.integers(0, 5),
)
STEPS = st.one_of(
    ADD,
    st.tuples(st.just("fill"), KEYS, st.integers(1, 8)),
    st.tuples(st.just("fill"), KEYS, st.integers(1, 8)),
    st.tuples(st.just("range"), KEYS, BOUNDS, BOUNDS, st.booleans(), COUNTS),
    st.tuples(st.just("delete_entries"), KEYS, SOME_IDS),
    st.tuples(st.just("trim"), KEYS, TRIMS),
    st.tuples(st.just("read"), st.dictionaries(KEYS, st.none() | IDS, min_size=1), COUNTS),
    st.tuples(st.just("create"), KEYS, GROUPS, STARTS, st.booleans()),
    st.tuples(st.just("create"), KEYS, GROUPS, st.none(), st.just(value=True)),
    st.tuples(st.just("position"), KEYS, GROUPS, STARTS),
    st.tuples(st.just("destroy"), KEYS, GROUPS),
    st.tuples(st.just("consumer"), KEYS, GROUPS, CONSUMERS),
    st.tuples(st.just("delete_consumer"), KEYS, GROUPS, CONSUMERS),
    READ_NEW,
    READ_NEW,
    st.tuples(st.just("read_pending"), KEYS, GROUPS, CONSUMERS, COUNTS, IDS),
    st.tuples(st.just("acknowledge"), KEYS, GROUPS, SOME_IDS),
    CLAIM,
    CLAIM,
    st.tuples(st.just("auto_claim"), KEYS, GROUPS, CONSUMERS, IDLE, st.none() | IDS, COUNTS, st.booleans()),
    st.tuples(st.just("pending"), KEYS, GROUPS, BOUNDS, BOUNDS, st.none() | CONSUMERS, IDLE),
    st.tuples(st.just("string"), KEYS),
    st.tuples(st.just("delete"), KEYS),
)


BEGINNING = [
    ("fill", b"{t}a", 7),
    ("create", b"{t}a", b"g", None, True),
    ("create", b"{t}b", b"g", None, True),
    ("read_new", b"{t}a", b"g", b"ada", 2, False),
    ("read_new", b"{t}a", b"g", b"bob", 3, False),
]
"""Something to begin with, so that short histories already mean something."""


def raw(client: redis.Redis, *arguments: Any) -> Any:
    """What redis-server answers, without what its client makes of it."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*arguments)
        return connection.read_response()
    finally:
        client.connection_pool.release(connection)


def facts(reply: Any) -> dict[bytes, Any]:
    """Names with values, which redis-server's older protocol lists one after the other."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def text(one: Id) -> str:
    return f"{one[0]}-{'*' if one[1] is None else one[1]}"


def message(one: Id | None) -> dict[str, int] | None:
    return None if one is None else {"time_unix_ms": one[0], "sequence": one[1]}


def told(found: Any) -> bytes:
    return b"%d-%d" % (found.time_unix_ms, found.sequence)


def bound_texts(minimum: Any, maximum: Any) -> tuple[str, str]:
    return tuple(  # type: ignore[return-value]
        end if it is None else "(" * it[1] + text(it[0]) for it, end in ((minimum, "-"), (maximum, "+"))
    )


def bound_fields(minimum: Any, maximum: Any) -> dict[str, Any]:
    named = (("minimum", minimum), ("maximum", maximum))
    return {name: {"id": message(it[0]), "exclusive": it[1]} for name, it in named if it is not None}


def trim_fields(trim: Any) -> dict[str, Any] | None:
    match trim:
        case ("MAXLEN", length):
            return {"max_length": length}
        case ("MINID", one):
            return {"min_id": message(one)}
    return None


def trim_texts(trim: Any) -> list[Any]:
    match trim:
        case ("MINID", one):
            return ["MINID", text(one)]
    return [] if trim is None else list(trim)


def start_fields(start: Any) -> dict[str, Any]:
    return {"at_end": True} if start == "$" else {"after": message(start)}


def start_text(start: Any) -> str:
    return "0-0" if start is None else start if start == "$" else text(start)


def entry(found: Any) -> Any:
    """An entry as redis-server has it in a reply."""
    flat = [part for pair in found.fields for part in (pair.field, pair.value)]
    return [told(found.id), None if found.deleted else flat]


def streams(reply: Any) -> Any:
    """Entries by key; redis-server leaves streams without any out, and answers nothing at all without one."""
    if isinstance(reply, str):
        return reply
    found = reply if isinstance(reply, dict) else dict(reply or [])
    return {key: entries for key, entries in found.items() if entries}


def cursor(response: Any) -> bytes:
    return told(response.next_start) if response.HasField("next_start") else b"0-0"


def pending_row(found: Any) -> list[Any]:
    return [told(found.id), found.consumer, found.idle_ms >= LESS_MS, found.delivery_count]


def pending_rows(reply: Any) -> Any:
    return reply if isinstance(reply, str) else [[row[0], row[1], row[2] >= LESS_MS, row[3]] for row in reply]


def both(keyspace: Keyspace, client: redis.Redis, step: tuple[Any, ...]) -> tuple[Any, Any]:
    """Do one thing in both; returns what each answered."""

    def mine(kind: str, take: Any, **fields: Any) -> Any:
        return ours(outcome_of(keyspace, kind, now=NOW, **fields), take)

    def its(*arguments: Any) -> Any:
        return theirs(lambda: raw(client, *arguments))

    match step:
        case ("add", key, new_id, pairs, trim, only_if_exists):
            fields = {"id_time_unix_ms": new_id[0]} if new_id[1] is None else {"explicit_id": message(new_id)}
            flat = [part for pair in pairs for part in pair]
            return mine(
                "append_stream_entry",
                lambda it: told(it.id) if it.HasField("id") else None,
                key=key,
                fields=[{"field": field, "value": value} for field, value in pairs],
                trim=trim_fields(trim),
                only_if_exists=only_if_exists,
                **fields,
            ), its("XADD", key, *["NOMKSTREAM"] * only_if_exists, *trim_texts(trim), text(new_id), *flat)
        case ("fill", key, count):
            steps = [("add", key, (time, None), [(b"f", b"%d" % time)], None, False) for time in range(count)]
            answers = [both(keyspace, client, one) for one in steps]
            return [answer for answer, _ in answers], [answer for _, answer in answers]
        case ("range", key, minimum, maximum, reverse, count):
            texts = bound_texts(minimum, maximum)
            texts = texts[::-1] if reverse else texts
            reply = its("XREVRANGE" if reverse else "XRANGE", key, *texts, "COUNT", count)
            answer = mine(
                "get_stream_range",
                lambda it: [entry(one) for one in it.entries],
                key=key,
                range=bound_fields(minimum, maximum),
                reverse=reverse,
                limit=count,
            )
            return answer, reply
        case ("delete_entries", key, ids):
            answer = mine("delete_stream_entries", lambda it: it.deleted_count, key=key, ids=list(map(message, ids)))
            return answer, its("XDEL", key, *map(text, ids))
        case ("trim", key, trim):
            answer = mine("trim_stream", lambda it: it.trimmed_count, key=key, trim=trim_fields(trim))
            return answer, its("XTRIM", key, *trim_texts(trim))
        case ("read", positions, count):
            fields = [{"key": key, "after": message(after)} for key, after in positions.items() if after is not None]
            fields += [{"key": key} for key, after in positions.items() if after is None]
            answer = mine(
                "read_streams",
                lambda it: {one.key: [entry(found) for found in one.entries] for one in it.streams if one.entries},
                positions=fields,
                count=count,
            )
            texts = ["0-0" if after is None else text(after) for after in positions.values()]
            return answer, streams(its("XREAD", "COUNT", count, "STREAMS", *positions, *texts))
        case ("create", key, group, start, make):
            answer = mine(
                "create_stream_group", lambda _: b"OK", key=key, group=group, create_stream=make, **start_fields(start)
            )
            return answer, its("XGROUP", "CREATE", key, group, start_text(start), *["MKSTREAM"] * make)
        case ("position", key, group, start):
            answer = mine("set_stream_group_position", lambda _: b"OK", key=key, group=group, **start_fields(start))
            return answer, its("XGROUP", "SETID", key, group, start_text(start))
        case ("destroy", key, group):
            answer = mine("delete_stream_group", lambda it: int(it.deleted), key=key, group=group)
            reply = its("XGROUP", "DESTROY", key, group)
            return answer, 0 if reply == "ERROR" else reply  # no key is an error there, no group is none
        case ("consumer", key, group, consumer):
            answer = mine("create_stream_consumer", lambda it: int(it.created), key=key, group=group, consumer=consumer)
            return answer, its("XGROUP", "CREATECONSUMER", key, group, consumer)
        case ("delete_consumer", key, group, consumer):
            answer = mine(
                "delete_stream_consumer", lambda it: it.pending_count, key=key, group=group, consumer=consumer
            )
            return answer, its("XGROUP", "DELCONSUMER", key, group, consumer)
        case ("read_new", key, group, consumer, count, no_acknowledge):
            answer = mine(
                "read_stream_group",
                lambda it: [entry(one) for one in it.entries],
                key=key,
                group=group,
                consumer=consumer,
                count=count,
                no_acknowledge=no_acknowledge,
            )
            options = ["COUNT", count, *["NOACK"] * no_acknowledge]
            reply = streams(its("XREADGROUP", "GROUP", group, consumer, *options, "STREAMS", key, ">"))
            return answer, reply.get(key, []) if isinstance(reply, dict) else reply
        case ("read_pending", key, group, consumer, count, after):
            answer = mine(
                "read_stream_group",
                lambda it: [entry(one) for one in it.entries],
                key=key,
                group=group,
                consumer=consumer,
                count=count,
                pending_after=message(after),
            )
            options = ["COUNT", count]
            reply = streams(its("XREADGROUP", "GROUP", group, consumer, *options, "STREAMS", key, text(after)))
            return answer, reply.get(key, []) if isinstance(reply, dict) else reply
        case ("acknowledge", key, group, ids):
            answer = mine(
                "acknowledge_stream_entries",
                lambda it: sum(it.acknowledged),
                key=key,
                group=group,
                ids=list(map(message, ids)),
            )
            return answer, its("XACK", key, group, *map(text, ids))
        case ("claim", key, group, consumer, min_idle, ids, only_ids, force, idle, count):
            answer = mine(
                "claim_stream_entries",
                lambda it: [told(one.id) if only_ids else entry(one) for one in it.entries],
                key=key,
                group=group,
                consumer=consumer,
                min_idle_ms=min_idle,
                ids=list(map(message, ids)),
                only_ids=only_ids,
                force=force,
                idle_ms=idle,
                delivery_count=count,
            )
            options: list[Any] = ["JUSTID"] * only_ids + ["FORCE"] * force
            options += [] if idle is None else ["IDLE", idle]
            options += [] if count is None else ["RETRYCOUNT", count]
            return answer, its("XCLAIM", key, group, consumer, min_idle, *map(text, ids), *options)
        case ("auto_claim", key, group, consumer, min_idle, start, count, only_ids):
            answer = mine(
                "auto_claim_stream_entries",
                lambda it: [
                    cursor(it),
                    [told(one.id) if only_ids else entry(one) for one in it.entries],
                    list(map(told, it.deleted_ids)),
                ],
                key=key,
                group=group,
                consumer=consumer,
                min_idle_ms=min_idle,
                start=message(start),
                count=count,
                only_ids=only_ids,
            )
            first = "0-0" if start is None else text(start)
            options = ["COUNT", count, *["JUSTID"] * only_ids]
            return answer, its("XAUTOCLAIM", key, group, consumer, min_idle, first, *options)
        case ("pending", key, group, minimum, maximum, consumer, min_idle):
            answer = mine(
                "list_stream_pending",
                lambda it: [pending_row(one) for one in it.entries],
                key=key,
                group=group,
                range=bound_fields(minimum, maximum),
                consumer=consumer,
                min_idle_ms=min_idle,
            )
            texts = [*bound_texts(minimum, maximum), 100, *([] if consumer is None else [consumer])]
            reply = pending_rows(its("XPENDING", key, group, "IDLE", min_idle, *texts))
            return answer, reply
        case ("string", key):
            return do(keyspace, "set_string", key=key, value=b"v", now=NOW).written, client.set(key, b"v")
        case ("delete", key):
            return do(keyspace, "delete_keys", keys=[key], now=NOW).deleted_count, client.delete(key)
    raise AssertionError(step)


def assert_same_stream(keyspace: Keyspace, client: redis.Redis, key: bytes) -> None:
    found = do(keyspace, "describe_stream", key=key, now=NOW)
    described = do(keyspace, "describe_key", key=key, now=NOW)
    info = facts(raw(client, "XINFO", "STREAM", key))
    assert (found.entry_count, described.size) == (info[b"length"], info[b"length"])
    assert told(found.last_id) == info[b"last-generated-id"]
    assert told(found.max_deleted_id) == info[b"max-deleted-entry-id"]
    assert (found.appended_count, found.group_count) == (info[b"entries-added"], info[b"groups"])
    for field, name in (("first_entry_id", b"first-entry"), ("last_entry_id", b"last-entry")):
        assert (told(getattr(found, field)) if found.HasField(field) else None) == (info[name] or [None])[0]
    entries = do(keyspace, "get_stream_range", key=key, now=NOW).entries
    assert [entry(one) for one in entries] == raw(client, "XRANGE", key, "-", "+")
    groups = {one.group: one for one in do(keyspace, "list_stream_groups", key=key, now=NOW).groups}
    listed = {group[b"name"]: group for group in map(facts, raw(client, "XINFO", "GROUPS", key))}
    assert list(groups) == sorted(listed)
    for name, group in groups.items():
        theirs_ = listed[name]
        assert (group.consumer_count, group.pending_count) == (theirs_[b"consumers"], theirs_[b"pending"])
        assert told(group.last_delivered_id) == theirs_[b"last-delivered-id"]
        if theirs_[b"lag"] is not None and info[b"length"] == info[b"entries-added"]:
            assert group.lag == theirs_[b"lag"], "where nothing was removed it is exact there as well"
        consumers = do(keyspace, "list_stream_consumers", key=key, group=name, now=NOW).consumers
        expected = [(one[b"name"], one[b"pending"]) for one in map(facts, raw(client, "XINFO", "CONSUMERS", key, name))]
        assert [(one.consumer, one.pending_count) for one in consumers] == sorted(expected)
        rows = do(keyspace, "list_stream_pending", key=key, group=name, now=NOW).entries
        assert [pending_row(one) for one in rows] == pending_rows(raw(client, "XPENDING", key, name, "-", "+", 100))
        count, first, last, _ = raw(client, "XPENDING", key, name)
        assert group.pending_count == count
        assert (told(group.first_pending_id) if count else None) == first
        assert (told(group.last_pending_id) if count else None) == last


def assert_same_state(keyspace: Keyspace, client: redis.Redis) -> None:
    for key in (b"{t}a", b"{t}b"):
        value = keyspace.find(key, NOW)
        match client.type(key):
            case b"none":
                assert value is None
            case b"string":
                assert keyspace.string(key, NOW) == client.get(key)
            case b"stream":
                assert_same_stream(keyspace, client, key)


@settings(max_examples=200)
@given(st.lists(STEPS, max_size=40))
def test_redis_answers_the_same(redis_client: redis.Redis, steps: list[tuple[Any, ...]]) -> None:  # noqa: F811
    redis_client.flushall()
    keyspace, twin = Keyspace(), Keyspace()
    steps = [*BEGINNING, *steps]
    with patch.object(stream_entries, "BLOCK_ENTRIES", 4):
        for step in steps:
            before = contents(keyspace)
            answered, expected = both(keyspace, redis_client, step)
            assert answered == expected, step
            assert answered not in ("WRONG_TYPE", "ERROR") or contents(keyspace) == before
        assert_same_state(keyspace, redis_client)
        reloaded(keyspace)
        for value in keyspace.values.values():
            if isinstance(value, StreamValue):
                assert_consistent(value)
                assert_consistent(value.copy())
                assert value.copy() == value
    redis_client.flushall()
    for step in steps:
        both(twin, redis_client, step)
    assert contents(twin) == contents(keyspace), "the same operations make the same keyspace, whatever its blocks"
