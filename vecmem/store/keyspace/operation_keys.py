"""Which keys an operation names: by the names of fields, which the protos use alike."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

KEY_FIELDS: Final = frozenset({"key", "keys", "new_key", "destination"})
"""Fields of type bytes that hold keys, in a request or in the messages of a repeated field of it."""


def keys_of(request: Any) -> list[bytes]:
    """All keys that the request of an operation names, in the order of its fields."""
    return [key for path in key_paths(request.DESCRIPTOR) for key in _values(request, path)]


def sources_of(request: Any) -> list[bytes]:
    """The keys that an operation takes something from, but none that it only puts something to."""
    paths = [path for path in key_paths(request.DESCRIPTOR) if path[-1] != "destination"]
    return [key for path in paths for key in _values(request, path)]


@cache
def key_paths(descriptor: Descriptor) -> tuple[tuple[str, ...], ...]:
    """Where a request has keys: fields from the outside to the inside."""
    paths: list[tuple[str, ...]] = []
    for field in descriptor.fields:
        if field.type == field.TYPE_BYTES:
            if field.name in KEY_FIELDS:
                paths.append((field.name,))
        elif field.message_type is not None and field.message_type.file is descriptor.file:
            paths += [(field.name, *path) for path in key_paths(field.message_type)]
    return tuple(paths)


def _values(message: Any, path: tuple[str, ...]) -> Iterator[bytes]:
    name, *rest = path
    found = getattr(message, name)
    if not rest:
        if isinstance(found, bytes):
            if found:
                yield found
        else:
            yield from found
    elif message.DESCRIPTOR.fields_by_name[name].is_repeated:
        for part in found:
            yield from _values(part, tuple(rest))
    elif message.HasField(name):
        yield from _values(found, tuple(rest))
