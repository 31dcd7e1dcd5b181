"""A leaderboard: points come in, and each player sees the others around.

Run it beside a server: `vecmem serve`, and then `python leaderboard.py [HOST:PORT]`.
"""

from __future__ import annotations

import asyncio
import sys

from vecmem_client import AsyncClient, AsyncLeaderboard
from vecmem_client import keys as key_operations


async def main(address: str) -> None:
    """Play a little."""
    async with AsyncClient(address) as client:
        await client.run(key_operations.delete(["example:board"]))
        board = AsyncLeaderboard(client, "example:board", ranking="competition")
        await board.add({"ada": 120, "bob": 90, "cyd": 90, "dan": 70, "eve": 55})
        # Many at once travel together, and each is counted once, whatever becomes of connections.
        await asyncio.gather(*(board.increment("dan", 5) for _ in range(4)))

        for best in await board.top(3):
            print(f"{best.rank + 1}. {best.member.decode()} {best.score:g}")

        around = await board.around("dan", before=1, after=1)
        print("around dan:", ", ".join(f"{each.rank + 1}. {each.member.decode()}" for each in around.members))

        asked = await board.rank_of_score(100)
        print(f"100 points would be rank {asked.rank + 1} of {await board.count()}")
        await client.run(key_operations.delete(["example:board"]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7700"))
