"""What values other than strings have in common: an object under a key that operations change in place.

A container that has lost its last item is removed with its key by whoever took the item. Iteration is in an order that the records alone
decide, so that a replay gives the same: dictionaries and lists, never `set`, whose order differs from process to process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

CONTAINER_BYTES = 200
"""About what an empty container takes."""


class Container(ABC):
    """Made with the first version of its key."""

    __slots__ = ("size_bytes", "version")

    TYPE: ClassVar[int]
    """Its KeyType, in the API and on disk."""
    NAME: ClassVar[str]
    """For messages."""

    def __init__(self) -> None:
        self.version = 0
        self.size_bytes = CONTAINER_BYTES
        """About what it takes. Methods that add or take items keep it."""

    @abstractmethod
    def __len__(self) -> int:
        """How many items it has."""

    def count_at(self, now_unix_ms: int) -> int:  # noqa: ARG002  (of no matter here)
        """How many items it has for who looks at a time: items may expire by themselves."""
        return len(self)

    @property
    def ends_at_unix_ms(self) -> int:
        """When the last of its items has expired: from then on its key is gone. 0: some never do."""
        return 0

    @abstractmethod
    def dump(self) -> bytes:
        """All items, for a checkpoint: equal contents, in the same order where there is one that matters, give equal bytes."""

    def copy(self) -> Self:
        """One with equal contents and version that changes by itself."""
        copied = type(self).load(self.dump())
        copied.version = self.version
        return copied

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Container)
            and (self.TYPE, self.version) == (other.TYPE, other.version)
            and self.dump() == other.dump()
        )

    __hash__ = None  # type: ignore[assignment]  # it changes

    @classmethod
    @abstractmethod
    def load(cls, content: bytes) -> Self:
        """The container that was dumped, but for its version. Raises ValueError."""
