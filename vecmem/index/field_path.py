"""Dotted paths into payloads: what a path means is decided here and nowhere else.

`author.name` is the key `name` of the object `author`. A segment in double quotes is a key taken literally
(`"a.b".c`, and `"0"` is never an index); inside the quotes a double quote is written twice, as in SQL. Where a step
meets an array it is taken into each element, arrays in arrays included; an unquoted segment of digits picks that
one element instead (of an object it is the key). A path that ends at an array stands for its elements, flattened.
Objects are present but hold no value.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from vecmem import limits
from vecmem.errors import InvalidFilterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Scalar: TypeAlias = str | int | float | bool | None
"""A leaf of a JSON document. bool is a subclass of int in Python: ask for `type(value)`, not isinstance."""
Document: TypeAlias = dict[str, Any]
"""A decoded payload."""

_SHOWN_CHARACTERS_MAX: Final = 80
_ABSENT: Final = object()


class Segment(NamedTuple):
    """One step: a key of an object and, where it is unquoted digits, the index of an array element."""

    key: str
    element: int | None


Segments: TypeAlias = tuple[Segment, ...]


@dataclass(frozen=True)
class FieldPath:
    """A parsed path; equal when the steps are equal, however they are written."""

    text: str = field(compare=False)
    segments: Segments

    @staticmethod
    def parse(path: str, field: str) -> FieldPath:
        """Parse a path of 1 to 512 bytes and 1 to 16 segments.

        Args:
            path: the text, as a request carries it.
            field: where it stands in the request, for the error.

        Raises:
            InvalidFilterError: it is empty, too long, has an empty or too many segments, or a misplaced quote.
        """
        # Measured first, so that nothing oversize is kept in the cache.
        if len(path.encode()) > limits.FIELD_PATH_BYTES_MAX:
            raise _refusal(path, f"is longer than {limits.FIELD_PATH_BYTES_MAX} bytes", field)
        segments = _parse_segments(path)
        if isinstance(segments, str):
            raise _refusal(path, segments, field)
        return FieldPath(path, segments)

    def values(self, document: Document) -> tuple[Scalar, ...] | None:
        """The leaves at the path, in document order; null is None. None instead of a tuple: the path is absent.

        An empty tuple means present without a value: an empty array or an object.
        """
        node: Any = document
        for position, (key, _) in enumerate(self.segments):
            if type(node) is not dict:
                nodes = [node]
                for segment in self.segments[position:]:
                    found: list[Any] = []
                    for item in nodes:
                        _step(item, segment, found)
                    nodes = found
                if not nodes:
                    return None
                leaves: list[Scalar] = []
                for item in nodes:
                    _flatten(item, leaves)
                return tuple(leaves)
            node = node.get(key, _ABSENT)
            if node is _ABSENT:
                return None
        if type(node) is list:
            leaves = []
            _flatten(node, leaves)
            return tuple(leaves)
        return () if type(node) is dict else (node,)


def parse_paths(paths: Sequence[str], field: str) -> tuple[FieldPath, ...]:
    """Parse a FieldPaths list. Raises InvalidFilterError as FieldPath.parse, or for more than 256 paths."""
    if len(paths) > limits.FIELD_PATHS_MAX:
        raise InvalidFilterError(f"has {len(paths)} paths, more than {limits.FIELD_PATHS_MAX}", field=f"{field}.paths")
    return tuple(FieldPath.parse(path, f"{field}.paths[{position}]") for position, path in enumerate(paths))


def keep_paths(document: Document, paths: Iterable[FieldPath]) -> Document:
    """A document with only what stands at the paths; key order stays.

    Objects and array elements with nothing at any path are left out, so an array keeps only the elements that the
    paths reach and `tags.2` gives an array of one. The result shares its leaves and untouched branches with
    `document`.
    """
    kept: Document = _keep(document, [path.segments for path in paths])
    return {} if kept is _ABSENT else kept


def drop_paths(document: Document, paths: Iterable[FieldPath]) -> Document:
    """A document without what stands at the paths. Objects and arrays that become empty stay.

    All paths refer to `document` as given: dropping `tags.0` and `tags.1` drops the first two elements. The result
    shares its untouched branches with `document`.
    """
    dropped: Document = _drop(document, [path.segments for path in paths])
    # Only an empty path could drop the root, and none is empty.
    assert dropped is not _ABSENT
    return dropped


def _refusal(path: str, why: str, field: str) -> InvalidFilterError:
    shown = path if len(path) <= _SHOWN_CHARACTERS_MAX else path[:_SHOWN_CHARACTERS_MAX] + "…"
    return InvalidFilterError(f"path {shown!r} {why}", field=field)


@lru_cache(maxsize=4_096)
def _parse_segments(path: str) -> Segments | str:
    """The segments, or what is wrong with the path. Cached: requests repeat the same few paths."""
    if not path:
        return "is empty"
    segments: list[Segment] = []
    position = 0
    while True:
        if path.startswith('"', position):
            end = position + 1
            while (end := path.find('"', end)) >= 0 and path.startswith('""', end):
                end += 2
            if end < 0:
                return "has a quote that is not closed"
            segments.append(Segment(path[position + 1 : end].replace('""', '"'), None))
            position = end + 1
            if position < len(path) and path[position] != ".":
                return "has text after a closing quote"
        else:
            end = path.find(".", position)
            end = len(path) if end < 0 else end
            key = path[position:end]
            if not key:
                return "has an empty segment"
            if '"' in key:
                return "has a quote inside a segment"
            segments.append(Segment(key, int(key) if key.isascii() and key.isdigit() else None))
            position = end
        if len(segments) > limits.FIELD_PATH_SEGMENTS_MAX:
            return f"has more than {limits.FIELD_PATH_SEGMENTS_MAX} segments"
        if position == len(path):
            return tuple(segments)
        position += 1


def _step(node: Any, segment: Segment, found: list[Any]) -> None:
    if type(node) is dict:
        child = node.get(segment.key, _ABSENT)
        if child is not _ABSENT:
            found.append(child)
    elif type(node) is list:
        if segment.element is None:
            for element in node:
                _step(element, segment, found)
        elif segment.element < len(node):
            found.append(node[segment.element])


def _flatten(node: Any, leaves: list[Scalar]) -> None:
    if type(node) is list:
        for element in node:
            _flatten(element, leaves)
    elif type(node) is not dict:
        leaves.append(node)


class _Tails:
    """The rests of the paths that go on into each child of one node."""

    def __init__(self, pending: list[Segments]) -> None:
        self._by_key: defaultdict[str, list[Segments]] = defaultdict(list)
        self._by_index: defaultdict[int, list[Segments]] = defaultdict(list)
        self._each_element: list[Segments] = []
        for segments in pending:
            head, tail = segments[0], segments[1:]
            self._by_key[head.key].append(tail)
            if head.element is None:
                self._each_element.append(segments)
            else:
                self._by_index[head.element].append(tail)

    def of_key(self, key: str) -> list[Segments]:
        return self._by_key.get(key, [])

    def of_element(self, index: int) -> list[Segments]:
        picked = self._by_index.get(index)
        return self._each_element + picked if picked else self._each_element


def _keep(node: Any, pending: list[Segments]) -> Any:
    """What of `node` the paths reach; _ABSENT: nothing."""
    if not all(pending):
        return node
    if not pending or type(node) not in {dict, list}:
        return _ABSENT
    tails = _Tails(pending)
    kept: Any
    if type(node) is dict:
        kept = {key: _keep(child, tails.of_key(key)) for key, child in node.items()}
        kept = {key: child for key, child in kept.items() if child is not _ABSENT}
    else:
        kept = [_keep(child, tails.of_element(index)) for index, child in enumerate(node)]
        kept = [child for child in kept if child is not _ABSENT]
    return kept or _ABSENT


def _drop(node: Any, pending: list[Segments]) -> Any:
    """What of `node` the paths leave; _ABSENT: it goes itself."""
    if not all(pending):
        return _ABSENT
    if not pending or type(node) not in {dict, list}:
        return node
    tails = _Tails(pending)
    if type(node) is dict:
        left = {key: _drop(child, tails.of_key(key)) for key, child in node.items()}
        return {key: child for key, child in left.items() if child is not _ABSENT}
    rest = [_drop(child, tails.of_element(index)) for index, child in enumerate(node)]
    return [child for child in rest if child is not _ABSENT]
