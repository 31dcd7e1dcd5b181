"""Payload bytes: what is accepted, and that each change gives the bytes it promises."""

from __future__ import annotations

import json
import math

import orjson
import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmem import limits
from vecmem.errors import InvalidFilterError, InvalidPayloadError, LimitExceededError
from vecmem.index.field_path import FieldPath
from vecmem.index.payload import (
    compile_selector,
    merge_payload,
    payload_from_struct,
    payload_to_struct,
    remove_paths,
    select_payload,
    validate_payload,
)
from vecmem.v1 import common_pb2 as pb


def nested(depth: int, opening: bytes = b'{"a":', closing: bytes = b"}", core: bytes = b"{}") -> bytes:
    """An object nested `depth` levels deep; with other brackets the object is the outermost level."""
    return opening * (depth - 1) + core + closing * (depth - 1)


def arrays(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def sized(size_bytes: int) -> bytes:
    return b'{"a":"' + b"x" * (size_bytes - 8) + b'"}'


INT64_MAX, INT64_MIN = str(2**63 - 1).encode(), str(-(2**63)).encode()

ACCEPTED = {
    "empty object": b"{}",
    "white space": b' \n\t\r{ "a" : 1 } \n',
    "largest integer": b'{"a":%s}' % INT64_MAX,
    "smallest integer": b'{"a":[%s,%s]}' % (INT64_MIN, INT64_MIN),
    "long digits in a string": b'{"a":"99999999999999999999999","\\"12345678901234567890":1}',
    "long digits after an escaped quote": rb'{"a":"\": 99999999999999999999 , \\"}',
    "long fraction": b'{"a":0.12345678901234567890123}',
    "long real": b'{"a":12345678901234567890.5,"b":12345678901234567890e3,"c":12345678901234567890E-3}',
    "long exponent": b'{"a":1e-0000000000000000000001}',
    "largest double": b'{"a":1.7976931348623157e308,"b":-5e-324}',
    "number that rounds to zero": b'{"a":1e-400}',
    "duplicate keys": b'{"a":1,"a":2}',
    "escapes": rb'{"\u00e9":"\ud83d\ude00\n"}',
    "unicode": '{"ключ":"値"}'.encode(),
    "64 levels": nested(64),
    "64 levels of arrays": arrays(64),
    "many containers, flat": b'{"a":[' + b"{}," * 200 + b"[]]}",
    "brackets in a string": b'{"a":"' + b"[{" * 100 + b'"}',
    "brackets after escaped quotes": b'{"a":"\\"' + b"[" * 100 + b'\\\\"}',
    "1 MiB": sized(limits.PAYLOAD_BYTES_MAX),
}

REFUSED = {
    "empty": b"",
    "array": b"[1]",
    "string": b'"a"',
    "null": b"null",
    "not JSON": b"{a:1}",
    "truncated": b'{"a":1',
    "trailing text": b"{} {}",
    "trailing comma": b'{"a":1,}',
    "comment": b"{}//",
    "byte order mark": b"\xef\xbb\xbf{}",
    "invalid UTF-8": b'{"a":"\xff"}',
    "encoded surrogate": b'{"a":"\xed\xa0\x80"}',
    "overlong UTF-8": b'{"a":"\xc0\xaf"}',
    "lone surrogate escape": rb'{"a":"\ud800"}',
    "control character": b'{"a":"\x01"}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "-Infinity": b'{"a":[-Infinity]}',
    "beyond doubles": b'{"a":1e400}',
    "leading zero": b'{"a":01}',
    "2^63": b'{"a":9223372036854775808}',
    "-2^63-1": b'{"a":[1,-9223372036854775809]}',
    "2^64-1": b'{"a": 18446744073709551615}',
    "2^64": b'{"a":{"b":18446744073709551616}}',
    "hundreds of digits": b'{"a":' + b"1" * 300 + b"}",
    "too large behind a duplicate key": b'{"a":9223372036854775808,"a":1}',
    "too large after white space": b'{"a":\n9223372036854775808\n}',
    "unbalanced brackets": b'{"a":' + b"[" * 60 + b"]" * 70,
    "mixed brackets": b'{"a":' + b"[}" * 70 + b"}",
}

TOO_LARGE = {
    "65 levels": nested(65),
    "65 levels of arrays": arrays(65),
    "65 levels and strings": b'{"\\"]]":' + nested(64) + b"}",
    "deeper than the parser goes": arrays(5_000),
    "1 MiB and one byte": sized(limits.PAYLOAD_BYTES_MAX + 1),
    "deep behind a duplicate key": b'{"a":' + arrays(64) + b',"a":1}',
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_payloads_that_are_taken(case):
    validate_payload(ACCEPTED[case], "points[0].payload_json")


@pytest.mark.parametrize("case", REFUSED)
def test_payloads_that_are_refused(case):
    with pytest.raises(InvalidPayloadError) as caught:
        validate_payload(REFUSED[case], "points[3].payload_json")
    assert caught.value.metadata["field"] == "points[3].payload_json"


@pytest.mark.parametrize("case", TOO_LARGE)
def test_payloads_over_a_limit(case):
    with pytest.raises(LimitExceededError) as caught:
        validate_payload(TOO_LARGE[case], "points[3].payload_json")
    assert caught.value.metadata["field"] == "points[3].payload_json"


def depth(value) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(depth, children), default=0)


def integers(value) -> list[int]:
    if isinstance(value, dict | list):
        children = value.values() if isinstance(value, dict) else value
        return [found for child in children for found in integers(child)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


text = st.text('"\\[]{}:, 0123456789eE.-é\n', max_size=30)
documents = st.dictionaries(
    text,
    st.recursive(
        text
        | st.integers(-(2**65), 2**65)
        | st.sampled_from([2**63, 2**63 - 1, -(2**63), -(2**63) - 1, None, True])
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=20,
    ),
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(documents, st.booleans(), st.sampled_from([None, 1]), st.integers(0, 70))
def test_validation_agrees_with_the_standard_library(document, ascii_only, indent, wrapping):
    for _ in range(wrapping):
        document = {"[": document}
    raw = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    expected = None
    if depth(document) > limits.PAYLOAD_DEPTH_MAX:
        expected = LimitExceededError
    elif not all(-(2**63) <= integer < 2**63 for integer in integers(document)):
        expected = InvalidPayloadError
    if expected is None:
        validate_payload(raw, "payload")
        assert json.loads(raw) == orjson.loads(raw)
    else:
        with pytest.raises(expected):
            validate_payload(raw, "payload")


def value(kind: str, content) -> Value:
    return Value(**{kind: content})


def test_struct_numbers_become_integers_where_doubles_are_exact():
    struct = Struct()
    struct.update({"a": 2**53, "b": -(2**53), "c": 2**53 + 2, "d": 0.5, "e": -0.0, "f": 1e300, "g": [1, 2.5]})
    raw = payload_from_struct(struct)
    assert (
        raw
        == b'{"a":9007199254740992,"b":-9007199254740992,"c":9007199254740994.0,"d":0.5,"e":0,"f":1e+300,"g":[1,2.5]}'
    )
    validate_payload(raw, "payload")


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        ),
        max_size=4,
    )
)
def test_struct_and_payload_convert_back_and_forth(document):
    raw = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    assert payload_from_struct(payload_to_struct(raw)) == raw


def test_no_payload_is_an_empty_struct():
    assert payload_to_struct(b"") == Struct()
    assert payload_from_struct(Struct()) == b"{}"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_struct_numbers_must_be_finite(number):
    items = ListValue(values=[value("bool_value", content=True), value("number_value", number)])
    struct = Struct(fields={"a": value("list_value", items)})
    with pytest.raises(InvalidPayloadError) as caught:
        payload_from_struct(struct, "points[1].payload_struct")
    assert caught.value.metadata["field"] == "points[1].payload_struct.a[1]"


def test_struct_values_must_have_a_kind():
    with pytest.raises(InvalidPayloadError):
        payload_from_struct(Struct(fields={"a": Value()}))


@pytest.mark.parametrize("kind", ["struct", "list"])
def test_struct_depth_counts_as_in_json(kind):
    def build(levels: int) -> Struct:
        """Nested in place: protobuf itself refuses to parse or copy messages nested so deep."""
        struct = Struct()
        inner = struct.fields["a"]
        for _ in range(levels - 2):
            inner = inner.struct_value.fields["a"] if kind == "struct" else inner.list_value.values.add()
        getattr(inner, f"{kind}_value").SetInParent()
        return struct

    validate_payload(payload_from_struct(build(64)), "payload")
    with pytest.raises(LimitExceededError):
        payload_from_struct(build(65))


def test_struct_over_the_size_limit_is_refused():
    with pytest.raises(LimitExceededError):
        payload_from_struct(Struct(fields={"a": value("string_value", "x" * limits.PAYLOAD_BYTES_MAX)}))


@pytest.mark.parametrize(
    ("old", "update", "merged"),
    [
        (b"", b'{"a":1}', b'{"a":1}'),
        (b'{"a":1}', b"{}", b'{"a":1}'),
        (b'{"a":{"x":1},"b":2}', b'{"a":{"y":2},"c":null}', b'{"a":{"y":2},"b":2,"c":null}'),
        (b'{"a":9007199254740993}', b'{"b":-9223372036854775808}', b'{"a":9007199254740993,"b":-9223372036854775808}'),
        (b'{"a":1.0,"b":0.1}', b'{"c":1}', b'{"a":1.0,"b":0.1,"c":1}'),
    ],
)
def test_merging_replaces_top_level_keys(old, update, merged):
    assert merge_payload(old, update) == merged


def test_merging_beyond_the_size_limit_is_refused():
    half = limits.PAYLOAD_BYTES_MAX // 2
    assert len(merge_payload(b'{"a":"' + b"x" * (half - 10) + b'"}', b'{"b":"' + b"x" * (half - 10) + b'"}')) < 2 * half
    with pytest.raises(LimitExceededError) as caught:
        merge_payload(sized(half), b'{"b":"' + b"x" * half + b'"}')
    assert caught.value.metadata["field"] == "merge_json"


def paths(*texts: str) -> list[FieldPath]:
    return [FieldPath.parse(one, "remove") for one in texts]


def test_removing_paths():
    old = b'{ "a": {"b": 1, "c": 9007199254740993}, "t": [1, 2, 3] }'
    assert remove_paths(old, paths("a.b", "t.0", "t.1", "nope")) == b'{"a":{"c":9007199254740993},"t":[3]}'
    assert remove_paths(old, paths("a", "t")) == b"{}"
    assert remove_paths(old, paths("nope", "a.b.c")) is old
    assert remove_paths(old, []) is old
    assert remove_paths(b"", paths("a")) == b""


def test_removal_whose_result_spells_numbers_longer_is_held_to_the_limit():
    old = b'{"x":0,"a":[' + b"1e15," * 200_000 + b"1]}"
    assert len(old) < limits.PAYLOAD_BYTES_MAX
    with pytest.raises(LimitExceededError):
        remove_paths(old, paths("x"))


RAW = b'{ "b": [{"c": 1, "d": 2}, 3], "a": 1.50 }'


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        (pb.PayloadSelector(), RAW),
        (pb.PayloadSelector(all=True), RAW),
        (pb.PayloadSelector(all=False), b""),
        (pb.PayloadSelector(include=pb.FieldPaths()), b"{}"),
        (pb.PayloadSelector(include=pb.FieldPaths(paths=["nope"])), b"{}"),
        (pb.PayloadSelector(include=pb.FieldPaths(paths=["a", "b.d"])), b'{"b":[{"d":2}],"a":1.5}'),
        (pb.PayloadSelector(exclude=pb.FieldPaths()), RAW),
        (pb.PayloadSelector(exclude=pb.FieldPaths(paths=["a", "b.d"])), b'{"b":[{"c":1},3]}'),
    ],
)
def test_selecting(selector, selected):
    assert select_payload(RAW, selector) == selected
    assert select_payload(b"", selector) == b""


def test_a_whole_payload_is_passed_on_without_a_copy():
    raw = b"not even JSON"
    for selector in (pb.PayloadSelector(), pb.PayloadSelector(all=True)):
        assert compile_selector(selector).apply(raw) is raw


@pytest.mark.parametrize("arm", ["include", "exclude"])
def test_malformed_selectors_name_the_path(arm):
    with pytest.raises(InvalidFilterError) as caught:
        compile_selector(pb.PayloadSelector(**{arm: pb.FieldPaths(paths=["a", ""])}), "query.with_payload")
    assert caught.value.metadata["field"] == f"query.with_payload.{arm}.paths[1]"
