"""Every malformed filter is refused with the right error at the exact place."""

from __future__ import annotations

import math

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from vecmem import limits
from vecmem.errors import InvalidFilterError, LimitExceededError
from vecmem.index.filter import compile_filter
from vecmem.v1 import filter_pb2 as pb


def field(path="x", **test) -> pb.Filter:
    return pb.Filter(field=pb.FieldCondition(path=path, **test))


def all_of(*filters: pb.Filter) -> pb.Filter:
    return pb.Filter(all_of=pb.FilterList(filters=filters))


def nested(depth: int) -> pb.Filter:
    message = field(exists=True)
    for _ in range(depth - 1):
        message = pb.Filter(none_of=pb.FilterList(filters=[message]))
    return message


def values(count: int) -> pb.MatchValues:
    return pb.MatchValues(values=[pb.MatchValue(integer=number) for number in range(count)])


GOOD = field(exists=True)

MALFORMED = {
    "no arm": (pb.Filter(), InvalidFilterError, "query.filter"),
    "no arm below": (all_of(GOOD, pb.Filter()), InvalidFilterError, "query.filter.all_of.filters[1]"),
    "no bound, deep": (
        all_of(GOOD, GOOD, field(number_range=pb.NumberRange())),
        InvalidFilterError,
        "query.filter.all_of.filters[2].field.number_range",
    ),
    "no arm under any_of in none_of": (
        pb.Filter(none_of=pb.FilterList(filters=[pb.Filter(any_of=pb.FilterList(filters=[pb.Filter()]))])),
        InvalidFilterError,
        "query.filter.none_of.filters[0].any_of.filters[0]",
    ),
    "too deep": (
        nested(limits.FILTER_DEPTH_MAX + 1),
        LimitExceededError,
        "query.filter" + ".none_of.filters[0]" * limits.FILTER_DEPTH_MAX,
    ),
    "too many nodes": (
        all_of(*[GOOD] * limits.FILTER_NODES_MAX),
        LimitExceededError,
        f"query.filter.all_of.filters[{limits.FILTER_NODES_MAX - 1}]",
    ),
    "no test": (field(), InvalidFilterError, "query.filter.field"),
    "empty path": (field(path="", exists=True), InvalidFilterError, "query.filter.field.path"),
    "long path": (field(path="x" * 513, exists=True), InvalidFilterError, "query.filter.field.path"),
    "long path in bytes": (field(path="é" * 257, exists=True), InvalidFilterError, "query.filter.field.path"),
    "many segments": (field(path=".".join("x" * 17), exists=True), InvalidFilterError, "query.filter.field.path"),
    "match without arm": (field(match=pb.MatchValue()), InvalidFilterError, "query.filter.field.match"),
    "any_of empty": (field(any_of=pb.MatchValues()), InvalidFilterError, "query.filter.field.any_of.values"),
    "none_of empty": (field(none_of=pb.MatchValues()), InvalidFilterError, "query.filter.field.none_of.values"),
    "any_of without arm": (
        field(any_of=pb.MatchValues(values=[pb.MatchValue(integer=1), pb.MatchValue()])),
        InvalidFilterError,
        "query.filter.field.any_of.values[1]",
    ),
    "any_of too long": (
        field(any_of=values(limits.FILTER_VALUES_MAX + 1)),
        LimitExceededError,
        "query.filter.field.any_of.values",
    ),
    "none_of too long": (
        field(none_of=values(limits.FILTER_VALUES_MAX + 1)),
        LimitExceededError,
        "query.filter.field.none_of.values",
    ),
    "bound without arm": (
        field(number_range=pb.NumberRange(gt=pb.Number())),
        InvalidFilterError,
        "query.filter.field.number_range.gt",
    ),
    "NaN bound": (
        field(number_range=pb.NumberRange(gte=pb.Number(integer=1), lte=pb.Number(real=math.nan))),
        InvalidFilterError,
        "query.filter.field.number_range.lte.real",
    ),
    "infinite bound": (
        field(number_range=pb.NumberRange(lt=pb.Number(real=math.inf))),
        InvalidFilterError,
        "query.filter.field.number_range.lt.real",
    ),
    "no time bound": (field(time_range=pb.TimeRange()), InvalidFilterError, "query.filter.field.time_range"),
    "time too early": (
        field(time_range=pb.TimeRange(gte=Timestamp(seconds=-62135596801))),
        InvalidFilterError,
        "query.filter.field.time_range.gte.seconds",
    ),
    "time too late": (
        field(time_range=pb.TimeRange(lt=Timestamp(seconds=253402300800))),
        InvalidFilterError,
        "query.filter.field.time_range.lt.seconds",
    ),
    "negative nanos": (
        field(time_range=pb.TimeRange(gt=Timestamp(nanos=-1))),
        InvalidFilterError,
        "query.filter.field.time_range.gt.nanos",
    ),
    "nanos of a second": (
        field(time_range=pb.TimeRange(lte=Timestamp(nanos=10**9))),
        InvalidFilterError,
        "query.filter.field.time_range.lte.nanos",
    ),
    "empty id": (pb.Filter(has_id=pb.PointIds(ids=["a", ""])), InvalidFilterError, "query.filter.has_id.ids[1]"),
    "long id": (pb.Filter(has_id=pb.PointIds(ids=["é" * 257])), LimitExceededError, "query.filter.has_id.ids[0]"),
    "many ids": (
        pb.Filter(has_id=pb.PointIds(ids=[str(number) for number in range(limits.FILTER_VALUES_MAX + 1)])),
        LimitExceededError,
        "query.filter.has_id.ids",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_filters_are_refused_where_they_are_wrong(case):
    message, error_class, place = MALFORMED[case]
    with pytest.raises(error_class) as caught:
        compile_filter(message, "query.filter")
    assert type(caught.value) is error_class
    assert caught.value.metadata["field"] == place


@pytest.mark.parametrize(
    "message",
    [
        nested(limits.FILTER_DEPTH_MAX),
        all_of(*[GOOD] * (limits.FILTER_NODES_MAX - 1)),
        field(any_of=values(limits.FILTER_VALUES_MAX)),
        field(path="x" * 512, exists=True),
        field(path=".".join("x" * 16), exists=True),
        pb.Filter(has_id=pb.PointIds(ids=["é" * 256])),
        field(
            time_range=pb.TimeRange(
                gt=Timestamp(seconds=-62135596800), lt=Timestamp(seconds=253402300799, nanos=999999999)
            )
        ),
    ],
)
def test_filters_at_the_limits_are_taken(message):
    assert compile_filter(message).root is not None


def test_paths_are_those_of_the_leaves():
    compiled = compile_filter(all_of(field("a.b", exists=True), nested(3), field('"x"', is_null=True)))
    assert {path.text.strip('"') for path in compiled.paths} == {"a.b", "x"}
    assert len(compiled.paths) == 2
