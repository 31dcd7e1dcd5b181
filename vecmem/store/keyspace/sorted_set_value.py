"""A sorted set: the score of each member, and the members in order."""

from __future__ import annotations

from itertools import islice
from math import isnan
from operator import lt
from typing import TYPE_CHECKING, Self

import numpy as np
from sortedcontainers import SortedList

from vecmem import limits
from vecmem.store.keyspace.container import Container
from vecmem.store.keyspace.packing import pack, unpack
from vecmem.store.keyspace.sorting import copy_sorted
from vecmem.v1 import keys_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MEMBER_BYTES = 185
"""About what a member takes beyond its own bytes: a place in the table, a pair, a double and a place in the order."""
_SCORE_BYTES = 8
_BEHIND = b"\xff" * (limits.MEMBER_BYTES_MAX + 1)
"""Greater than any member."""


class SortedSetValue(Container):
    """Scores by member, and pairs of score and member in order, in lists of about a thousand: any rank and any bound takes microseconds."""

    __slots__ = ("order", "scores")

    TYPE = keys_pb2.KEY_TYPE_SORTED_SET
    NAME = "sorted set"

    def __init__(self, scores: dict[bytes, float] | None = None) -> None:
        super().__init__()
        self.scores = {} if scores is None else scores
        self.order: SortedList[tuple[float, bytes]] = SortedList(
            (score, member) for member, score in self.scores.items()
        )
        self.size_bytes += _size_bytes(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def put(self, member: bytes, score: float) -> None:
        """Add a member, or give it another score."""
        # -0.0 and 0.0 are equal, so it must not depend on the one that came first which of them is kept.
        score += 0.0
        old = self.scores.get(member)
        if old is None:
            self.size_bytes += MEMBER_BYTES + len(member)
        else:
            self.order.remove((old, member))
        self.scores[member] = score
        self.order.add((score, member))

    def remove(self, member: bytes) -> None:
        """Remove a member that is there."""
        self.order.remove((self.scores.pop(member), member))
        self.size_bytes -= MEMBER_BYTES + len(member)

    def remove_ranks(self, start: int, stop: int) -> None:
        """Remove the members from one rank up to and without another one, 0 <= start <= stop <= length."""
        removed = [member for _, member in self.order.islice(start, stop)]
        del self.order[start:stop]
        self.size_bytes -= _size_bytes(removed)
        if self.order:
            for member in removed:
                del self.scores[member]
        else:
            self.scores = {}

    def rank(self, member: bytes) -> int:
        """The rank of a member that is there."""
        rank: int = self.order.bisect_left((self.scores[member], member))
        return rank

    def rank_of_score(self, score: float, *, behind: bool) -> int:
        """How many members have a lower score, or with `behind` no higher one."""
        rank: int = self.order.bisect_left((score, _BEHIND) if behind else (score,))
        return rank

    def rank_of_member(self, member: bytes, *, behind: bool) -> int:
        """How many members come before one that may be missing, or with `behind` not after it, where all have the same score."""
        pair = (self.order[0][0], member)
        rank: int = self.order.bisect_right(pair) if behind else self.order.bisect_left(pair)
        return rank

    def has_mixed_scores(self) -> bool:
        """Whether the members have different scores."""
        return bool(self.order) and self.order[0][0] != self.order[-1][0]

    def pairs(self, start: int, stop: int, *, reverse: bool = False) -> Iterator[tuple[float, bytes]]:
        """Score and member from one rank up to and without another one, 0 <= start <= stop <= length."""
        pairs: Iterator[tuple[float, bytes]] = self.order.islice(start, stop, reverse=reverse)
        return pairs

    def dump(self) -> bytes:
        """See Container."""
        scores = np.fromiter((score for score, _ in self.order), dtype="<f8", count=len(self))
        return pack([*(member for _, member in self.order), scores.tobytes()])

    def copy(self) -> Self:
        """See Container."""
        copied = type(self)()
        copied.scores = self.scores.copy()
        copied.order = copy_sorted(self.order)
        copied.size_bytes, copied.version = self.size_bytes, self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """See Container."""
        blobs = unpack(content)
        if not blobs:
            raise ValueError("it has no scores")
        *members, packed_scores = blobs
        if len(packed_scores) != len(members) * _SCORE_BYTES:
            raise ValueError(f"{len(packed_scores)} bytes of scores for {len(members)} members")
        scores = np.frombuffer(packed_scores, dtype="<f8").tolist()
        pairs = list(zip(scores, members, strict=True))
        if not all(map(lt, pairs, islice(pairs, 1, None))) or any(map(isnan, scores)):
            raise ValueError("its members are not in order")
        loaded = cls(dict(zip(members, scores, strict=True)))
        if len(loaded) != len(members):
            raise ValueError("it has a member twice")
        return loaded


def _size_bytes(members: Iterable[bytes]) -> int:
    return sum(MEMBER_BYTES + len(member) for member in members)
