"""The nodes that a client knows, and the one that it talks to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmem_client._errors import MovedError

if TYPE_CHECKING:
    from vecmem_client._errors import VecmemClientError

LISTS_OF_GRPC = ("ipv4:", "ipv6:")
"""Targets whose commas are gRPC's own."""


class Targets:
    """Addresses of one cluster. A failure moves the client on once, however many calls it was met by."""

    def __init__(self, text: str) -> None:
        """Several addresses stand with commas between. Raises ValueError for none."""
        parts = [text] if text.startswith(LISTS_OF_GRPC) else text.split(",")
        self._known = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
        if not self._known:
            raise ValueError(f"{text!r} names no server")
        self.current = self._known[0]

    def look_elsewhere(self, failure: VecmemClientError, target: str) -> None:
        """Talk to another node, where there is one, after a call to `target` was not served: to that which leads, if it was named."""
        if self.current != target:
            return
        owner = failure.metadata.get("owner") if isinstance(failure, MovedError) else None
        if owner and owner != target:
            if owner not in self._known:
                self._known.append(owner)
            self.current = owner
        else:
            self.current = self._known[(self._known.index(target) + 1) % len(self._known)]
