"""JSONPath: what RFC 9535 says, what is refused, and that no path takes for ever."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.keyspace import do, outcome_of
from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError
from vecmem.store.keyspace.json_paths import compile_path, outermost
from vecmem.store.keyspace.json_value import equal
from vecmem.store.keyspace.keyspace import Keyspace

BOOKSTORE = json.loads("""
{ "store": {
    "book": [
      { "category": "reference", "author": "Nigel Rees", "title": "Sayings of the Century", "price": 8.95 },
      { "category": "fiction", "author": "Evelyn Waugh", "title": "Sword of Honour", "price": 12.99 },
      { "category": "fiction", "author": "Herman Melville", "title": "Moby Dick", "isbn": "0-553-21311-3", "price": 8.99 },
      { "category": "fiction", "author": "J. R. R. Tolkien", "title": "The Lord of the Rings", "isbn": "0-395-19395-8",
        "price": 22.99 }
    ],
    "bicycle": { "color": "red", "price": 399 }
} }
""")
BOOKS = BOOKSTORE["store"]["book"]
COMPARED = {"obj": {"x": "y"}, "arr": [2, 3]}
FILTERED = json.loads("""
{ "a": [3, 5, 1, 2, 4, 6, {"b": "j"}, {"b": "k"}, {"b": {}}, {"b": "kilo"}],
  "o": {"p": 1, "q": 2, "r": 3, "s": 5, "t": {"u": 6}}, "e": "f" }
""")
LETTERS = ["a", "b", "c", "d", "e", "f", "g"]
DESCENDED = {"o": {"j": 1, "k": 2}, "a": [5, 3, [{"j": 4}, {"k": 6}]]}
NULLED = {"a": None, "b": [None], "c": [{}], "null": 1}


def found(path: str, document: Any) -> list[Any]:
    return [match.value for match in compile_path(path, "path").find(document, "path")]


@pytest.mark.parametrize(
    ("path", "document", "expected"),
    [
        # Section 1.5
        ("$.store.book[*].author", BOOKSTORE, [book["author"] for book in BOOKS]),
        ("$..author", BOOKSTORE, [book["author"] for book in BOOKS]),
        ("$.store.*", BOOKSTORE, [BOOKS, BOOKSTORE["store"]["bicycle"]]),
        ("$.store..price", BOOKSTORE, [399, 8.95, 12.99, 8.99, 22.99]),
        ("$..book[2]", BOOKSTORE, [BOOKS[2]]),
        ("$..book[2].author", BOOKSTORE, ["Herman Melville"]),
        ("$..book[2].publisher", BOOKSTORE, []),
        ("$..book[-1]", BOOKSTORE, [BOOKS[3]]),
        ("$..book[0,1]", BOOKSTORE, BOOKS[:2]),
        ("$..book[:2]", BOOKSTORE, BOOKS[:2]),
        ("$..book[?@.isbn]", BOOKSTORE, BOOKS[2:]),
        ("$..book[?@.price<10]", BOOKSTORE, [BOOKS[0], BOOKS[2]]),
        # 2.2, 2.3.1
        ("$", {"k": "v"}, [{"k": "v"}]),
        ("$.o['j j']['k.k']", {"o": {"j j": {"k.k": 3}}}, [3]),
        ('$["\'"]["@"]', {"'": {"@": 2}}, [2]),
        # 2.3.2
        ("$[*]", DESCENDED, [{"j": 1, "k": 2}, [5, 3, [{"j": 4}, {"k": 6}]]]),
        ("$.o[*, *]", DESCENDED, [1, 2, 1, 2]),
        # 2.3.3, 2.3.4
        ("$[1]", ["a", "b"], ["b"]),
        ("$[-2]", ["a", "b"], ["a"]),
        ("$[1:3]", LETTERS, ["b", "c"]),
        ("$[5:]", LETTERS, ["f", "g"]),
        ("$[1:5:2]", LETTERS, ["b", "d"]),
        ("$[5:1:-2]", LETTERS, ["f", "d"]),
        ("$[::-1]", LETTERS, LETTERS[::-1]),
        ("$[::0]", LETTERS, []),
        # 2.3.5.3, comparisons
        ("$[?$.absent1 == $.absent2]", COMPARED, [{"x": "y"}, [2, 3]]),
        ("$[?$.absent1 <= $.absent2]", COMPARED, [{"x": "y"}, [2, 3]]),
        ("$[?$.absent == 'g']", COMPARED, []),
        ("$[?$.absent1 != $.absent2]", COMPARED, []),
        ("$[?$.absent != 'g']", COMPARED, [{"x": "y"}, [2, 3]]),
        ("$[?1 <= 2]", COMPARED, [{"x": "y"}, [2, 3]]),
        ("$[?1 > 2]", COMPARED, []),
        ("$[?13 == '13']", COMPARED, []),
        ("$[?'a' <= 'b']", COMPARED, [{"x": "y"}, [2, 3]]),
        ("$[?'a' > 'b']", COMPARED, []),
        ("$[?$.obj == $.arr]", COMPARED, []),
        ("$[?$.obj != $.arr]", COMPARED, [{"x": "y"}, [2, 3]]),
        ("$[?$.obj == $.obj]", COMPARED, [{"x": "y"}, [2, 3]]),
        ("$[?$.obj <= $.arr]", COMPARED, []),
        ("$[?$.arr >= $.arr]", COMPARED, [{"x": "y"}, [2, 3]]),
        ("$[?1 <= $.arr]", COMPARED, []),
        ("$[?true <= true]", COMPARED, [{"x": "y"}, [2, 3]]),
        ("$[?true > true]", COMPARED, []),
        # 2.3.5.3, filters
        ("$.a[?@.b == 'kilo']", FILTERED, [{"b": "kilo"}]),
        ("$.a[?(@.b == 'kilo')]", FILTERED, [{"b": "kilo"}]),
        ("$.a[?@>3.5]", FILTERED, [5, 4, 6]),
        ("$.a[?@.b]", FILTERED, [{"b": "j"}, {"b": "k"}, {"b": {}}, {"b": "kilo"}]),
        ("$[?@.*]", FILTERED, [FILTERED["a"], FILTERED["o"]]),
        ("$[?@[?@.b]]", FILTERED, [FILTERED["a"]]),
        ("$.o[?@<3, ?@<3]", FILTERED, [1, 2, 1, 2]),
        ('$.a[?@<2 || @.b == "k"]', FILTERED, [1, {"b": "k"}]),
        ("$.o[?@>1 && @<4]", FILTERED, [2, 3]),
        ("$.o[?@.u || @.x]", FILTERED, [{"u": 6}]),
        ("$.a[?@.b == $.x]", FILTERED, [3, 5, 1, 2, 4, 6]),
        ("$.a[?@ == @]", FILTERED, FILTERED["a"]),
        ("$.a[?!@.b]", FILTERED, [3, 5, 1, 2, 4, 6]),
        # 2.4
        (
            "$[?length(@.x) == 1]",
            [{"x": "é"}, {"x": [1]}, {"x": {"a": 1}}, {"x": 1}, {}],
            [{"x": "é"}, {"x": [1]}, {"x": {"a": 1}}],
        ),
        ("$[?count(@.*) > 1]", [[1], [1, 2], 3], [[1, 2]]),
        (
            "$[?value(@..c) == 'red']",
            [{"c": "red"}, {"a": {"c": "red"}}, {"c": "red", "a": {"c": "red"}}],
            [{"c": "red"}, {"a": {"c": "red"}}],
        ),
        # 2.5
        ("$..j", DESCENDED, [1, 4]),
        ("$..[0]", DESCENDED, [5, {"j": 4}]),
        (
            "$..[*]",
            DESCENDED,
            [
                {"j": 1, "k": 2},
                [5, 3, [{"j": 4}, {"k": 6}]],
                1,
                2,
                5,
                3,
                [{"j": 4}, {"k": 6}],
                {"j": 4},
                {"k": 6},
                4,
                6,
            ],
        ),
        ("$..o", DESCENDED, [{"j": 1, "k": 2}]),
        ("$.a..[0, 1]", DESCENDED, [5, 3, {"j": 4}, {"k": 6}]),
        # 2.6
        ("$.a", NULLED, [None]),
        ("$.a[0]", NULLED, []),
        ("$.b[?@==null]", NULLED, [None]),
        ("$.c[?@.d==null]", NULLED, []),
        ("$.null", NULLED, [1]),
        # Integers are not rounded to doubles.
        ("$[?@ == 9007199254740993]", [9007199254740992, 9007199254740993, 9007199254740992.0], [9007199254740993]),
        ("$[?@ == 1]", [1, 1.0, True, "1"], [1, 1.0]),
        ("$[?@ == 1e0]", [1, 1.0, True], [1, 1.0]),
        (
            "$[?@.a == $[0].b]",
            [{"a": [1, {"x": True}], "b": [True, {"x": 1}]}, {"a": [True, {"x": 1.0}]}],
            [{"a": [True, {"x": 1.0}]}],
        ),
    ],
)
def test_the_rfc(path: str, document: Any, expected: list[Any]) -> None:
    values = found(path, document)
    if path == "$.store..price":
        # The RFC leaves the order open; here it is that of the document.
        expected = [8.95, 12.99, 8.99, 22.99, 399]
    assert json.dumps(values) == json.dumps(expected)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("a", "expected '$', found 'a' at character 0"),
        ("$.", "at character 2"),
        ("$.a b", "found 'b' at character 4"),
        ("$..", "bald descendant segment"),
        ("$[", "unbalanced brackets"),
        ("$[]", "empty bracketed segment"),
        ("$['a", "unclosed string"),
        ("$[01]", "leading zero"),
        ("$[-0]", "leading zero"),
        ("$[9007199254740992]", "index out of range"),
        ("$[?@.a == ]", "unexpected"),
        ("$[?@.a = 1]", "unexpected filter selector token '='"),
        ("$[?(@.a]", "unbalanced"),
        ("$[?@.* == 1]", "not comparable"),
        ("$[?1]", "must be compared"),
        ("$[?length(@.*) == 1]", "must be of ValueType"),
        ("$[?count(@.a, 1) == 1]", "requires 1 arguments"),
        ("$[?match(@.a, 'x')]", "match() is not supported at character 3"),
        ("$[?search(@.a, 'x')]", "search() is not supported"),
        ("$[?@.a == 1e999]", "is not JSONPath"),
        ("$[?fly(@.a) == 1]", "'fly' is not defined"),
        ("$ ", "trailing whitespace"),
        (" $", "expected '$'"),
        ("$['\\x']", "invalid escape"),
        ("$['\\ud800']", "incomplete escape sequence"),
    ],
)
def test_what_is_no_path_is_refused_with_the_place(path: str, told: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        compile_path(path, "paths[3]")
    assert refused.value.metadata["field"] == "paths[3]"
    assert told in refused.value.message
    assert refused.value.message.startswith("paths[3]: ")
    assert len(refused.value.message) < 400


NESTED = {
    "parentheses": "$[?" + "(" * 63 + "@.a" + ")" * 63 + "]",
    "negations": "$[?" + "!(" * 31 + "@.a" + ")" * 31 + "]",
    "filters": "$" + "[?@" * 64 + "]" * 64,
    "functions": "$[?" + "length(" * 62 + "@.a" + ")" * 62 + " == 1]",
    "alternatives": "$[?" + " || ".join(["@.a"] * 64) + "]",
}


def deep(depth: int) -> Any:
    document: Any = 1
    for _ in range(depth):
        document = {"a": document}
    return document


@pytest.mark.parametrize("path", NESTED.values(), ids=NESTED)
def test_the_deepest_paths_need_no_deep_stack(path: str) -> None:
    """What passes the check has to run at every replay, however deep the stack is there."""
    document = deep(limits.JSON_DEPTH_MAX)
    frames = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        frame, frames = frame.f_back, frames + 1
    old = sys.getrecursionlimit()
    sys.setrecursionlimit(frames + 750)
    try:
        matches = found(path, [document])
    finally:
        sys.setrecursionlimit(old)
    assert isinstance(matches, list)


@pytest.mark.parametrize(
    "path",
    [
        "$[?" + "(" * 65 + "@.a" + ")" * 65 + "]",
        "$[?" + "!" * 2_000 + "@.a]",
        "$" + "[?@" * 65 + "]" * 65,
        "$[?" + "length(" * 400 + "@.a" + ")" * 400 + " == 1]",
        "$[?" + "||".join(["@.a"] * 65) + "]",
    ],
)
def test_too_many_expressions_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="more than 64 expressions"):
        compile_path(path, "path")


def test_a_long_path_is_refused() -> None:
    fits = "$['" + "é" * ((limits.JSON_PATH_BYTES_MAX - 5) // 2) + "']"
    assert len(fits.encode()) <= limits.JSON_PATH_BYTES_MAX
    compile_path(fits, "path")
    with pytest.raises(LimitExceededError):
        compile_path(fits.replace("éé", "éééé"), "path")
    many_steps = "$" + ".a" * 2_000
    assert found(many_steps, deep(100)) == []


WIDE = [[number, {"a": number, "b": [1, 2]}] for number in range(2_000)]


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("$..*..*..*..*", deep(60)),
        ("$[?count($..*) > 3]", WIDE),
        ("$..[?value(@..a) == 1 || count(@..*) > 3]", [WIDE] * 10),
        ("$[" + ",".join(["*"] * 200) + "]", list(range(2_000))),
        ("$[" + ",".join(["0"] * 500) + "]..x", [[[1] * 10_000]]),
        ("$[?" + " || ".join(["$[0] == $[1]"] * 20) + "]", [[1] * 200_000, [1] * 200_000]),
        ("$[" + ",".join(["?$[0] < $[1]"] * 30) + "]", ["x" * 4_000_000] * 20),
        ("$[?@ == $[0]]", [{str(number): 1 for number in range(200_000)}] * 3),
    ],
)
def test_no_path_takes_for_ever(path: str, document: Any) -> None:
    with pytest.raises(LimitExceededError) as refused:
        found(path, document)
    assert refused.value.message == f"path: looks at more than {limits.JSON_PATH_VISITS_MAX} values"


def test_large_documents_can_be_searched() -> None:
    document = [{"id": number, "tags": ["x", "y"]} for number in range(15_000)]
    assert found("$..id", document) == list(range(15_000))
    assert found("$[?@.id == 14999].tags[1]", document) == ["y"]


PUNCTUATION = [
    "$",
    ".",
    "..",
    "*",
    "[",
    "]",
    "?",
    "@",
    "(",
    ")",
    "==",
    "<",
    "&&",
    "||",
    "!",
    ":",
    ",",
    "\\",
    "\\u00",
    "'",
    '"',
]
WORDS = [
    "a",
    "[0]",
    "1",
    "-",
    "length(",
    "count(",
    "value(",
    "match(",
    "true",
    "null",
    "1e5",
    "1.5",
    " ",
    "\n",
    "é",
    "\0",
    "😀",
]
pieces = st.sampled_from(PUNCTUATION + WORDS)


@settings(max_examples=1_500, deadline=None)
@given(st.lists(pieces, max_size=12).map("".join), st.booleans())
@example("$[?@.a == 1e400]", False)
@example("$['\\", False)
@example("$[?@.a=='\\u']", False)
def test_any_text_is_a_path_or_refused(text: str, rooted: bool) -> None:
    """Nothing else is raised, and what is a path runs, with the same matches each time."""
    try:
        path = compile_path("$" + text if rooted else text, "path")
    except InvalidArgumentError:
        return
    for document in ({"a": [1, "x", {"a": None}]}, [], 1):
        first, again = ([match.path() for match in path.find(document, "path")] for _ in range(2))
        assert first == again
        path.find_parents(document, "path")


def test_the_outermost_matches() -> None:
    document = {"a": {"a": {"b": {"a": 1}}}, "b": {"a": 2}, "c": [{"a": 3}]}
    matches = compile_path("$..a", "path").find_distinct(document, "path")
    assert [match.path() for match in outermost(matches)] == ["$['a']", "$['b']['a']", "$['c'][0]['a']"]
    assert [match.path() for match in outermost(compile_path("$..*", "path").find_distinct(document, "path"))] == [
        "$['a']",
        "$['b']",
        "$['c']",
    ]
    assert outermost([]) == []


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        ([0], [False], False),
        ({"a": 1, "b": [None]}, {"b": [None], "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 1}, False),
        ({"a": 1}, {"b": 1}, False),
        ([1, 2], [2, 1], False),
        ([], {}, False),
        ("a", "a", True),
        (None, None, True),
        (None, False, False),
        (2**53 + 1, float(2**53), False),
        (0.0, -0.0, True),
    ],
)
def test_equality(left: Any, right: Any, expected: bool) -> None:
    assert equal(left, right) is expected
    assert equal(right, left) is expected
    assert equal([{"x": left}], [{"x": right}]) is expected


def test_the_paths_of_one_read_look_at_as_many_values_as_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a read of 64 of them would take 64 times as long."""
    keyspace = Keyspace()
    do(keyspace, "set_json", key=b"k", value_json=b"[%s]" % b",".join([b"1"] * 1_000))
    monkeypatch.setattr(limits, "JSON_PATH_VISITS_MAX", 3_500)
    assert len(do(keyspace, "get_json", key=b"k", paths=["$[*]"] * 3).matches) == 3
    outcome = outcome_of(keyspace, "get_json", key=b"k", paths=["$[*]"] * 4)
    assert (outcome.error.reason, outcome.error.metadata["field"]) == ("LIMIT_EXCEEDED", "paths[3]")
