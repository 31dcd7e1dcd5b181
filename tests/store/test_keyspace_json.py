"""JSON documents: what each operation does."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from tests.support.keyspace import NOW, check_refusal, contents, do, operation, refusal, reloaded
from vecmem.errors import InvalidArgumentError
from vecmem.store.keyspace import operations
from vecmem.store.keyspace.json_value import JsonValue, measure, parse
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import Moment
from vecmem.v1 import json_pb2 as api
from vecmem.v1 import keys_pb2, pipeline_pb2

KEY = b"document"


def with_document(text: str) -> Keyspace:
    keyspace = Keyspace()
    do(keyspace, "set_json", key=KEY, path="$", value_json=text.encode())
    return keyspace


def text_of(keyspace: Keyspace, path: str = "$") -> str:
    """What a path matches, as a JSON array."""
    contents(keyspace)
    [found] = do(keyspace, "get_json", key=KEY, paths=[path]).matches
    assert found.count == len(json.loads(found.values_json))
    return found.values_json.decode()


def values_of(keyspace: Keyspace, path: str = "$") -> Any:
    return json.loads(text_of(keyspace, path))


def test_a_document_is_what_was_written() -> None:
    text = (
        '{"b":1,"a":[1.0,-0.0,1e+300,0.1,true,false,null,"\\u0000é😀",9223372036854775807,-9223372036854775808],"":{}}'
    )
    keyspace = with_document(text)
    assert values_of(keyspace) == [json.loads(text)]
    assert text_of(keyspace, "$.a[0,1]") == "[1.0,-0.0]"
    assert list(values_of(keyspace)[0]) == ["b", "a", ""]
    again = reloaded(keyspace)
    assert text_of(again) == text_of(keyspace)


def test_white_space_goes_and_of_a_name_that_comes_twice_the_last_value_counts() -> None:
    assert text_of(with_document(' { "a" : 1 , "b" : 2 , "a" : 3 } ')) == '[{"a":3,"b":2}]'


def test_without_a_document_only_the_top_can_be_written() -> None:
    keyspace = Keyspace()
    assert refusal(keyspace, "set_json", key=KEY, path="$.a", value_json=b"1") == ("KEY_NOT_FOUND", "key")
    assert refusal(keyspace, "merge_json", key=KEY, path="$.a", patch_json=b"1") == ("KEY_NOT_FOUND", "key")
    assert text_of(keyspace, "$..*") == "[]"
    assert do(keyspace, "get_json", key=KEY).version == 0


def test_bad_paths_are_refused_before_anything_is_logged() -> None:
    assert check_refusal("set_json", key=KEY, path="a", value_json=b"1") == ("INVALID_ARGUMENT", "path")
    assert check_refusal("get_json", key=KEY, paths=["$", "$["]) == ("INVALID_ARGUMENT", "paths[1]")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "document"),
        (b"{", "char 1"),
        (b"[1,]", "char 2"),
        (b"[NaN]", "char 1"),
        (b"[1,-Infinity]", "char 4"),
        (b"1e400", "infinity"),
        (b"[01]", "char 1"),
        (b"[1] 2", "char 4"),
        (b"\xef\xbb\xbf1", "byte order mark"),
        (b'["ab\xff"]', "byte 4 is not UTF-8"),
        (b'"\\ud800"', "surrogate"),
        (b"9223372036854775808", "at byte 0 does not fit int64"),
        (b'["9223372036854775808",{"a":-9223372036854775809}]', "-9223372036854775809 at byte 28 does not fit int64"),
        (b"[123456789012345678901234567890]", "at byte 1 does not fit int64"),
    ],
)
def test_what_is_no_json_is_refused_with_the_place(text: bytes, told: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        operations.check(operation("set_json", key=KEY, path="$", value_json=text))
    assert (refused.value.reason, refused.value.metadata["field"]) == ("INVALID_ARGUMENT", "value_json")
    assert told in refused.value.message


LONG = b"[" * 129 + b"]" * 129
REFUSED_REQUESTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("set_json", {"key": b"", "path": "$", "value_json": b"1"}, "INVALID_KEY", "key"),
    ("set_json", {"path": "$", "value_json": LONG}, "LIMIT_EXCEEDED", "value_json"),
    ("set_json", {"path": "$", "value_json": b'"' + b"x" * 2**24 + b'"'}, "LIMIT_EXCEEDED", "value_json"),
    ("set_json", {"path": "$", "value_json": b"1", "condition": 9}, "INVALID_ARGUMENT", "condition"),
    ("set_json", {"path": "$.", "value_json": b"1"}, "INVALID_ARGUMENT", "path"),
    ("get_json", {"paths": ["$"] * 65}, "LIMIT_EXCEEDED", "paths"),
    ("get_json", {"paths": ["$", "$" + ".a" * 3_000]}, "LIMIT_EXCEEDED", "paths[1]"),
    ("delete_json", {"path": "x"}, "INVALID_ARGUMENT", "path"),
    ("merge_json", {"path": "$", "patch_json": b"{"}, "INVALID_ARGUMENT", "patch_json"),
    ("merge_json", {"path": "x", "patch_json": b"{}"}, "INVALID_ARGUMENT", "path"),
    ("add_json_number", {"path": "$"}, "INVALID_ARGUMENT", "delta"),
    ("add_json_number", {"path": "$", "number": float("nan")}, "INVALID_ARGUMENT", "number"),
    ("add_json_number", {"path": "$", "number": float("-inf")}, "INVALID_ARGUMENT", "number"),
    ("append_json_array", {"path": "$"}, "INVALID_ARGUMENT", "items_json"),
    ("append_json_array", {"path": "$", "items_json": [b"1", b"x"]}, "INVALID_ARGUMENT", "items_json[1]"),
    ("insert_json_array", {"path": "$", "items_json": [b"1"] * 1_025}, "LIMIT_EXCEEDED", "items_json"),
    ("find_json_array_item", {"path": "$", "item_json": b""}, "INVALID_ARGUMENT", "item_json"),
    ("append_json_string", {"path": "$", "text": "x" * (2**24 + 1)}, "LIMIT_EXCEEDED", "text"),
    *(
        (kind, {"path": "["}, "INVALID_ARGUMENT", "path")
        for kind in ("pop_json_array", "trim_json_array", "toggle_json")
    ),
    *((kind, {"path": "["}, "INVALID_ARGUMENT", "path") for kind in ("clear_json", "describe_json", "get_json_names")),
]


@pytest.mark.parametrize(("kind", "fields", "reason", "field"), REFUSED_REQUESTS)
def test_requests_that_are_wrong_whatever_the_state(kind: str, fields: dict[str, Any], reason: str, field: str) -> None:
    assert check_refusal(kind, **({"key": KEY} | fields)) == (reason, field)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("set_json", {"path": "$", "value_json": b"1"}),
        ("get_json", {}),
        ("delete_json", {}),
        ("merge_json", {"patch_json": b"{}"}),
        ("add_json_number", {"integer": 1}),
        ("append_json_array", {"items_json": [b"1"]}),
        ("insert_json_array", {"items_json": [b"1"]}),
        ("pop_json_array", {}),
        ("trim_json_array", {}),
        ("find_json_array_item", {"item_json": b"1"}),
        ("append_json_string", {"text": "x"}),
        ("toggle_json", {}),
        ("clear_json", {}),
        ("describe_json", {}),
        ("get_json_names", {}),
    ],
)
def test_a_value_of_another_type_stays(kind: str, fields: dict[str, Any]) -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=KEY, value=b'{"a":1}')
    assert refusal(keyspace, kind, key=KEY, **fields) == ("WRONG_TYPE", "key")
    do(keyspace, "delete_keys", keys=[KEY])
    if kind not in {"set_json", "merge_json"}:
        # A key that is not there has no matches, and nothing makes it.
        response = do(keyspace, kind, key=KEY, **fields)
        assert not response.ByteSize() or kind == "get_json"
        assert not keyspace.values


def test_a_document_keeps_its_expiry_and_others_its_name() -> None:
    keyspace = with_document('{"a":[1]}')
    do(keyspace, "expire_key", key=KEY, expiry=keys_pb2.Expiry(at_unix_ms=NOW + 1_000))
    do(keyspace, "set_json", key=KEY, path="$", value_json=b'{"b":[2]}')
    do(keyspace, "append_json_array", key=KEY, path="$.b", items_json=[b"3"])
    assert keyspace.expires_at(KEY) == NOW + 1_000
    described = do(keyspace, "describe_key", key=KEY)
    assert (described.type, described.size) == (keys_pb2.KEY_TYPE_JSON, 1)
    do(keyspace, "rename_key", key=KEY, new_key=b"{document}2")
    assert do(keyspace, "get_json", key=b"{document}2").matches[0].values_json == b'[{"b":[2,3]}]'
    assert do(keyspace, "get_json", key=b"{document}2", now=NOW + 1_000).version == 0


def test_conditions_hold_for_each_place_by_itself() -> None:
    keyspace = with_document('{"items":[{"x":1},{},5,{"x":{}}]}')
    response = do(
        keyspace, "set_json", key=KEY, path="$.items[*].x", value_json=b"[]", condition=api.JSON_CONDITION_ABSENT
    )
    assert (response.written_count, response.new_count) == (1, 1)
    assert text_of(keyspace) == '[{"items":[{"x":1},{"x":[]},5,{"x":{}}]}]'
    response = do(
        keyspace, "set_json", key=KEY, path="$.items[0:3].y", value_json=b"0", condition=api.JSON_CONDITION_PRESENT
    )
    assert (response.written_count, response.new_count) == (0, 0)
    response = do(keyspace, "set_json", key=KEY, path="$.items[*].x", value_json=b"[]")
    assert (response.written_count, response.new_count) == (3, 0)
    do(keyspace, "append_json_array", key=KEY, path="$.items[0].x", items_json=[b"1"])
    assert text_of(keyspace, "$..x") == "[[1],[],[]]", "no two places share a value"
    assert (
        do(keyspace, "set_json", key=KEY, path="$", value_json=b"1", condition=api.JSON_CONDITION_ABSENT).written_count
        == 0
    )
    absent = do(keyspace, "set_json", key=b"new", path="$", value_json=b"1", condition=api.JSON_CONDITION_PRESENT)
    assert (absent.written_count, b"new" in keyspace.values) == (0, False)


@pytest.mark.parametrize(
    "path", ["$.none.x", "$.list[7]", "$..none", "$.list[*].x", "$.text.x", "$['x','y']", "$[?@ == 9]"]
)
def test_only_a_last_name_of_an_object_makes_a_member(path: str) -> None:
    keyspace = with_document('{"list":[1],"text":"t"}')
    before = contents(keyspace)
    assert do(keyspace, "set_json", key=KEY, path=path, value_json=b"1").written_count == 0
    assert do(keyspace, "merge_json", key=KEY, path=path, patch_json=b"1").merged_count == 0
    assert contents(keyspace) == before


MERGES = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]


@pytest.mark.parametrize(("document", "patch", "expected"), MERGES)
def test_merge_patches_do_what_their_rfc_says(document: str, patch: str, expected: str) -> None:
    """RFC 7396, appendix A: at the top and below it."""
    keyspace = with_document(document)
    assert do(keyspace, "merge_json", key=KEY, path="$", patch_json=patch.encode()).merged_count == 1
    assert text_of(keyspace) == f"[{expected}]"
    keyspace = with_document(f'{{"x":[{document}]}}')
    do(keyspace, "merge_json", key=KEY, path="$.x[0]", patch_json=patch.encode())
    assert text_of(keyspace) == f'[{{"x":[{expected}]}}]'
    reloaded(keyspace)


def test_a_merge_makes_documents_and_members() -> None:
    keyspace = Keyspace()
    do(keyspace, "merge_json", key=KEY, path="$", patch_json=b'{"a":{"b":1,"c":null}}')
    do(keyspace, "merge_json", key=KEY, path="$.a.d", patch_json=b'{"e":{"f":null,"g":2}}')
    assert text_of(keyspace) == '[{"a":{"b":1,"d":{"e":{"g":2}}}}]'
    assert do(keyspace, "merge_json", key=KEY, path="$.*", patch_json=b'{"b":null}').merged_count == 1
    assert text_of(keyspace) == '[{"a":{"d":{"e":{"g":2}}}}]'


def test_a_sum_that_overflows_changes_nothing() -> None:
    keyspace = with_document('[1,"x",9223372036854775807,0.5]')
    assert refusal(keyspace, "add_json_number", key=KEY, path="$[*]", integer=1) == ("OVERFLOW", "integer")
    response = do(keyspace, "add_json_number", key=KEY, path="$[*]", integer=-1)
    assert [each.WhichOneof("value") for each in response.sums] == ["integer", None, "integer", "number"]
    assert text_of(keyspace) == '[[0,"x",9223372036854775806,-0.5]]'
    do(keyspace, "add_json_number", key=KEY, path="$[0]", number=2.0)
    assert text_of(keyspace) == '[[2.0,"x",9223372036854775806,-0.5]]'
    keyspace = with_document("[1e308,1]")
    assert refusal(keyspace, "add_json_number", key=KEY, path="$[*]", number=1e308) == ("OVERFLOW", "number")
    before = contents(keyspace)
    assert len(do(keyspace, "add_json_number", key=KEY, path="$", integer=1).sums) == 1
    assert contents(keyspace) == before


def test_a_document_has_a_depth_and_a_size() -> None:
    nested = "[" * 128 + "]" * 128
    keyspace = with_document(nested)
    innermost = "$" + "[0]" * 127
    deeper = [
        ("set_json", {"path": f"{innermost[:-3]}[0]", "value_json": b"[[]]"}, "value_json"),
        ("append_json_array", {"path": innermost, "items_json": [b"{}"]}, "items_json"),
        ("insert_json_array", {"path": innermost, "items_json": [b"1", b"[1]"]}, "items_json"),
        ("merge_json", {"path": innermost, "patch_json": b'{"a":{"b":1}}'}, "patch_json"),
    ]
    for kind, fields, field in deeper:
        assert refusal(keyspace, kind, key=KEY, **fields) == ("LIMIT_EXCEEDED", field)
    do(keyspace, "append_json_array", key=KEY, path=innermost, items_json=[b"1"])
    do(keyspace, "merge_json", key=KEY, path=innermost, patch_json=b'{"a":1}')
    assert reloaded(keyspace).values.keys() == {KEY}
    text = b'"' + b"x" * (8 * 1024 * 1024) + b'"'
    keyspace = with_document('{"a":[],"s":"","t":""}')
    do(keyspace, "set_json", key=KEY, path="$.b", value_json=text)
    larger: list[tuple[str, dict[str, Any], str]] = [
        ("set_json", {"path": "$.c", "value_json": text}, "value_json"),
        ("set_json", {"path": "$.*", "value_json": text[: 4 * 2**20] + b'"'}, "value_json"),
        ("append_json_array", {"path": "$.a", "items_json": [text]}, "items_json"),
        ("merge_json", {"path": "$", "patch_json": b'{"d":' + text + b"}"}, "patch_json"),
        ("append_json_string", {"path": "$['s','t']", "text": "x" * (4 * 2**20)}, "text"),
    ]
    for kind, fields, field in larger:
        assert refusal(keyspace, kind, key=KEY, **fields) == ("LIMIT_EXCEEDED", field)
    do(keyspace, "set_json", key=KEY, path="$.b", value_json=text)
    assert refusal(Keyspace(), "set_json", key=KEY, path="$", value_json=b"[" + b"1," * 500_000 + b"1]") == (
        "LIMIT_EXCEEDED",
        "value_json",
    )


def test_what_writes_return_is_bounded() -> None:
    keyspace = with_document('{"a":["' + "\\u0000" * 2_000_000 + '"]}')
    moment = Moment(NOW)
    popping = operation("pop_json_array", key=KEY, path="$.a")
    outcome = pipeline_pb2.OperationResult()
    moment.result_bytes_left = 12_000_000
    operations.run(keyspace, popping, outcome, moment)
    assert outcome.error.reason == "LIMIT_EXCEEDED"
    assert text_of(keyspace, "$.a[1]") == "[]"
    do(keyspace, "pop_json_array", key=KEY, path="$.a")
    assert text_of(keyspace) == '[{"a":[]}]'


def test_what_reads_return_is_bounded() -> None:
    text = '{"' + "n" * 3_000_000 + '":{"x":1},"y":["' + "v" * 3_000_000 + '"]}'
    keyspace = with_document(text)
    assert refusal(keyspace, "get_json", key=KEY, paths=["$"] * 12) == ("LIMIT_EXCEEDED", "paths[11]")
    many = "$['" + "y','" * 30 + "y']"
    assert refusal(keyspace, "get_json", key=KEY, paths=["$.y[0]", many]) == ("LIMIT_EXCEEDED", "paths[1]")
    located = refusal(
        keyspace, "get_json", key=KEY, paths=["$..*", "$.*" + "['x']"] + ["$.*.*"] * 40, with_locations=True
    )
    assert located[0] == "LIMIT_EXCEEDED"


def test_how_long_and_large_values_are() -> None:
    keyspace = with_document('{"n":null,"t":true,"i":1,"f":1.0,"s":"é😀","a":[1,[2]],"o":{"x":1}}')
    told = do(keyspace, "describe_json", key=KEY, path="$.*").matches
    assert [api.JsonType.Name(each.type).removeprefix("JSON_TYPE_") for each in told] == (
        ["NULL", "BOOLEAN", "INTEGER", "NUMBER", "STRING", "ARRAY", "OBJECT"]
    )
    assert [each.length if each.HasField("length") else None for each in told] == [None, None, None, None, 2, 2, 1]
    assert [each.memory_bytes for each in told[:4]] == [0, 0, 32, 32]
    [whole] = do(keyspace, "describe_json", key=KEY, path="$").matches
    assert whole.memory_bytes > sum(each.memory_bytes for each in told)
    everything = do(keyspace, "describe_json", key=KEY, path="$..*").matches
    assert [each.memory_bytes for each in everything[:7]] == [each.memory_bytes for each in told]


def test_items_are_found_by_what_they_are() -> None:
    keyspace = with_document('{"a":[1,true,{"x":[1.0],"y":null},"1",1],"s":"x","e":[]}')

    def index_of(item: str, **bounds: int) -> list[int | None]:
        response = do(keyspace, "find_json_array_item", key=KEY, path="$.*", item_json=item.encode(), **bounds)
        return [each.index if each.HasField("index") else None for each in response.indexes]

    assert index_of("1") == [0, None, -1]
    assert index_of("1.0", start=1) == [4, None, -1]
    assert index_of("true") == [1, None, -1]
    assert index_of('{"y":null,"x":[1]}') == [2, None, -1]
    assert index_of('{"y":null,"x":[true]}') == [-1, None, -1]
    assert index_of("1", start=1, stop=-2) == [-1, None, -1]
    assert index_of('"1"', start=-2) == [3, None, -1]


def test_many_items_go_at_once() -> None:
    """One after the other they would move the rest of the array each time."""
    keyspace = with_document("[" + ",".join(map(str, range(100_000))) + "]")
    assert do(keyspace, "delete_json", key=KEY, path="$[::2]").deleted_count == 50_000
    assert values_of(keyspace) == [list(range(1, 100_000, 2))]
    reloaded(keyspace)


@pytest.mark.parametrize("damaged", [b"", b"{", b"[NaN]", b"9223372036854775808", b"\xff", b"[" * 129 + b"]" * 129])
def test_a_damaged_document_is_not_loaded(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="document"):
        JsonValue.load(damaged)


def test_what_is_counted_is_about_what_is_taken() -> None:
    documents = [
        [
            {"id": number, "name": f"name {number}", "tags": ["a", str(number)], "price": number * 1.5}
            for number in range(5_000)
        ],
        [number * 1_000 for number in range(50_000)],
        [f"some text of middling length {number}" for number in range(20_000)],
        {f"member {number}": None for number in range(20_000)},
    ]
    for document in documents:
        text = json.dumps(document).encode()
        tracemalloc.start()
        parsed = parse(text, "value")
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert 0.7 < measure(parsed)[0] / taken < 2
