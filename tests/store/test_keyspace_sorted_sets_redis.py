"""Sorted sets beside redis-server: it answers the same, and holds the same in the end."""

from __future__ import annotations

import math
from typing import Any

import redis
from hypothesis import given
from hypothesis import strategies as st

from tests.store.keyspace_support import assert_same_state, ours, paired, theirs
from tests.support.keyspace import contents, do, outcome_of, reloaded
from tests.support.redis_server import redis_client  # noqa: F401  (a fixture)
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.v1 import sets_pb2, sorted_sets_pb2

LOWEST, HIGHEST = sorted_sets_pb2.SORTED_SET_END_LOWEST, sorted_sets_pb2.SORTED_SET_END_HIGHEST
ABSENT, PRESENT = sorted_sets_pb2.SCORED_MEMBER_CONDITION_ABSENT, sorted_sets_pb2.SCORED_MEMBER_CONDITION_PRESENT
GREATER, LESS = sorted_sets_pb2.SCORE_CONDITION_GREATER, sorted_sets_pb2.SCORE_CONDITION_LESS
UNION, INTERSECTION = sets_pb2.SET_COMBINATION_UNION, sets_pb2.SET_COMBINATION_INTERSECTION
DIFFERENCE = sets_pb2.SET_COMBINATION_DIFFERENCE
SUM, MINIMUM = sorted_sets_pb2.SCORE_AGGREGATE_SUM, sorted_sets_pb2.SCORE_AGGREGATE_MINIMUM
MAXIMUM = sorted_sets_pb2.SCORE_AGGREGATE_MAXIMUM

SETS = (b"{t}a", b"{t}b", b"{t}c")
EQUAL = b"{t}equal"
"""Its members have the same score."""
KEYS = st.sampled_from(SETS)
MEMBERS = st.sampled_from([b"", b"a", b"b", b"c", b"ab", b"\xff"])
SCORES = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 3.0, 1e300, math.inf, -math.inf])
RANKS = st.integers(-7, 7)
SCORE_RANGES = st.tuples(st.just("by_score"), SCORES, st.booleans(), SCORES, st.booleans())
RANK_RANGES = st.tuples(st.just("by_rank"), RANKS, RANKS)
MEMBER_BOUNDS = st.tuples(MEMBERS, st.booleans()) | st.none()
MEMBER_RANGES = st.tuples(st.just("by_member"), MEMBER_BOUNDS, MEMBER_BOUNDS)
SELECTIONS = st.tuples(KEYS, SCORE_RANGES | RANK_RANGES) | st.tuples(st.just(EQUAL), MEMBER_RANGES | RANK_RANGES)
CONDITIONS = st.sampled_from([(), ("NX",), ("XX",), ("GT",), ("LT",), ("XX", "GT"), ("XX", "LT")])
PLENTY = st.lists(st.tuples(MEMBERS, SCORES), min_size=1, max_size=6)
COMBINATIONS = st.one_of(
    # A sum of three depends on their order, and redis-server takes the smallest set first.
    st.tuples(st.sampled_from(["UNION", "INTER"]), st.lists(KEYS, min_size=1, max_size=2), st.just("SUM")),
    st.tuples(
        st.sampled_from(["UNION", "INTER"]), st.lists(KEYS, min_size=1, max_size=3), st.sampled_from(["MIN", "MAX"])
    ),
    st.tuples(st.just("DIFF"), st.lists(KEYS, min_size=1, max_size=3), st.none()),
)
WEIGHTS = st.lists(st.sampled_from([1.0, 2.0, -1.0, 0.5]), min_size=3, max_size=3) | st.none()
STEPS = st.one_of(
    st.tuples(st.just("add"), KEYS, PLENTY, st.just(())),
    st.tuples(st.just("add"), KEYS, PLENTY, CONDITIONS),
    st.tuples(st.just("add"), st.just(EQUAL), st.lists(st.tuples(MEMBERS, st.just(1.0)), min_size=1), st.just(())),
    st.tuples(st.just("increment"), KEYS, MEMBERS, SCORES, CONDITIONS),
    st.tuples(st.just("remove"), KEYS, st.lists(MEMBERS, min_size=1, max_size=3)),
    st.tuples(st.just("scores"), KEYS, st.lists(MEMBERS, min_size=1, max_size=3)),
    st.tuples(st.just("rank"), KEYS, MEMBERS, st.booleans()),
    st.tuples(st.just("range"), SELECTIONS, st.booleans(), st.integers(0, 3), st.integers(1, 5)),
    st.tuples(st.just("count"), SELECTIONS),
    st.tuples(st.just("remove_range"), SELECTIONS),
    st.tuples(st.just("pop"), KEYS, st.sampled_from([LOWEST, HIGHEST]), st.integers(1, 3)),
    st.tuples(st.just("combine"), COMBINATIONS, WEIGHTS),
    st.tuples(st.just("store"), KEYS, COMBINATIONS, WEIGHTS),
    st.tuples(st.just("set"), KEYS, st.lists(MEMBERS, min_size=1, max_size=3)),
    st.tuples(st.just("string"), KEYS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("expire"), KEYS, st.integers(1_000, 3_000)),
)


def selection_of(selection: tuple[Any, ...]) -> dict[str, Any]:
    match selection:
        case ("by_rank", start, stop):
            return {"by_rank": {"start": start, "stop": stop}}
        case ("by_score", low, low_out, high, high_out):
            bounds = {
                "minimum": {"score": low, "exclusive": low_out},
                "maximum": {"score": high, "exclusive": high_out},
            }
            return {"by_score": bounds}
        case (_, low, high):
            named = (("minimum", low), ("maximum", high))
            return {"by_member": {name: {"member": it[0], "exclusive": it[1]} for name, it in named if it is not None}}
    raise AssertionError(selection)


def bounds_of(selection: tuple[Any, ...]) -> list[Any]:
    """Start and stop as redis-server takes them."""
    match selection:
        case ("by_rank", start, stop):
            return [start, stop]
        case ("by_score", low, low_out, high, high_out):
            return ["(" * low_out + repr(low), "(" * high_out + repr(high)]
        case (_, low, high):
            return [
                open_end if it is None else (b"(" if it[1] else b"[") + it[0]
                for it, open_end in ((low, b"-"), (high, b"+"))
            ]
    raise AssertionError(selection)


CONDITION_FIELDS = {
    "NX": {"condition": ABSENT},
    "XX": {"condition": PRESENT},
    "GT": {"score_condition": GREATER},
    "LT": {"score_condition": LESS},
}
COMMANDS = {"by_rank": "RANK", "by_score": "SCORE", "by_member": "LEX"}


def condition_fields(conditions: tuple[str, ...]) -> dict[str, int]:
    return {name: value for condition in conditions for name, value in CONDITION_FIELDS[condition].items()}


def combination_of(combination: tuple[Any, ...], weights: list[float] | None) -> tuple[dict[str, Any], list[Any]]:
    """The fields of the request, and what stands behind the name of the command."""
    name, keys, aggregate = combination
    fields: dict[str, Any] = {"keys": keys}
    fields["combination"] = {"UNION": UNION, "INTER": INTERSECTION, "DIFF": DIFFERENCE}[name]
    arguments = [len(keys), *keys]
    if aggregate is not None:
        fields["aggregate"] = {"SUM": SUM, "MIN": MINIMUM, "MAX": MAXIMUM}[aggregate]
        if weights is not None:
            fields["weights"] = weights[: len(keys)]
            arguments += ["WEIGHTS", *fields["weights"]]
        arguments += ["AGGREGATE", aggregate]
    return fields, arguments


def pairs_of(response: Any) -> list[tuple[bytes, float]]:
    return [(item.member, item.score) for item in response.members]


def score_of(reply: Any) -> Any:
    return reply if reply is None or isinstance(reply, str) else float(reply)


def both(keyspace: Keyspace, client: redis.Redis, step: tuple[Any, ...]) -> tuple[Any, Any]:
    """Do one thing in both; returns what each answered."""
    match step:
        case ("add", key, scores, conditions):
            members = [{"member": member, "score": score} for member, score in scores]
            fields = condition_fields(conditions)
            outcome = outcome_of(keyspace, "add_sorted_set_members", key=key, members=members, **fields)
            flat = [part for member, score in scores for part in (repr(score), member)]
            reply = theirs(lambda: client.execute_command("ZADD", key, *conditions, "CH", *flat))
            return ours(outcome, lambda it: it.added_count + it.changed_count), reply
        case ("increment", key, member, delta, conditions):
            fields = condition_fields(conditions)
            outcome = outcome_of(keyspace, "increment_sorted_set_member", key=key, member=member, delta=delta, **fields)
            reply = theirs(lambda: client.execute_command("ZADD", key, *conditions, "INCR", repr(delta), member))
            return ours(outcome, lambda it: it.score if it.HasField("score") else None), score_of(reply)
        case ("remove", key, members):
            outcome = outcome_of(keyspace, "remove_sorted_set_members", key=key, members=members)
            return ours(outcome, lambda it: it.removed_count), theirs(lambda: client.zrem(key, *members))
        case ("scores", key, members):
            outcome = outcome_of(keyspace, "get_sorted_set_scores", key=key, members=members)
            reply = theirs(lambda: [score_of(it) for it in client.execute_command("ZMSCORE", key, *members)])
            return ours(outcome, lambda it: [s.score if s.HasField("score") else None for s in it.scores]), reply
        case ("rank", key, member, reverse):
            outcome = outcome_of(keyspace, "get_sorted_set_ranks", key=key, members=[member], reverse=reverse)
            reply = theirs(lambda: client.zrevrank(key, member) if reverse else client.zrank(key, member))
            return ours(outcome, lambda it: it.ranks[0].rank if it.ranks[0].HasField("rank") else None), reply
        case ("range", (key, selection), reverse, offset, limit):
            by_rank = selection[0] == "by_rank"
            fields = {} if by_rank else {"offset": offset, "limit": limit}
            outcome = outcome_of(
                keyspace, "get_sorted_set_range", key=key, range=selection_of(selection), reverse=reverse, **fields
            )
            bounds = bounds_of(selection)
            options: list[Any] = [] if by_rank else [f"BY{COMMANDS[selection[0]]}", "LIMIT", offset, limit]
            if reverse:
                bounds = bounds if by_rank else bounds[::-1]
                options.append("REV")
            if selection[0] == "by_member":
                reply = theirs(lambda: client.execute_command("ZRANGE", key, *bounds, *options))
                return ours(outcome, lambda it: [item.member for item in it.members]), reply
            reply = theirs(lambda: client.execute_command("ZRANGE", key, *bounds, *options, "WITHSCORES"))
            return ours(outcome, pairs_of), paired(reply)
        case ("count", (key, selection)):
            outcome = outcome_of(keyspace, "count_sorted_set_range", key=key, range=selection_of(selection))
            bounds = bounds_of(selection)
            command = {"by_score": "ZCOUNT", "by_member": "ZLEXCOUNT"}.get(selection[0])
            reply = theirs(
                lambda: client.execute_command(command, key, *bounds) if command else len(client.zrange(key, *bounds))
            )
            return ours(outcome, lambda it: it.selected_count), reply
        case ("remove_range", (key, selection)):
            outcome = outcome_of(keyspace, "remove_sorted_set_range", key=key, range=selection_of(selection))
            command = f"ZREMRANGEBY{COMMANDS[selection[0]]}"
            reply = theirs(lambda: client.execute_command(command, key, *bounds_of(selection)))
            return ours(outcome, lambda it: it.removed_count), reply
        case ("pop", key, end, count):
            outcome = outcome_of(keyspace, "pop_sorted_set_members", key=key, end=end, count=count)
            reply = theirs(lambda: (client.zpopmin if end == LOWEST else client.zpopmax)(key, count))
            return ours(outcome, pairs_of), paired(reply)
        case ("combine", combination, weights):
            fields, arguments = combination_of(combination, weights)
            outcome = outcome_of(keyspace, "combine_sorted_sets", **fields)
            reply = theirs(lambda: client.execute_command(f"Z{combination[0]}", *arguments, "WITHSCORES"))
            return ours(outcome, pairs_of), paired(reply)
        case ("store", destination, combination, weights):
            fields, arguments = combination_of(combination, weights)
            outcome = outcome_of(keyspace, "store_combined_sorted_sets", destination=destination, **fields)
            reply = theirs(lambda: client.execute_command(f"Z{combination[0]}STORE", destination, *arguments))
            return ours(outcome, lambda it: it.member_count), reply
        case ("set", key, members):
            outcome = outcome_of(keyspace, "add_set_members", key=key, members=members)
            return ours(outcome, lambda it: it.added_count), theirs(lambda: client.sadd(key, *members))
        case ("string", key):
            return do(keyspace, "set_string", key=key, value=b"v").written, client.set(key, b"v")
        case ("delete", key):
            return do(keyspace, "delete_keys", keys=[key]).deleted_count, client.delete(key)
        case ("expire", key, seconds):
            response = do(keyspace, "expire_key", key=key, expiry={"ttl_ms": seconds * 1_000})
            return response.changed, bool(client.expire(key, seconds))
    raise AssertionError(step)


@given(st.lists(STEPS, max_size=40))
def test_redis_answers_the_same(redis_client: redis.Redis, steps: list[tuple[Any, ...]]) -> None:  # noqa: F811
    redis_client.flushall()
    keyspace, twin = Keyspace(), Keyspace()
    for step in steps:
        before = contents(keyspace)
        answered, expected = both(keyspace, redis_client, step)
        assert answered == expected, step
        assert answered not in ("WRONG_TYPE", "ERROR") or contents(keyspace) == before
    assert_same_state(keyspace, redis_client, (*SETS, EQUAL))
    reloaded(keyspace)
    redis_client.flushall()
    for step in steps:
        both(twin, redis_client, step)
    assert contents(twin) == contents(keyspace), "the same operations make the same keyspace"
