"""What filters mean at the edges, case by case, the same for one document and for a table."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from google.protobuf.json_format import ParseDict

from vecmem.index.filter import compile_filter
from vecmem.index.payload import PayloadTable
from vecmem.index.rfc3339 import parse_time_ns
from vecmem.v1 import filter_pb2 as pb


def passes(test: dict, document: dict, path: str = "x") -> bool:
    compiled = compile_filter(ParseDict({"field": {"path": path, **test}}, pb.Filter()))
    table = PayloadTable()
    table.set(0, orjson.dumps(document))
    one = compiled.matches("p", document)
    assert compiled.mask(table, 1, lambda ids: np.zeros(0, np.int64)).tolist() == [one]
    return one


def match(**value) -> dict:
    return {"match": value}


KEYWORD, INTEGER, TRUE, FALSE = match(keyword="1"), match(integer=1), match(boolean=True), match(boolean=False)


@pytest.mark.parametrize(
    ("value", "hits"),
    [
        ("1", [KEYWORD]),
        (1, [INTEGER]),
        (1.0, [INTEGER]),
        (True, [TRUE]),
        (False, [FALSE]),
        (0, []),
        ("", []),
        (None, []),
        ([True, "1"], [KEYWORD, TRUE]),
        ([[1.0], [[False]]], [INTEGER, FALSE]),
        ({"1": 1}, []),
    ],
)
def test_kinds_differ(value, hits):
    assert [test for test in (KEYWORD, INTEGER, TRUE, FALSE) if passes(test, {"x": value})] == hits


def test_values_of_different_kinds_stay_apart_in_one_column():
    """1, 1.0, true and "1" hash alike or print alike; each row must keep its own."""
    table = PayloadTable()
    for row, value in enumerate([1, 1.0, True, "1", False, 0, 0.0, [1], [True], [1, True], [True, 1]]):
        table.set(row, orjson.dumps({"x": value}))

    def rows(test: dict) -> list[int]:
        compiled = compile_filter(ParseDict({"field": {"path": "x", **test}}, pb.Filter()))
        return np.flatnonzero(compiled.mask(table, 11, lambda ids: np.zeros(0, np.int64))).tolist()

    assert rows(INTEGER) == [0, 1, 7, 9, 10]
    assert rows(TRUE) == [2, 8, 9, 10]
    assert rows(KEYWORD) == [3]
    assert rows(FALSE) == [4]
    assert rows({"numberRange": {"gte": {"integer": 0}, "lt": {"integer": 1}}}) == [5, 6]


BIG = 2**53


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (BIG + 1, {"gt": {"real": float(BIG)}}, True),
        (BIG + 1, {"lt": {"real": float(BIG + 2)}}, True),
        (BIG + 1, {"lte": {"real": float(BIG)}}, False),
        (BIG + 1, {"gte": {"integer": BIG + 2}}, False),
        (float(BIG), {"lt": {"integer": BIG + 1}}, True),
        (float(BIG), {"gte": {"integer": BIG + 1}}, False),
        (float(BIG + 2), {"gt": {"integer": BIG + 1}}, True),
        (2**63 - 1, {"lt": {"real": 2.0**63}}, True),
        (2**63 - 1, {"gte": {"real": 2.0**63}}, False),
        (2**63 - 1, {"gt": {"integer": 2**63 - 1}}, False),
        (2**63 - 1, {"gte": {"integer": 2**63 - 1}}, True),
        (-(2**63), {"gte": {"real": -(2.0**63)}}, True),
        (-(2**63), {"lt": {"integer": -(2**63)}}, False),
        (-(2**63), {"gt": {"real": -1e300}}, True),
        (2.0**63, {"gt": {"integer": 2**63 - 1}}, True),
        (2.0**63, {"lte": {"integer": 2**63 - 1}}, False),
        (1.7976931348623157e308, {"gt": {"real": 1.7976931348623157e308}}, False),
        (0.0, {"gt": {"real": -0.0}}, False),
        (-0.0, {"gte": {"integer": 0}}, True),
        (5e-324, {"gt": {"integer": 0}}, True),
        (0.3, {"gt": {"integer": 0}, "lt": {"integer": 1}}, True),
        (3, {"gt": {"integer": 3}, "lt": {"integer": 4}}, False),
        (1, {"gt": {"real": 0.5}}, True),
        (0, {"gt": {"real": -0.5}}, True),
        (0, {"gt": {"real": 0.5}}, False),
        (1, {"gte": {"real": 0.5}}, True),
        (1, {"gte": {"real": 1.5}}, False),
        (1, {"lt": {"real": 1.5}}, True),
        (2, {"lt": {"real": 1.5}}, False),
        (-1, {"lte": {"real": -0.5}}, True),
        (0, {"lte": {"real": -0.5}}, False),
        (3, {"gt": {"integer": 5}, "lt": {"integer": 1}}, False),
        ([0, 10], {"gt": {"integer": 2}, "lt": {"integer": 8}}, False),
        (True, {"gte": {"integer": 0}}, False),
        ("3", {"gte": {"integer": 0}}, False),
        (None, {"gte": {"integer": -1}}, False),
    ],
)
def test_numbers_compare_exactly_over_int64_and_doubles(value, bounds, expected):
    assert passes({"numberRange": bounds}, {"x": value}) is expected


@pytest.mark.parametrize("wanted", [BIG + 1, BIG, 2**63 - 1, -(2**63)])
def test_match_integer_is_exact(wanted):
    assert passes(match(integer=wanted), {"x": wanted})
    assert not passes(match(integer=wanted), {"x": wanted - 1 if wanted > 0 else wanted + 1})
    assert passes(match(integer=wanted), {"x": float(wanted)}) is (float(wanted) == wanted)


@pytest.mark.parametrize(
    ("document", "exists", "is_null"),
    [
        ({}, False, False),
        ({"x": None}, True, True),
        ({"x": []}, True, False),
        ({"x": [[]]}, True, False),
        ({"x": {}}, True, False),
        ({"x": [None]}, True, True),
        ({"x": [1, [None]]}, True, True),
        ({"x": 0}, True, False),
        ({"x": {"y": None}}, True, False),
        ({"y": None}, False, False),
    ],
)
def test_exists_and_is_null(document, exists, is_null):
    assert passes({"exists": True}, document) is exists
    assert passes({"exists": False}, document) is not exists
    assert passes({"isNull": True}, document) is is_null
    assert passes({"isNull": False}, document) is not is_null


def test_none_of_holds_for_points_without_the_path():
    none_of = {"noneOf": {"values": [{"keyword": "a"}, {"integer": 1}]}}
    assert passes(none_of, {})
    assert passes(none_of, {"x": None})
    assert passes(none_of, {"x": ["b", 2]})
    assert not passes(none_of, {"x": ["b", 1.0]})


TIME_NS = 1_795_406_706 * 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23T04:05:06Z", TIME_NS),
        ("2026-11-23t04:05:06z", TIME_NS),
        ("2026-11-23T04:05:06-00:00", TIME_NS),
        ("2026-11-23T09:35:06+05:30", TIME_NS),
        ("2026-11-22T04:06:06-23:59", TIME_NS),
        ("2026-11-23T04:05:06.1Z", TIME_NS + 100_000_000),
        ("2026-11-23T04:05:06.000000001Z", TIME_NS + 1),
        ("2026-11-23T04:05:06.0000000019Z", TIME_NS + 1),
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.5Z", -500_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800 * 10**9),
        ("2017-01-01T00:59:60.5+01:00", 1_483_228_800 * 10**9 + 500_000_000),
        ("0000-02-29T00:00:00Z", -62_162_121_600 * 10**9),
        ("2016-12-31T23:58:60Z", None),
        ("2016-12-31T23:59:60+01:00", None),
        ("2016-12-31T23:59:61Z", None),
        ("2026-11-23T24:00:00Z", None),
        ("2026-11-23T04:60:00Z", None),
        ("2026-13-01T00:00:00Z", None),
        ("2026-00-01T00:00:00Z", None),
        ("2025-02-29T00:00:00Z", None),
        ("2026-11-23T04:05:06", None),
        ("2026-11-23 04:05:06Z", None),
        ("2026-11-23T04:05:06.Z", None),
        ("2026-11-23T04:05:06,5Z", None),
        ("2026-11-23T04:05:06+0100", None),
        ("2026-11-23T04:05:06+24:00", None),
        ("2026-11-23T04:05:06+01:60", None),
        ("2026-11-23T04:05Z", None),
        ("2026-11-23T04:05:06Z\n", None),
        (" 2026-11-23T04:05:06Z", None),
        ("٢٠٢٦-11-23T04:05:06Z", None),
        ("20261-11-23T04:05:06Z", None),
        ("", None),
    ],
)
def test_times_are_parsed_strictly(text, expected):
    assert parse_time_ns(text) == expected


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        ("2026-11-23T04:05:06.000000001Z", {"gt": "2026-11-23T04:05:06Z"}, True),
        ("2026-11-23T04:05:06.000000001Z", {"gt": "2026-11-23T04:05:06.000000001Z"}, False),
        ("2026-11-23T04:05:06.000000001Z", {"lte": "2026-11-23T04:05:06.000000001Z"}, True),
        ("2026-11-23T04:05:06.000000001Z", {"lt": "2026-11-23T04:05:06.000000001Z"}, False),
        ("0001-01-01T00:00:00Z", {"gte": "0001-01-01T00:00:00Z"}, True),
        ("0000-12-31T23:59:59Z", {"lt": "0001-01-01T00:00:00Z"}, True),
        ("9999-12-31T23:59:59.999999999Z", {"lt": "9999-12-31T23:59:59.999999999Z"}, False),
        ("9999-12-31T23:59:59-01:00", {"gt": "9999-12-31T23:59:59Z"}, True),
        (["no time", "2026-11-23T04:05:06Z"], {"gte": "2026-01-01T00:00:00Z", "lt": "2027-01-01T00:00:00Z"}, True),
        ("yesterday", {"gte": "0001-01-01T00:00:00Z"}, False),
        (1_795_406_706, {"gte": "0001-01-01T00:00:00Z"}, False),
    ],
)
def test_times_compare_to_the_nanosecond(value, bounds, expected):
    assert passes({"timeRange": bounds}, {"x": value}) is expected


def test_empty_lists_and_ids():
    def rows(message: pb.Filter) -> list[bool]:
        compiled = compile_filter(message)
        expected = [compiled.matches(point_id, {}) for point_id in ("a", "b")]
        stored = {"a": 0, "b": 1}
        mask = compiled.mask(PayloadTable(), 2, lambda ids: np.array([stored[i] for i in ids if i in stored], np.int64))
        assert mask.tolist() == expected
        return expected

    assert rows(pb.Filter(all_of=pb.FilterList())) == [True, True]
    assert rows(pb.Filter(any_of=pb.FilterList())) == [False, False]
    assert rows(pb.Filter(none_of=pb.FilterList())) == [True, True]
    assert rows(pb.Filter(has_id=pb.PointIds())) == [False, False]
    assert rows(pb.Filter(has_id=pb.PointIds(ids=["b", "b", "c"]))) == [False, True]


def test_rows_beyond_the_payloads_have_none():
    compiled = compile_filter(ParseDict({"field": {"path": "x", "exists": False}}, pb.Filter()))
    table = PayloadTable()
    table.set(1, b'{"x":1}')
    table.set(5, b'{"x":1}')
    assert compiled.mask(table, 3, lambda ids: np.zeros(0, np.int64)).tolist() == [True, False, True]
    assert compiled.mask(table, 8, lambda ids: np.zeros(0, np.int64)).tolist() == [
        True,
        False,
        *[True] * 3,
        False,
        True,
        True,
    ]
