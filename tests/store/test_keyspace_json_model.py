"""JSON documents beside a model in plain Python: the same answers, the same document, whatever documents and paths come."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.keyspace import contents, do, outcome_of, reloaded
from vecmem.store.keyspace.keyspace import Keyspace

KEY = b"k"
NAMES = ["a", "b", "c"]
Location = tuple[str | int, ...]
INT64_MAX = 2**63 - 1

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([INT64_MAX, -INT64_MAX, 0.5, -0.0, 1e300, 1.0]),
    st.sampled_from(["", "x", "é😀"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)),
    max_leaves=12,
)
steps = st.one_of(
    st.sampled_from(NAMES).map(lambda name: ("name", name)),
    st.integers(-2, 2).map(lambda index: ("index", index)),
    st.just(("all", None)),
    st.sampled_from(NAMES).map(lambda name: ("below", name)),
    st.just(("below all", None)),
    st.just(("twice", None)),
    st.tuples(st.just("where"), st.sampled_from([1, "x", True, None])),
)
paths = st.lists(steps, max_size=3)


def spelt(path: list[Any]) -> str:
    """A path as JSONPath."""
    text = "$"
    for kind, argument in path:
        match kind:
            case "name":
                text += f".{argument}"
            case "index":
                text += f"[{argument}]"
            case "all":
                text += "[*]"
            case "below":
                text += f"..{argument}"
            case "below all":
                text += "..*"
            case "twice":
                text += "[-1,'a',0]"
            case _:
                text += f"[?@.a == {json.dumps(argument)}]"
    return text


def at(document: Any, location: Location) -> Any:
    for step in location:
        document = document[step]
    return document


def children(document: Any, location: Location) -> Iterator[Location]:
    value = at(document, location)
    if isinstance(value, dict | list):
        for step in value if isinstance(value, dict) else range(len(value)):
            yield (*location, step)


def and_below(document: Any, location: Location) -> Iterator[Location]:
    yield location
    for child in children(document, location):
        yield from and_below(document, child)


def child(document: Any, location: Location, step: str | int) -> list[Location]:
    value = at(document, location)
    if isinstance(step, str):
        return [(*location, step)] if isinstance(value, dict) and step in value else []
    if not isinstance(value, list):
        return []
    place = step + len(value) if step < 0 else step
    return [(*location, place)] if 0 <= place < len(value) else []


def same(left: Any, right: Any) -> bool:
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def found(document: Any, path: list[Any]) -> list[Location]:
    """Where a path leads, one place as often as it is reached."""
    locations: list[Location] = [()]
    for kind, argument in path:
        reached: list[Location] = []
        for location in locations:
            match kind:
                case "name" | "index":
                    reached += child(document, location, argument)
                case "all":
                    reached += children(document, location)
                case "below":
                    for below in and_below(document, location):
                        reached += child(document, below, argument)
                case "below all":
                    for below in and_below(document, location):
                        reached += children(document, below)
                case "twice":
                    for step in (-1, "a", 0):
                        reached += child(document, location, step)
                case _:
                    for each in children(document, location):
                        value = at(document, each)
                        if isinstance(value, dict) and "a" in value and same(value["a"], argument):
                            reached.append(each)
        locations = reached
    return locations


def distinct(locations: list[Location]) -> list[Location]:
    return list(dict.fromkeys(locations))


def outer(locations: list[Location]) -> list[Location]:
    return [
        location for location in locations if not any(location[:length] in locations for length in range(len(location)))
    ]


def placed(document: Any, path: list[Any]) -> list[tuple[Location, bool]]:
    """Where a value is written, and whether the place is new."""
    places = [(location, False) for location in distinct(found(document, path))]
    if path and path[-1][0] == "name":
        for parent in distinct(found(document, path[:-1])):
            value = at(document, parent)
            if isinstance(value, dict) and path[-1][1] not in value:
                places.append(((*parent, path[-1][1]), True))
    known = [location for location, _ in places]
    return [(location, new) for location, new in places if location in outer(known)]


def put(document: Any, location: Location, value: Any) -> Any:
    if not location:
        return value
    at(document, location[:-1])[location[-1]] = value
    return document


def patched(target: Any, patch: Any) -> Any:
    """RFC 7396, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = patched(target.get(name), value)
    return target


def model_set(document: Any, path: list[Any], value: Any, condition: int) -> tuple[Any, Any]:
    places = placed_on(document, path, condition)
    for location, _ in places:
        document = put(document, location, copy.deepcopy(value))
    return document, (len(places), sum(new for _, new in places))


def placed_on(document: Any, path: list[Any], condition: int) -> list[tuple[Location, bool]]:
    if condition == 0:
        return placed(document, path)
    if condition == 2:
        return [(location, False) for location in outer(distinct(found(document, path)))]
    new = [location for location, is_new in all_new(document, path) if is_new]
    return [(location, True) for location in outer(new)]


def all_new(document: Any, path: list[Any]) -> list[tuple[Location, bool]]:
    if not path or path[-1][0] != "name":
        return []
    parents = distinct(found(document, path[:-1]))
    return [
        ((*parent, path[-1][1]), True)
        for parent in parents
        if isinstance(at(document, parent), dict) and path[-1][1] not in at(document, parent)
    ]


def model_merge(document: Any, path: list[Any], patch: Any) -> tuple[Any, Any]:
    places = placed(document, path)
    for location, new in places:
        target = None if new else at(document, location)
        document = put(document, location, patched(target, copy.deepcopy(patch)))
    return document, len(places)


_GONE = object()


def model_delete(document: Any, path: list[Any]) -> tuple[Any, Any]:
    locations = outer(distinct(found(document, path)))
    for location in locations:
        document = put(document, location, _GONE)
    return swept(document), len(locations)


def swept(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: swept(each) for name, each in value.items() if each is not _GONE}
    if isinstance(value, list):
        return [swept(each) for each in value if each is not _GONE]
    return value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def model_add(document: Any, path: list[Any], delta: float) -> tuple[Any, Any]:
    locations = distinct(found(document, path))
    sums = [at(document, each) + delta if is_number(at(document, each)) else None for each in locations]
    for total in sums:
        if isinstance(total, int) and not -(2**63) <= total < 2**63:
            return document, "OVERFLOW"
        if isinstance(total, float) and total in {float("inf"), float("-inf")}:
            return document, "OVERFLOW"
    for location, total in zip(locations, sums, strict=True):
        if total is not None:
            document = put(document, location, total)
    return document, sums


def on_arrays(document: Any, path: list[Any], change: Callable[[list[Any]], Any]) -> tuple[Any, Any]:
    """Changes arrays, those within others first; what is answered is in the order of the path."""
    locations = distinct(found(document, path))
    targets = [at(document, location) for location in locations]
    answers: dict[int, Any] = {}
    for place in sorted(range(len(locations)), key=lambda place: -len(locations[place])):
        target = targets[place]
        answers[place] = change(target) if isinstance(target, list) else None
    return document, [answers[place] for place in range(len(locations))]


def shown(value: Any) -> str:
    """A value as text that tells 1 from 1.0 and from True, and has the order of members."""
    return json.dumps(value)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, Any, tuple[Any, ...]]]:
    kinds = ["set", "merge", "delete", "add", "append", "insert", "pop", "trim", "text", "toggle", "clear"]
    history = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(kinds))
        match kind:
            case "set":
                arguments: tuple[Any, ...] = (draw(values), draw(st.integers(0, 2)))
            case "merge":
                arguments = (draw(values),)
            case "add":
                arguments = (draw(st.sampled_from([1, -5, 0.25, 1e308, INT64_MAX])),)
            case "append":
                arguments = (draw(st.lists(values, min_size=1, max_size=2)),)
            case "insert":
                arguments = (draw(st.lists(values, min_size=1, max_size=2)), draw(st.integers(-3, 3)))
            case "pop":
                arguments = (draw(st.integers(-3, 3)),)
            case "trim":
                arguments = (draw(st.integers(-3, 3)), draw(st.integers(-3, 3)))
            case _:
                arguments = ()
        history.append((kind, draw(paths), arguments))
    return history


@settings(max_examples=300, deadline=None)
@given(values, histories())
@example({"a": {"a": 1}}, [("set", [("below", "a")], (5, 0))])
@example([[1, [2, 3]], [4]], [("pop", [("below all", None)], (-1,))])
@example({"a": [1], "b": {}}, [("set", [("all", None), ("name", "a")], ([], 0)), ("delete", [("below all", None)], ())])
def test_documents_do_what_the_model_does(start: Any, history: list[Any]) -> None:
    keyspace = Keyspace()
    do(keyspace, "set_json", key=KEY, path="$", value_json=encoded(start))
    document = copy.deepcopy(start)
    for kind, path, arguments in history:
        if KEY not in keyspace.values:
            break
        expected_document, expected = MODELS[kind](copy.deepcopy(document), path, *arguments)
        before = contents(keyspace)
        assert OURS[kind](keyspace, spelt(path), *arguments) == expected
        if expected == "OVERFLOW":
            assert contents(keyspace) == before
            continue
        document = expected_document
        if document is _GONE:
            assert KEY not in keyspace.values
        else:
            check_document(keyspace, document)


def check_document(keyspace: Keyspace, document: Any) -> None:
    [whole] = do(keyspace, "get_json", key=KEY).matches
    assert shown(json.loads(whole.values_json)) == shown([document])
    reloaded(keyspace)
    value = keyspace.values[KEY]
    assert not isinstance(value, bytes)
    copied = value.copy()
    assert copied == value
    assert copied.size_bytes == value.size_bytes


@settings(max_examples=300, deadline=None)
@given(values, paths)
def test_paths_find_what_the_model_finds(document: Any, path: list[Any]) -> None:
    keyspace = Keyspace()
    do(keyspace, "set_json", key=KEY, path="$", value_json=encoded(document))
    [matches] = do(keyspace, "get_json", key=KEY, paths=[spelt(path)], with_locations=True).matches
    locations = found(document, path)
    assert list(matches.locations) == [normalized(location) for location in locations]
    by_location = dict(zip(matches.locations, json.loads(matches.values_json), strict=True))
    for location in locations:
        assert shown(by_location[normalized(location)]) == shown(at(document, location))
    told = do(keyspace, "describe_json", key=KEY, path=spelt(path)).matches
    assert len(told) == len(set(locations))
    names = do(keyspace, "get_json_names", key=KEY, path=spelt(path)).matches
    assert [list(each.names) if each.is_object else None for each in names] == [
        list(at(document, each)) if isinstance(at(document, each), dict) else None for each in distinct(locations)
    ]


def normalized(location: Location) -> str:
    return "$" + "".join(f"['{step}']" if isinstance(step, str) else f"[{step}]" for step in location)


def encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def run(keyspace: Keyspace, kind: str, path: str, **fields: Any) -> Any:
    outcome = outcome_of(keyspace, kind, key=KEY, path=path, **fields)
    return None if outcome.HasField("error") else getattr(outcome, kind)


def our_set(keyspace: Keyspace, path: str, value: Any, condition: int) -> Any:
    response = run(keyspace, "set_json", path, value_json=encoded(value), condition=condition)
    return response.written_count, response.new_count


def our_add(keyspace: Keyspace, path: str, delta: float) -> Any:
    kind = "integer" if isinstance(delta, int) else "number"
    outcome = outcome_of(keyspace, "add_json_number", key=KEY, path=path, **{kind: delta})
    if outcome.HasField("error"):
        return outcome.error.reason
    sums = outcome.add_json_number.sums
    return [None if each.WhichOneof("value") is None else getattr(each, each.WhichOneof("value")) for each in sums]


def lengths(response: Any) -> list[int | None]:
    return [each.length if each.HasField("length") else None for each in response.lengths]


def model_append(document: Any, path: list[Any], items: list[Any]) -> tuple[Any, Any]:
    return on_arrays(document, path, lambda array: array.extend(copy.deepcopy(items)) or len(array))


def model_insert(document: Any, path: list[Any], items: list[Any], index: int) -> tuple[Any, Any]:
    def change(array: list[Any]) -> int | None:
        place = index + len(array) if index < 0 else index
        if not 0 <= place <= len(array):
            return None
        array[place:place] = copy.deepcopy(items)
        return len(array)

    return on_arrays(document, path, change)


def model_pop(document: Any, path: list[Any], index: int) -> tuple[Any, Any]:
    before = copy.deepcopy(document)

    def nearest(array: list[Any]) -> int:
        return max(0, min(index + len(array) if index < 0 else index, len(array) - 1))

    told = []
    for location in distinct(found(before, path)):
        array = at(before, location)
        told.append(shown(array[nearest(array)]) if isinstance(array, list) and array else None)
    on_arrays(document, path, lambda array: array and array.pop(nearest(array)))
    return document, told


def model_trim(document: Any, path: list[Any], start: int, stop: int) -> tuple[Any, Any]:
    def change(array: list[Any]) -> int:
        first = max(0, start + len(array)) if start < 0 else start
        last = stop + len(array) if stop < 0 else stop
        array[:] = [item for index, item in enumerate(array) if first <= index <= last]
        return len(array)

    return on_arrays(document, path, change)


def model_text(document: Any, path: list[Any]) -> tuple[Any, Any]:
    told: list[Any] = []
    for location in distinct(found(document, path)):
        value = at(document, location)
        told.append(len(value) + 2 if isinstance(value, str) else None)
        if isinstance(value, str):
            document = put(document, location, value + "é!")
    return document, told


def model_toggle(document: Any, path: list[Any]) -> tuple[Any, Any]:
    told: list[Any] = []
    for location in distinct(found(document, path)):
        value = at(document, location)
        told.append(not value if isinstance(value, bool) else None)
        if isinstance(value, bool):
            document = put(document, location, not value)
    return document, told


def model_clear(document: Any, path: list[Any]) -> tuple[Any, Any]:
    count = 0
    for location in outer(distinct(found(document, path))):
        value = at(document, location)
        if isinstance(value, dict | list):
            empty: Any = {} if isinstance(value, dict) else []
        elif is_number(value):
            empty = 0
        else:
            continue
        if shown(value) != shown(empty):
            count += 1
            document = put(document, location, empty)
    return document, count


MODELS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "set": model_set,
    "merge": model_merge,
    "delete": model_delete,
    "add": model_add,
    "append": model_append,
    "insert": model_insert,
    "pop": model_pop,
    "trim": model_trim,
    "text": model_text,
    "toggle": model_toggle,
    "clear": model_clear,
}
OURS: dict[str, Callable[..., Any]] = {
    "set": our_set,
    "merge": lambda keyspace, path, patch: run(keyspace, "merge_json", path, patch_json=encoded(patch)).merged_count,
    "delete": lambda keyspace, path: run(keyspace, "delete_json", path).deleted_count,
    "add": our_add,
    "append": lambda keyspace, path, items: lengths(
        run(keyspace, "append_json_array", path, items_json=[encoded(item) for item in items])
    ),
    "insert": lambda keyspace, path, items, index: lengths(
        run(keyspace, "insert_json_array", path, items_json=[encoded(item) for item in items], index=index)
    ),
    "pop": lambda keyspace, path, index: [
        shown(json.loads(each.item_json)) if each.HasField("item_json") else None
        for each in run(keyspace, "pop_json_array", path, index=index).items
    ],
    "trim": lambda keyspace, path, start, stop: lengths(run(keyspace, "trim_json_array", path, start=start, stop=stop)),
    "text": lambda keyspace, path: lengths(run(keyspace, "append_json_string", path, text="é!")),
    "toggle": lambda keyspace, path: [
        each.value if each.HasField("value") else None for each in run(keyspace, "toggle_json", path).values
    ],
    "clear": lambda keyspace, path: run(keyspace, "clear_json", path).cleared_count,
}
