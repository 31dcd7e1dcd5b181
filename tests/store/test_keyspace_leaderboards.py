"""Pages of leaderboards and ranks of scores: what they tell, what is refused, and that redis-server agrees."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.keyspace import check_refusal, do, refusal
from tests.support.redis_server import redis_client  # noqa: F401  (a fixture)
from vecmem import limits
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.v1 import sorted_sets_pb2 as api

COMPETITION = api.SORTED_SET_RANKING_COMPETITION
BOARD = {b"ada": 30.0, b"bob": 20.0, b"cyd": 20.0, b"dan": 20.0, b"eve": 10.0}


def board(scores: dict[bytes, float] = BOARD) -> Keyspace:
    keyspace = Keyspace()
    if scores:
        members = [api.ScoredMember(member=member, score=score) for member, score in scores.items()]
        do(keyspace, "add_sorted_set_members", key=b"z", members=members)
    return keyspace


def page(keyspace: Keyspace, **fields: Any) -> tuple[int | None, list[tuple[bytes, int]]]:
    """Rank of what was named, and the members with their ranks."""
    found = do(keyspace, "get_sorted_set_page", key=b"z", **fields)
    assert found.HasField("rank") == found.HasField("score")
    rank = found.rank if found.HasField("rank") else None
    return rank, [(each.member, each.rank) for each in found.members]


def test_a_page_has_the_members_around_one() -> None:
    keyspace = board()
    around = {"member": b"cyd", "count_before": 1, "count_after": 2}
    assert page(keyspace, **around) == (2, [(b"bob", 1), (b"cyd", 2), (b"dan", 3), (b"ada", 4)])
    assert page(keyspace, **around, reverse=True) == (2, [(b"dan", 1), (b"cyd", 2), (b"bob", 3), (b"eve", 4)])
    assert page(keyspace, member=b"ada", reverse=True) == (0, [(b"ada", 0)])
    assert page(keyspace, member=b"ada", reverse=True, count_before=9_999)[1] == [(b"ada", 0)]
    found = do(keyspace, "get_sorted_set_page", key=b"z", member=b"eve", reverse=True, count_before=1)
    assert (found.rank, found.score, found.member_count) == (4, 10.0, 5)
    assert [(each.member, each.score) for each in found.members] == [(b"bob", 20.0), (b"eve", 10.0)]


def test_equal_scores_share_a_rank_where_that_is_wanted() -> None:
    keyspace = board()
    whole = {"member": b"cyd", "count_before": 9, "count_after": 9, "ranking": COMPETITION}
    assert page(keyspace, **whole, reverse=True) == (
        1,
        [(b"ada", 0), (b"dan", 1), (b"cyd", 1), (b"bob", 1), (b"eve", 4)],
    )
    assert page(keyspace, **whole) == (1, [(b"eve", 0), (b"bob", 1), (b"cyd", 1), (b"dan", 1), (b"ada", 4)])
    middle = {"member": b"bob", "count_after": 1, "ranking": COMPETITION, "reverse": True}
    assert page(keyspace, **middle) == (1, [(b"bob", 1), (b"eve", 4)]), (
        "the first of the page is not the first of its score"
    )


def test_a_page_around_a_score_needs_no_member() -> None:
    keyspace = board()
    assert page(keyspace, score=15, reverse=True, count_before=1, count_after=1) == (4, [(b"bob", 3), (b"eve", 4)])
    assert page(keyspace, score=20, reverse=True, count_before=1, count_after=1) == (1, [(b"ada", 0), (b"dan", 1)])
    assert page(keyspace, score=20, count_before=1, count_after=1) == (1, [(b"eve", 0), (b"bob", 1)])
    assert page(keyspace, score=99, reverse=True, count_after=1) == (0, [(b"ada", 0)])
    assert page(keyspace, score=-5, reverse=True, count_before=1, count_after=7) == (5, [(b"eve", 4)])


def test_a_page_around_a_place_is_one_of_many() -> None:
    keyspace = board()
    assert page(keyspace, place=0, reverse=True, count_after=2) == (None, [(b"ada", 0), (b"dan", 1)])
    assert page(keyspace, place=2, reverse=True, count_after=2) == (None, [(b"cyd", 2), (b"bob", 3)])
    shared = page(keyspace, place=2, reverse=True, count_after=9, ranking=COMPETITION)
    assert shared == (None, [(b"cyd", 1), (b"bob", 1), (b"eve", 4)])
    assert page(keyspace, place=2**64 - 1, count_before=1, count_after=9) == (None, [(b"ada", 4)])
    assert page(board({}), place=3, count_after=9) == (None, [])


def test_who_is_not_there_has_no_page() -> None:
    for keyspace in (board(), board({})):
        found = do(keyspace, "get_sorted_set_page", key=b"z", member=b"nobody", count_after=5)
        assert (found.HasField("rank"), found.HasField("score"), len(found.members)) == (False, False, 0)
        assert found.member_count == (5 if keyspace.values else 0)
    assert page(board({}), score=1, count_before=5) == (0, [])


def test_scores_have_ranks() -> None:
    keyspace = board()

    def ranks(reverse: bool) -> list[tuple[int, int]]:
        scores = [float("inf"), 30, 25, 20, -0.0, float("-inf")]
        found = do(keyspace, "get_sorted_set_score_ranks", key=b"z", scores=scores, reverse=reverse)
        assert found.member_count == 5
        return [(each.rank, each.equal_count) for each in found.ranks]

    assert ranks(reverse=True) == [(0, 0), (0, 1), (1, 0), (1, 3), (5, 0), (5, 0)]
    assert ranks(reverse=False) == [(5, 0), (4, 1), (4, 0), (1, 3), (0, 0), (0, 0)]
    absent = do(Keyspace(), "get_sorted_set_score_ranks", key=b"z", scores=[1.0, 2.0])
    assert [(each.rank, each.equal_count) for each in absent.ranks] == [(0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("kind", "fields", "refused"),
    [
        ("get_sorted_set_page", {"key": b"", "member": b"a"}, ("INVALID_KEY", "key")),
        ("get_sorted_set_page", {"key": b"z"}, ("INVALID_ARGUMENT", "center")),
        ("get_sorted_set_page", {"key": b"z", "member": b"x" * 1_025}, ("LIMIT_EXCEEDED", "member")),
        ("get_sorted_set_page", {"key": b"z", "score": float("nan")}, ("INVALID_ARGUMENT", "score")),
        (
            "get_sorted_set_page",
            {"key": b"z", "member": b"a", "count_before": 10_000},
            ("LIMIT_EXCEEDED", "count_before"),
        ),
        (
            "get_sorted_set_page",
            {"key": b"z", "member": b"a", "count_before": 5_000, "count_after": 5_000},
            ("LIMIT_EXCEEDED", "count_after"),
        ),
        ("get_sorted_set_page", {"key": b"z", "member": b"a", "ranking": 2}, ("INVALID_ARGUMENT", "ranking")),
        ("get_sorted_set_score_ranks", {"key": b"", "scores": [1]}, ("INVALID_KEY", "key")),
        ("get_sorted_set_score_ranks", {"key": b"z"}, ("INVALID_ARGUMENT", "scores")),
        ("get_sorted_set_score_ranks", {"key": b"z", "scores": [1] * 1_025}, ("LIMIT_EXCEEDED", "scores")),
        ("get_sorted_set_score_ranks", {"key": b"z", "scores": [1, float("nan")]}, ("INVALID_ARGUMENT", "scores[1]")),
    ],
)
def test_what_is_wrong_in_itself_is_refused(kind: str, fields: dict[str, Any], refused: tuple[str, str]) -> None:
    assert check_refusal(kind, **fields) == refused


@pytest.mark.parametrize(
    ("kind", "fields"), [("get_sorted_set_page", {"member": b"a"}), ("get_sorted_set_score_ranks", {"scores": [1]})]
)
def test_a_value_of_another_type_is_refused(kind: str, fields: dict[str, Any]) -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"z", value=b"v")
    assert refusal(keyspace, kind, key=b"z", **fields) == ("WRONG_TYPE", "key")


def test_the_largest_page_is_answered() -> None:
    keyspace = Keyspace()
    for start in range(0, 11_000, 1_000):
        members = [api.ScoredMember(member=b"%05d" % number, score=number) for number in range(start, start + 1_000)]
        do(keyspace, "add_sorted_set_members", key=b"z", members=members)
    rank, members = page(keyspace, member=b"05500", count_before=5_000, count_after=4_999)
    assert (rank, len(members)) == (5_500, limits.SORTED_SET_MEMBERS_PER_REPLY_MAX)


MEMBERS = st.sampled_from([b"a", b"b", b"c", b"\xff", b"", b"aa"]) | st.binary(max_size=2)
SCORES = st.sampled_from([-1.5, -0.0, 0.0, 1.0, 2.0, float("inf"), float("-inf")])


@settings(max_examples=100)
@given(
    scores=st.dictionaries(MEMBERS, SCORES, max_size=12),
    member=MEMBERS,
    score=SCORES,
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    reverse=st.booleans(),
)
def test_pages_and_ranks_are_those_of_redis(
    redis_client: redis.Redis,  # noqa: F811
    scores: dict[bytes, float],
    member: bytes,
    score: float,
    before: int,
    after: int,
    reverse: bool,
) -> None:
    redis_client.delete("z")
    if scores:
        redis_client.zadd("z", scores)
    keyspace = board(scores)
    rank = redis_client.zrevrank("z", member) if reverse else redis_client.zrank("z", member)
    in_order = redis_client.zrange("z", 0, -1, desc=reverse)
    found = page(keyspace, member=member, count_before=before, count_after=after, reverse=reverse)
    if rank is None:
        assert found == (None, [])
    else:
        start = max(0, rank - before)
        listed = redis_client.zrange("z", start, rank + after, desc=reverse)
        assert found == (rank, [(each, start + place) for place, each in enumerate(listed)])
        better = better_than(redis_client, scores[member], reverse)
        assert page(keyspace, member=member, reverse=reverse, ranking=COMPETITION) == (better, [(member, better)])
    better = better_than(redis_client, score, reverse)
    ranks = do(keyspace, "get_sorted_set_score_ranks", key=b"z", scores=[score], reverse=reverse).ranks
    assert [(each.rank, each.equal_count) for each in ranks] == [(better, redis_client.zcount("z", score, score))]
    start = max(0, better - before)
    around = page(keyspace, score=score, count_before=before, count_after=after, reverse=reverse)
    assert around == (better, [(each, start + place) for place, each in enumerate(in_order[start : better + after])])
    paged = page(keyspace, place=before, count_after=after, reverse=reverse)[1]
    assert paged == [(each, before + place) for place, each in enumerate(in_order[before : before + after])]
    whole = page(keyspace, score=score, count_before=50, count_after=50, reverse=reverse, ranking=COMPETITION)[1]
    assert whole == [(each, better_than(redis_client, scores[each], reverse)) for each in in_order]


def better_than(client: redis.Redis, score: float, reverse: bool) -> Any:
    return client.zcount("z", f"({score}", "+inf") if reverse else client.zcount("z", "-inf", f"({score}")
