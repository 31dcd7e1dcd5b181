"""The nodes that a client knows, and the one that it talks to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmem_client._errors import MovedError

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        self._given = tuple(self._known)
        self.current = self._known[0]

    @property
    def are_several(self) -> bool:
        """Whether the caller has named more than one."""
        return len(self._given) > 1

    @property
    def known(self) -> tuple[str, ...]:
        """All addresses, those that were given first."""
        return tuple(self._known)

    def replace_learned(self, addresses: Iterable[str]) -> list[str]:
        """Know these, and those that were given, and no others; returns the others."""
        known = list(dict.fromkeys((*self._given, *addresses)))
        gone = [address for address in self._known if address not in known]
        self._known = known
        if self.current in gone:
            self.current = known[0]
        return gone

    def look_elsewhere(self, failure: VecmemClientError, target: str) -> None:
        """Talk to another node, where there is one, after a call to `target` was not served: to that which leads, if it was named."""
        if self.current != target:
            return
        owner = failure.metadata.get("owner") if isinstance(failure, MovedError) else None
        known = self._known  # another thread may replace it
        if owner and owner != target:
            if owner not in known:
                self._known = [*known, owner]
            self.current = owner
        else:
            place = known.index(target) if target in known else -1
            self.current = known[(place + 1) % len(known)]
