"""Answer each user so many times a second, and bill a large request as several.

Run it with a server at hand: `python rate_limiter.py [HOST:PORT]`. It prints:

    ada: allowed, allowed, allowed, wait 10 minutes
    bob: allowed
    a report costs 3 permits: not now
    all permits of a window were there again
"""

from __future__ import annotations

import sys

from vecmem_client import Client, RateLimitedError, RateLimiter, SlidingWindow, TokenBucket


def main(target: str) -> None:
    """Ask until it is too much."""
    with Client(target) as client:
        # Bursts of three, and one more each ten minutes. Everybody who uses the name shares the limit, on whatever machine.
        requests = RateLimiter(
            client, "example:requests", TokenBucket(capacity=3, refill_permits=1, interval_seconds=600)
        )
        for user in ("ada", "bob"):
            requests.reset(subject=user)

        answers = []
        for _ in range(4):
            decision = requests.acquire(subject="ada")
            minutes = round(decision.retry_after_seconds / 60)
            answers.append("allowed" if decision.allowed else f"wait {minutes} minutes")
        print("ada:", ", ".join(answers))

        print("bob:", "allowed" if requests.acquire(subject="bob").allowed else "denied")
        try:
            requests.acquire_or_raise(3, subject="bob")
        except RateLimitedError:
            print("a report costs 3 permits: not now")

        # Never more than five within any tenth of a second; `wait` comes back when it is allowed.
        window = RateLimiter(client, "example:window", SlidingWindow(limit=5, window_seconds=0.1))
        for _ in range(12):
            window.wait()
        window.wait(5)
        print("all permits of a window were there again")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7700")
