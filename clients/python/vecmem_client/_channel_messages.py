"""Messages of channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vecmem_client._operations import BytesLike, as_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class ChannelMessage:
    """A message, and where it was published."""

    channel: bytes
    message: bytes
    pattern: bytes = b""
    """The pattern that matched; empty where the subscription names the channel itself."""


def names(values: Iterable[BytesLike], argument: str) -> list[bytes]:
    """Return several names as bytes; a lone one is a mistake and raises TypeError."""
    if isinstance(values, bytes | str):
        raise TypeError(f"{argument} takes several, not one")
    return [as_bytes(value) for value in values]
