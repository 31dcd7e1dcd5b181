"""Paths: how they are written, what they reach, and what keeping or dropping them leaves."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmem.errors import InvalidFilterError
from vecmem.index.field_path import FieldPath, drop_paths, keep_paths, parse_paths


def path(text: str) -> FieldPath:
    return FieldPath.parse(text, "field.path")


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("a", [("a", None)]),
        ("author.name", [("author", None), ("name", None)]),
        ("tags.0", [("tags", None), ("0", 0)]),
        ("007", [("007", 7)]),
        ('tags."0"', [("tags", None), ("0", None)]),
        ('"a.b".c', [("a.b", None), ("c", None)]),
        ('""', [("", None)]),
        ('"say ""hi"""', [('say "hi"', None)]),
        ('a."".b', [("a", None), ("", None), ("b", None)]),
        ("a b.-1.+1.é", [("a b", None), ("-1", None), ("+1", None), ("é", None)]),
        ("²", [("²", None)]),
        ("9" * 512, [("9" * 512, int("9" * 512))]),
    ],
)
def test_parsing(text, segments):
    assert [tuple(segment) for segment in path(text).segments] == segments


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        (".", "has an empty segment"),
        ("a.", "has an empty segment"),
        (".a", "has an empty segment"),
        ("a..b", "has an empty segment"),
        ('"a".', "has an empty segment"),
        ('"', "has a quote that is not closed"),
        ('"a', "has a quote that is not closed"),
        ('"a""', "has a quote that is not closed"),
        ('a."b', "has a quote that is not closed"),
        ('a"b"', "has a quote inside a segment"),
        ('a"', "has a quote inside a segment"),
        ('"a"b', "has text after a closing quote"),
        (".".join("a" * 17), "has more than 16 segments"),
        ("é" * 257, "is longer than 512 bytes"),
    ],
)
def test_malformed_paths_are_refused_with_field_and_value(text, why):
    with pytest.raises(InvalidFilterError, match=r"^field\.path: path ") as caught:
        path(text)
    assert why in caught.value.message
    assert caught.value.metadata["field"] == "field.path"
    assert repr(text[:80])[:-1] in str(caught.value)


def test_a_list_of_paths_names_the_bad_one():
    with pytest.raises(InvalidFilterError) as caught:
        parse_paths(["a", "b."], "remove")
    assert caught.value.metadata["field"] == "remove.paths[1]"
    with pytest.raises(InvalidFilterError) as caught:
        parse_paths(["a"] * 257, "remove")
    assert caught.value.metadata["field"] == "remove.paths"
    assert len(parse_paths(["a"] * 256, "remove")) == 256


def test_equality_is_of_steps_not_of_spelling():
    assert path('"a".b') == path("a.b")
    assert hash(path('"a".b')) == hash(path("a.b"))
    assert path('a."0"') != path("a.0")


DOCUMENT = {
    "a": 1,
    "null": None,
    "empty": [],
    "object": {},
    "tags": ["x", ["y", ["z"]], None],
    "authors": [{"name": "A", "born": 1}, {"name": ["B", "C"]}, [{"name": None}], "D"],
    "0": "zero",
    "grid": [[1, 2], [3, [4]]],
    "a.b": {"c": True},
    "": {"": 5},
}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a", (1,)),
        ("missing", None),
        ("a.b", None),
        ("null", (None,)),
        ("null.x", None),
        ("empty", ()),
        ("empty.x", None),
        ("empty.0", None),
        ("object", ()),
        ("object.x", None),
        ("tags", ("x", "y", "z", None)),
        ("tags.0", ("x",)),
        ("tags.1", ("y", "z")),
        ("tags.1.1", ("z",)),
        ("tags.1.1.0", ("z",)),
        ("tags.3", None),
        ('tags."0"', None),
        ("authors.name", ("A", "B", "C", None)),
        ("authors.1.name", ("B", "C")),
        ("authors.name.0", ("B",)),
        ("authors.2.name", (None,)),
        ("authors.born", (1,)),
        ("authors", ("D",)),
        ("0", ("zero",)),
        ("00", None),
        ("grid", (1, 2, 3, 4)),
        ("grid.1", (3, 4)),
        ("grid.1.1.0", (4,)),
        ('"a.b".c', (True,)),
        ('"".""', (5,)),
    ],
)
def test_values(text, values):
    assert path(text).values(DOCUMENT) == values


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        ([], {}),
        (["missing", "a.b"], {}),
        (["a", "null", "empty", "object"], {"a": 1, "null": None, "empty": [], "object": {}}),
        (["authors.born"], {"authors": [{"born": 1}]}),
        (["authors.name"], {"authors": [{"name": "A"}, {"name": ["B", "C"]}, [{"name": None}]]}),
        (["authors.1.name", "authors.born"], {"authors": [{"born": 1}, {"name": ["B", "C"]}]}),
        (["tags.2"], {"tags": [None]}),
        (["tags", "tags.0"], {"tags": DOCUMENT["tags"]}),
        (["grid.1.0", "grid.0"], {"grid": [[1, 2], [3]]}),
        (['"a.b"'], {"a.b": {"c": True}}),
    ],
)
def test_keeping(texts, kept):
    before = copy.deepcopy(DOCUMENT)
    assert keep_paths(DOCUMENT, map(path, texts)) == kept
    assert before == DOCUMENT


@pytest.mark.parametrize(
    ("texts", "changed"),
    [
        ([], {}),
        (["missing", "a.b", "tags.9"], {}),
        (["tags.0", "tags.1"], {"tags": [None]}),
        (["tags.1.0"], {"tags": ["x", [["z"]], None]}),
        (["authors.name"], {"authors": [{"born": 1}, {}, [{}], "D"]}),
        (["authors.0.name", "authors.2"], {"authors": [{"born": 1}, {"name": ["B", "C"]}, "D"]}),
        (['"a.b".c', "a"], {"a.b": {}, "a": ...}),
        (['"".""'], {"": {}}),
    ],
)
def test_dropping(texts, changed):
    expected = {key: value for key, value in (DOCUMENT | changed).items() if value is not ...}
    before = copy.deepcopy(DOCUMENT)
    assert drop_paths(DOCUMENT, map(path, texts)) == expected
    assert before == DOCUMENT


KEYS = ["a", "b", "0"]
values = st.recursive(
    st.none() | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=12,
)
documents = st.dictionaries(st.sampled_from(KEYS), values, max_size=3)
key_paths = st.lists(st.sampled_from(["a", "b", '"0"']), min_size=1, max_size=3).map(lambda keys: path(".".join(keys)))


@settings(max_examples=200, deadline=None)
@given(documents, st.lists(key_paths, max_size=4))
def test_what_is_kept_holds_the_same_values_and_what_is_dropped_is_gone(document, paths):
    kept = keep_paths(document, paths)
    dropped = drop_paths(document, paths)
    for one in paths:
        assert one.values(kept) == one.values(document)
        assert one.values(dropped) is None
    assert keep_paths(dropped, paths) == {}
    assert drop_paths(document, []) == document
