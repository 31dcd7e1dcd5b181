"""JSON documents: what each operation does."""

from __future__ import annotations

import json
from typing import Any

from tests.support.keyspace import check_refusal, contents, do, refusal, reloaded
from vecmem.store.keyspace.keyspace import Keyspace

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
