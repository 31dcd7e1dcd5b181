"""Messages of topics, which are entries of streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vecmem_client._stream_types import Entry, StreamId

BODY = b"body"
"""The field of an entry that holds the message; the others are headers."""


@dataclass(frozen=True, slots=True)
class TopicMessage:
    """A message of a topic. Ids are in the order of publication."""

    id: StreamId
    body: bytes
    headers: Mapping[bytes, bytes]
    delivery_count: int
    """How often the group has delivered it, this time included; 0 to readers without a group."""


def message_of(entry: Entry) -> TopicMessage:
    """Return an entry as a message."""
    fields = entry.fields
    body = fields.pop(BODY, b"")
    return TopicMessage(entry.id, body, fields, entry.delivery_count)
