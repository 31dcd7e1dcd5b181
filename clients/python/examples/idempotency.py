"""Charge a card once, however often the request comes.

Run it with a server at hand: `python idempotency.py [HOST:PORT]`. It prints:

    charged 12.50
    the request came again: receipt 1
    five at a time: receipt 2, charged once
    other work by the same name is refused
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sys

from vecmem_client import AsyncClient, AsyncIdempotency, WorkMismatchError


async def main(target: str) -> None:
    """Charge, and charge again."""
    receipts: list[str] = []

    async def charge() -> str:
        await asyncio.sleep(0.05)
        receipts.append("12.50")
        return f"receipt {len(receipts)}"

    async with AsyncClient(target) as client:
        once = AsyncIdempotency(client, "example:charge:", lease_seconds=10, retention_seconds=3_600)
        request = hashlib.sha256(b"12.50 from card 4711").digest()

        # The name comes with the request, so that a repeat has the same.
        name = secrets.token_hex(8)
        await once.run_once(name, charge, fingerprint=request)
        print("charged", receipts[-1])
        again = await once.run_once(name, charge, fingerprint=request)
        print("the request came again:", again.decode())

        # Those that come while it is done wait for the result.
        name = secrets.token_hex(8)
        answers = await asyncio.gather(
            *(once.run_once(name, charge, fingerprint=request, wait_seconds=30) for _ in range(5))
        )
        [answer] = set(answers)
        print(f"five at a time: {answer.decode()}, charged {'once' if len(receipts) == 2 else 'more than once'}")

        try:
            await once.run_once(name, charge, fingerprint=b"99.00")
        except WorkMismatchError:
            print("other work by the same name is refused")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7700"))
