"""What the operations on JSON documents share: checks of paths and values, and the rules by which a document is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vecmem import limits
from vecmem.errors import LimitExceededError
from vecmem.store.keyspace.json_paths import Match, compile_path
from vecmem.store.keyspace.json_value import JsonValue, measure, parse
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import Moment, check_member_count, check_request_key


def check_path(request: Any) -> None:
    """Check `key` and `path`. Raises InvalidArgumentError, LimitExceededError."""
    check_request_key(request)
    compile_path(request.path, "path")


def check_items(items: Sequence[bytes], field: str) -> None:
    """Check values that come as JSON. Raises InvalidArgumentError, LimitExceededError."""
    check_member_count(len(items), field)
    for index, item in enumerate(items):
        parse(item, f"{field}[{index}]")


def find_document(keyspace: Keyspace, key: bytes, moment: Moment) -> JsonValue | None:
    """The document under a key. Raises WrongTypeError."""
    return keyspace.container(key, JsonValue, moment.time_unix_ms)


def find_matches(document: JsonValue | None, request: Any) -> list[Match]:
    """What the path of a request matches, each place once; nothing where there is no document. Raises LimitExceededError."""
    return [] if document is None else compile_path(request.path, "path").find_distinct(document.root, "path")


def innermost_first(matches: list[Match]) -> list[Match]:
    """In an order in which a change of one leaves those to come where they are, and what they hold as large as it will be."""
    return sorted(matches, key=lambda match: match.depth, reverse=True)


def replace(document: JsonValue, match: Match, value: Any) -> None:
    """Put a value in the place of a match, whose size is for the caller to count."""
    if match.parent is None:
        document.root = value
    else:
        match.parent.value[match.step] = value


def spend_matches(matches: list[Match], moment: Moment) -> None:
    """Count what a write tells of its matches. Raises LimitExceededError."""
    moment.spend(limits.JSON_MATCH_REPLY_BYTES * len(matches), "path")


def check_growth(document: JsonValue, growth_bytes: int, field: str) -> None:
    """Raises LimitExceededError for a document that would become too large."""
    check_size(document.size_bytes + growth_bytes, field)


def check_size(size_bytes: int, field: str) -> None:
    """Raises LimitExceededError for a document that is too large."""
    if size_bytes > limits.JSON_DOCUMENT_BYTES_MAX:
        raise LimitExceededError(
            f"the document would take {size_bytes} bytes, more than {limits.JSON_DOCUMENT_BYTES_MAX}", field=field
        )


def check_depth(matches: list[Match], depth: int, field: str) -> None:
    """Raises LimitExceededError where a value of a depth would be too deep in the place of a match."""
    if any(match.depth + depth > limits.JSON_DEPTH_MAX for match in matches):
        raise LimitExceededError(
            f"the document would be nested more than {limits.JSON_DEPTH_MAX} levels deep", field=field
        )


def changed(keyspace: Keyspace, key: bytes, document: JsonValue, growth_bytes: int, moment: Moment) -> None:
    """Tell of a document that was changed."""
    old_size_bytes = document.size_bytes
    document.size_bytes += growth_bytes
    keyspace.change(key, document, old_size_bytes, moment.time_unix_ms)


def size_of(value: Any) -> int:
    """About how many bytes a value takes."""
    return measure(value)[0]


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a double."""
    return isinstance(value, int | float) and not isinstance(value, bool)
