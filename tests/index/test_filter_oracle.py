"""Filters mean what filter.proto says: random documents and filter trees against a plain recursive reading of it.

The oracle below shares nothing with the package: it walks the messages, compares numbers as fractions and knows
the instants of the times in its pool from datetime.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import numpy as np
import orjson
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmem.index.filter import compile_filter
from vecmem.index.payload import PayloadTable
from vecmem.v1 import filter_pb2 as pb

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(*parts: int, offset_minutes: int = 0, nanoseconds: int = 0) -> int:
    moment = datetime(*parts, tzinfo=timezone(timedelta(minutes=offset_minutes)))
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000 + nanoseconds


TIMES = {
    "2026-11-23T04:05:06Z": instant(2026, 11, 23, 4, 5, 6),
    "2026-11-23t04:05:06.000000001z": instant(2026, 11, 23, 4, 5, 6, nanoseconds=1),
    "2026-11-23T05:05:06+01:00": instant(2026, 11, 23, 5, 5, 6, offset_minutes=60),
    "2026-11-22T22:35:06.5-05:30": instant(2026, 11, 22, 22, 35, 6, 500_000, offset_minutes=-330),
    "0001-01-01T00:00:00Z": instant(1, 1, 1),
    "1969-12-31T23:59:59.999999999Z": -1,
    "9999-12-31T23:59:59.999999999Z": instant(9999, 12, 31, 23, 59, 59, 999_999, nanoseconds=999),
}
NO_TIMES = ["2026-11-23", "2026-11-23 04:05:06Z", "2026-02-30T00:00:00Z", "2026-11-23T04:05:06"]
INTEGERS = [0, 1, -1, 2, 2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**62 + 1, 2**63 - 1, -(2**63)]
REALS = [
    0.0,
    -0.0,
    1.0,
    0.5,
    -1.0,
    2.0**53,
    2.0**53 + 2,
    -(2.0**53),
    2.0**62,
    2.0**63,
    -(2.0**63),
    1e300,
    -1e300,
    5e-324,
]
KEYS = ["a", "b", "0", "1", "a.b", 'q"', ""]

scalars = st.sampled_from([None, True, False, "", "1", "true", "null", "a", *TIMES, *NO_TIMES, *INTEGERS, *REALS])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.sampled_from(KEYS), values, max_size=4)


@st.composite
def paths(draw):
    segments = []
    for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3)):
        quoted = draw(st.booleans()) or not key or "." in key or '"' in key
        segments.append('"' + key.replace('"', '""') + '"' if quoted else key)
    return ".".join(segments)


match_values = st.one_of(
    st.sampled_from(["", "1", "true", "a", *TIMES]).map(lambda v: pb.MatchValue(keyword=v)),
    st.sampled_from(INTEGERS).map(lambda v: pb.MatchValue(integer=v)),
    st.booleans().map(lambda v: pb.MatchValue(boolean=v)),
)
match_lists = st.lists(match_values, min_size=1, max_size=4).map(lambda v: pb.MatchValues(values=v))
numbers = st.sampled_from(INTEGERS).map(lambda v: pb.Number(integer=v)) | st.sampled_from(REALS).map(
    lambda v: pb.Number(real=v)
)
timestamps = (
    st.tuples(st.sampled_from(list(TIMES.values())), st.sampled_from([0, 1, -1, 10**9]))
    .map(sum)
    .map(lambda ns: Timestamp(seconds=min(max(ns // 10**9, -62135596800), 253402300799), nanos=ns % 10**9))
)


def ranges(kind, bounds):
    names = st.sets(st.sampled_from(["gt", "gte", "lt", "lte"]), min_size=1)
    return names.flatmap(lambda chosen: st.builds(kind, **dict.fromkeys(sorted(chosen), bounds)))


fields = st.one_of(
    st.builds(pb.FieldCondition, path=paths(), match=match_values),
    st.builds(pb.FieldCondition, path=paths(), any_of=match_lists),
    st.builds(pb.FieldCondition, path=paths(), none_of=match_lists),
    st.builds(pb.FieldCondition, path=paths(), number_range=ranges(pb.NumberRange, numbers)),
    st.builds(pb.FieldCondition, path=paths(), time_range=ranges(pb.TimeRange, timestamps)),
    st.builds(pb.FieldCondition, path=paths(), exists=st.booleans()),
    st.builds(pb.FieldCondition, path=paths(), is_null=st.booleans()),
)
POINT_IDS = [f"p{number}" for number in range(12)]
leaves = st.builds(pb.Filter, field=fields) | st.lists(st.sampled_from([*POINT_IDS, "nobody"]), max_size=5).map(
    lambda ids: pb.Filter(has_id=pb.PointIds(ids=ids))
)
filters = st.recursive(
    leaves,
    lambda inner: st.tuples(st.sampled_from(["all_of", "any_of", "none_of"]), st.lists(inner, max_size=3)).map(
        lambda drawn: pb.Filter(**{drawn[0]: pb.FilterList(filters=drawn[1])})
    ),
    max_leaves=6,
)


# The oracle.


def split(path):
    """(key, is an index) of every segment."""
    if not path:
        return []
    if path[0] == '"':
        key, rest = "", path[1:]
        while rest[0] != '"' or rest[:2] == '""':
            key, rest = key + rest[0], rest[2:] if rest[0] == '"' else rest[1:]
        return [(key, False), *split(rest[2:])]
    head, _, tail = path.partition(".")
    return [(head, set(head) <= set("0123456789")), *split(tail)]


def reach(node, steps):
    if not steps:
        return [node]
    (key, is_index), *rest = steps
    if isinstance(node, dict):
        return reach(node[key], rest) if key in node else []
    if isinstance(node, list) and is_index:
        return reach(node[int(key)], rest) if int(key) < len(node) else []
    return [found for element in node for found in reach(element, steps)] if isinstance(node, list) else []


def flat(node):
    return [leaf for element in node for leaf in flat(element)] if isinstance(node, list) else [node]


def number(message):
    return Fraction(getattr(message, message.WhichOneof("kind")))


def equals(value, wanted):
    kind = wanted.WhichOneof("kind")
    if kind == "keyword":
        return isinstance(value, str) and value == wanted.keyword
    if kind == "boolean":
        return isinstance(value, bool) and value == wanted.boolean
    return isinstance(value, (int, float)) and not isinstance(value, bool) and Fraction(value) == wanted.integer


def within(value, message, convert):
    return not (
        (message.HasField("gt") and not value > convert(message.gt))
        or (message.HasField("gte") and not value >= convert(message.gte))
        or (message.HasField("lt") and not value < convert(message.lt))
        or (message.HasField("lte") and not value <= convert(message.lte))
    )


def field_holds(condition, document):
    reached = reach(document, split(condition.path))
    found = [leaf for node in reached for leaf in flat(node)]
    kind = condition.WhichOneof("test")
    if kind == "match":
        return any(equals(value, condition.match) for value in found)
    if kind in {"any_of", "none_of"}:
        wanted = getattr(condition, kind).values
        return any(equals(value, one) for value in found for one in wanted) == (kind == "any_of")
    if kind == "number_range":
        numeric = [value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]
        return any(within(Fraction(value), condition.number_range, number) for value in numeric)
    if kind == "time_range":
        instants = [TIMES[value] for value in found if isinstance(value, str) and value in TIMES]
        return any(within(ns, condition.time_range, lambda t: t.seconds * 10**9 + t.nanos) for ns in instants)
    if kind == "exists":
        return bool(reached) == condition.exists
    return any(value is None for value in found) == condition.is_null


def holds(message, point_id, document):
    kind = message.WhichOneof("kind")
    if kind == "field":
        return field_holds(message.field, document)
    if kind == "has_id":
        return point_id in message.has_id.ids
    outcomes = [holds(child, point_id, document) for child in getattr(message, kind).filters]
    return {"all_of": all(outcomes), "any_of": any(outcomes), "none_of": not any(outcomes)}[kind]


# The tests.


def rows_of_ids(ids):
    return np.array([POINT_IDS.index(one) for one in ids if one in POINT_IDS], np.int64)


def check(compiled, message, table, stored):
    mask = compiled.mask(table, len(POINT_IDS), rows_of_ids)
    assert mask.dtype == np.bool_
    assert mask.shape == (len(POINT_IDS),)
    expected = [holds(message, point_id, stored.get(row, {})) for row, point_id in enumerate(POINT_IDS)]
    assert mask.tolist() == expected
    packed = compiled.row_set(table, len(POINT_IDS), rows_of_ids)
    assert packed.mask().tolist() == expected
    assert (packed.count, packed.row_count, packed.rows().tolist()) == (
        sum(expected),
        len(expected),
        [row for row, passes in enumerate(expected) if passes],
    )
    assert [compiled.matches(point_id, stored.get(row, {})) for row, point_id in enumerate(POINT_IDS)] == expected


@settings(max_examples=400, deadline=None)
@given(st.lists(documents, min_size=1, max_size=len(POINT_IDS)), filters)
def test_matches_and_mask_agree_with_the_oracle(stored, message):
    table = PayloadTable()
    for row, document in enumerate(stored):
        table.set(row, orjson.dumps(document))
    check(compile_filter(message), message, table, dict(enumerate(stored)))


rows = st.integers(0, len(POINT_IDS) - 1)
changes = st.one_of(
    st.tuples(st.just("set"), rows, documents),
    st.tuples(st.just("clear"), rows, st.none()),
    st.tuples(st.just("slice"), st.integers(0, 1), st.none()),
    st.tuples(st.just("abandon"), st.integers(0, 1), st.none()),
    st.tuples(st.just("ask"), st.integers(0, 1), st.none()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(documents, max_size=8), st.lists(changes, max_size=25), filters, filters, st.integers(1, 3))
def test_mask_is_right_whatever_happens_while_columns_are_half_built(initial, sequence, first, second, columns_max):
    """Two queries build columns a row at a time between writes, frees, reuse of rows, giving up and evictions."""
    table = PayloadTable(columns_max=columns_max, slice_rows=1)
    stored = {}
    for row, document in enumerate(initial):
        table.set(row, orjson.dumps(document))
        stored[row] = document
    messages = [first, second]
    compiled = [compile_filter(message) for message in messages]
    builds = [table.ensure_columns(one.paths) for one in compiled]
    for kind, target, document in sequence:
        if kind == "set":
            table.set(target, orjson.dumps(document))
            stored[target] = document
        elif kind == "clear":
            table.clear(target)
            stored.pop(target, None)
        elif kind == "slice":
            next(builds[target], None)
        elif kind == "abandon":
            builds[target].close()
            builds[target] = table.ensure_columns(compiled[target].paths)
        else:
            for _ in builds[target]:
                pass
            check(compiled[target], messages[target], table, stored)
    for one, message in zip(compiled, messages, strict=True):
        check(one, message, table, stored)


@settings(max_examples=200, deadline=None)
@given(documents, fields)
def test_none_of_negates_any_of_and_is_null_its_opposite(document, condition):
    kind = condition.WhichOneof("test")
    opposite = pb.FieldCondition()
    opposite.CopyFrom(condition)
    if kind == "any_of":
        opposite.none_of.CopyFrom(condition.any_of)
    elif kind in {"exists", "is_null"}:
        setattr(opposite, kind, not getattr(condition, kind))
    else:
        return
    answers = {compile_filter(pb.Filter(field=one)).matches("p", document) for one in (condition, opposite)}
    assert answers == {True, False}
