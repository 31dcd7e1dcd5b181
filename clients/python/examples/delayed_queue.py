"""Work that waits in a queue: producers, a worker that fails now and then, and what is left aside in the end.

Run it beside a server: `vecmem serve`, and then `python delayed_queue.py [HOST:PORT]`.
"""

from __future__ import annotations

import sys

from vecmem_client import Client, Queue


class SendingError(Exception):
    """A message could not be sent."""


def send(address: str, *, delivery_count: int) -> None:
    """Stand for work that may fail: one address fails the first time, one always."""
    if address == "nobody@example.com" or (address == "busy@example.com" and delivery_count == 1):
        raise SendingError(address)
    print(f"sent to {address}")


def main(address: str) -> None:
    """Fill a queue and empty it."""
    with Client(address) as client:
        mails = Queue(client, "example:mails", visibility_timeout_seconds=30, max_deliveries=2)
        mails.purge()
        mails.put_many(["ada@example.com", "nobody@example.com", "busy@example.com"])
        mails.put("later@example.com", delay_seconds=0.2)

        # At the end of the block the message is acknowledged. Where the block raises it is released: here it is due again at once. A worker
        # that dies settles nothing, and its message is due again after the visibility timeout.
        for delivery in mails.deliveries():
            try:
                with delivery as message:
                    send(message.body.decode(), delivery_count=message.delivery_count)
            except SendingError as error:
                print(f"failed: {error}")
            left = mails.describe()
            if left.dead_count and not left.ready_count + left.delayed_count + left.in_flight_count:
                break

        for message in mails.peek("dead").messages:
            print(f"given up after {message.delivery_count} deliveries: {message.body.decode()}")
        mails.purge()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7700")
