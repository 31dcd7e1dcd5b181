"""Leaderboards through both clients: operations, the class, and the example."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vecmem_client import AsyncClient, AsyncLeaderboard, Client, Leaderboard, WrongTypeError, sorted_sets, strings
from vecmem_client.sorted_sets import RankedMember, ScoreRank

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCORES = {"ada": 30.0, "bob": 20.0, "cyd": 20.0, "dan": 10.0}


@pytest.fixture
def name(collection_name: str) -> str:
    """A key that no other test uses."""
    return collection_name


def board_of(client: Any, name: str, **options: Any) -> Any:
    """A leaderboard with the asynchronous face, of either client."""
    if hasattr(client, "sync_client"):
        return type(client)(Leaderboard(client.sync_client, name, **options))
    return AsyncLeaderboard(client, name, **options)


def ranked(members: list[RankedMember]) -> list[tuple[bytes, int]]:
    return [(each.member, each.rank) for each in members]


async def test_operations_build_and_parse(client, name):
    await client.run(sorted_sets.add(name, SCORES))
    page = await client.run(sorted_sets.around(name, "bob", before=1, after=1, reverse=True))
    assert (page.rank, page.score, page.member_count) == (2, 20.0, 4)
    assert page.members == [RankedMember(b"cyd", 20.0, 1), RankedMember(b"bob", 20.0, 2), RankedMember(b"dan", 10.0, 3)]
    page = await client.run(sorted_sets.around(name, score=0, after=1))
    assert (page.rank, page.score, ranked(page.members)) == (0, 0.0, [(b"dan", 0)])
    page = await client.run(sorted_sets.around(name, place=0, after=2))
    assert (page.rank, page.score, ranked(page.members)) == (None, None, [(b"dan", 0), (b"bob", 1)])
    page = await client.run(sorted_sets.around(name, "", before=1))
    assert (page.rank, page.members, page.member_count) == (None, [], 4)
    assert await client.run(sorted_sets.score_ranks(name, [20, 15], reverse=True)) == [ScoreRank(1, 2), ScoreRank(3, 0)]
    for wrong in ({}, {"member": "a", "score": 1.0}, {"score": 0.0, "place": 0}):
        with pytest.raises(ValueError, match="one of member, score and place"):
            sorted_sets.around(name, **wrong)
    with pytest.raises(KeyError):
        sorted_sets.around(name, "a", ranking="dense")


async def test_the_best_come_first(client, name):
    board = board_of(client, name)
    assert (await board.add(SCORES)).added_count == 4
    assert ranked(await board.top(2)) == [(b"ada", 0), (b"cyd", 1)]
    assert await board.rank("bob") == RankedMember(b"bob", 20.0, 2)
    assert await board.rank("nobody") is None
    assert ranked((await board.around("bob", before=1, after=9)).members) == [(b"cyd", 1), (b"bob", 2), (b"dan", 3)]
    assert ranked((await board.around_score(15, before=1, after=1)).members) == [(b"bob", 2), (b"dan", 3)]
    assert await board.rank_of_score(20) == ScoreRank(1, 2)
    assert await board.increment("dan", 50) == 60
    assert await board.increment("eve") == 1
    assert ranked((await board.page(1, 2)).members) == [(b"cyd", 2), (b"bob", 3)]
    assert (await board.add({"ada": 5, "bob": 99}, keep_best=True)).changed_count == 1
    assert (await board.rank("ada")).score == 30
    assert await board.remove(["eve", "nobody"]) == 1
    assert await board.count() == 4


async def test_equal_scores_may_share_a_rank_and_the_lowest_may_be_best(client, name):
    board = board_of(client, name, ranking="competition")
    await board.add(SCORES)
    assert ranked(await board.top()) == [(b"ada", 0), (b"cyd", 1), (b"bob", 1), (b"dan", 3)]
    assert (await board.rank("bob")).rank == 1
    laps = board_of(client, name, ascending=True)
    assert ranked(await laps.top(3)) == [(b"dan", 0), (b"bob", 1), (b"cyd", 2)]
    assert (await laps.add({"dan": 50, "ada": 1}, keep_best=True)).changed_count == 1
    assert ranked(await laps.top(2)) == [(b"ada", 0), (b"dan", 1)]


async def test_a_key_of_another_type_is_refused(client, name):
    await client.run(strings.set(name, "text"))
    with pytest.raises(WrongTypeError):
        await board_of(client, name).top()


async def test_pages_come_one_after_the_other(server, name):
    async with AsyncClient(server.address) as client:
        board = AsyncLeaderboard(client, name)
        assert [page async for page in board.pages(2)] == []
        await board.add({**SCORES, "eve": 5})
        pages = [ranked(page.members) async for page in board.pages(2)]
        assert pages == [[(b"ada", 0), (b"cyd", 1)], [(b"bob", 2), (b"dan", 3)], [(b"eve", 4)]]
    with Client(server.address) as client:
        assert [ranked(page.members) for page in Leaderboard(client, name).pages(2)] == pages
        assert len(list(Leaderboard(client, name).pages(5))) == 1


def test_the_example_runs(server):
    command = [sys.executable, str(EXAMPLES / "leaderboard.py"), server.address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "1. ada 120",
        "2. dan 90",
        "2. cyd 90",
        "around dan: 1. ada, 2. dan, 2. cyd",
        "100 points would be rank 2 of 5",
    ]
