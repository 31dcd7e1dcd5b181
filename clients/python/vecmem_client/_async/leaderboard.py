"""A sorted set as a leaderboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmem_client import sorted_sets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from vecmem_client._async.client import AsyncClient
    from vecmem_client._operations import BytesLike
    from vecmem_client.sorted_sets import Added, RankedMember, RankedPage, Ranking, ScoreRank


class AsyncLeaderboard:
    """Members with scores under one key, the best first: those of the highest scores, or with `ascending` of the lowest.

    Ranks count from 0. Members of equal scores have ranks of their own, in order of their bytes, backwards unless `ascending`; with the
    ranking "competition" they share one: 0, 1, 1, 3. All methods raise VecmemClientError when a call fails.
    """

    def __init__(
        self, client: AsyncClient, name: BytesLike, *, ascending: bool = False, ranking: Ranking = "ordinal"
    ) -> None:
        self.name = name
        self._client = client
        self._reverse = not ascending
        self._ranking: Ranking = ranking

    async def add(self, scores: Mapping[BytesLike, float], *, keep_best: bool = False) -> Added:
        """Give 1 to 1,024 members scores; `keep_best`: only where that is better than what a member has."""
        better: sorted_sets.ScoreCondition = "greater" if self._reverse else "less"
        return await self._client.run(sorted_sets.add(self.name, scores, score_condition=better if keep_best else None))

    async def increment(self, member: BytesLike, delta: float = 1.0) -> float:
        """Add to the score of a member, who has 0 before the first time; returns the new score."""
        score = await self._client.run(sorted_sets.increment(self.name, member, delta))
        assert score is not None
        return score

    async def remove(self, members: Iterable[BytesLike]) -> int:
        """Remove 1 to 1,024 members; returns how many there were."""
        return await self._client.run(sorted_sets.remove(self.name, members))

    async def top(self, count: int = 10) -> list[RankedMember]:
        """Return the best members, 10,000 at most."""
        return (await self.page(0, count)).members

    async def page(self, number: int = 0, size: int = 10) -> RankedPage:
        """Return one page of all members, pages of this size being counted from 0."""
        return await self._around(place=number * size, after=size)

    async def pages(self, size: int = 100) -> AsyncIterator[RankedPage]:
        """Yield page after page to the end. Each is as of its own moment, so who moves meanwhile may be missed or come twice."""
        number = 0
        while True:
            page = await self.page(number, size)
            if page.members:
                yield page
            number += 1
            if number * size >= page.member_count:
                return

    async def around(self, member: BytesLike, *, before: int = 2, after: int = 2) -> RankedPage:
        """Return a member amid those before and behind, at one moment; without members where it is not there."""
        return await self._around(member, before=before, after=after)

    async def around_score(self, score: float, *, before: int = 2, after: int = 3) -> RankedPage:
        """Return the members just better than a score, and those who have it and the next ones."""
        return await self._around(score=score, before=before, after=after)

    async def rank(self, member: BytesLike) -> RankedMember | None:
        """Return the rank of a member with its score; None: it is not there."""
        found = (await self._around(member)).members
        return found[0] if found else None

    async def rank_of_score(self, score: float) -> ScoreRank:
        """Return how many members have a better score, and how many this one."""
        return (await self._client.run(sorted_sets.score_ranks(self.name, [score], reverse=self._reverse)))[0]

    async def count(self) -> int:
        """Return how many members there are."""
        return await self._client.run(sorted_sets.count(self.name))

    async def _around(
        self,
        member: BytesLike | None = None,
        *,
        score: float | None = None,
        place: int | None = None,
        before: int = 0,
        after: int = 0,
    ) -> RankedPage:
        return await self._client.run(
            sorted_sets.around(
                self.name,
                member,
                score=score,
                place=place,
                before=before,
                after=after,
                reverse=self._reverse,
                ranking=self._ranking,
            )
        )
