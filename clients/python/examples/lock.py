"""Let one of many processes do something, and keep out what a slow one writes too late.

Run it with a server at hand: `python lock.py [HOST:PORT]`. It prints:

    the first one holds the lock
    the second one does not get it
    the second one holds it now, with a greater token
    a write with the token of the first one is refused
"""

from __future__ import annotations

import sys

from vecmem_client import Client, Lock, LockHeldError


class Storage:
    """What the lock protects: it refuses a token that is smaller than the greatest it has seen."""

    def __init__(self) -> None:
        self.greatest_token = 0

    def write(self, token: int) -> bool:
        """Return whether it was taken."""
        if token < self.greatest_token:
            return False
        self.greatest_token = token
        return True


def main(target: str) -> None:
    """Hold the lock, twice."""
    storage = Storage()
    with Client(target) as client:
        # The lease is renewed beside the work. Should this process die, the lock is free when the lease has ended.
        with Lock(client, "example:report", lease_seconds=10) as first:
            print("the first one holds the lock")
            storage.write(first.fencing_token)
            try:
                Lock(client, "example:report", wait_seconds=0).acquire()
            except LockHeldError:
                print("the second one does not get it")
            # Raises LockLostError where the lease has ended.
            first.check()
            old_token = first.fencing_token

        with Lock(client, "example:report") as second:
            assert second.fencing_token > old_token
            print("the second one holds it now, with a greater token")
            storage.write(second.fencing_token)

        if not storage.write(old_token):
            print("a write with the token of the first one is refused")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7700")
