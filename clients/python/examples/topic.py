"""A topic: everybody who reads gets all messages, and the consumers of a group share them.

Run it beside a server: `vecmem serve`, and then `python topic.py [HOST:PORT]`. It prints:

    read: one tea for table 4
    read: two coffees for table 7
    read: the bill for table 7
    ada: one tea
    bob: two coffees
    bob: the bill
"""

from __future__ import annotations

import sys

from vecmem_client import Client, Topic, keys


def main(address: str) -> None:
    """Publish, read, and consume."""
    with Client(address) as client:
        client.run(keys.delete(["example:orders"]))
        orders = Topic(client, "example:orders", max_length=1_000)
        orders.publish("one tea", {"table": "4"})
        orders.publish_many(["two coffees", "the bill"], {"table": "7"})

        # A reader gets everything that is there, and, without `until_end`, what is published later.
        for message in orders.messages(until_end=True):
            print(f"read: {message.body.decode()} for table {message.headers[b'table'].decode()}")

        # Each message comes to one of the group's consumers. At the end of the block it is acknowledged; where the block raises it stays
        # pending, and comes again.
        with next(orders.consume("kitchen", "ada")) as message:
            print(f"ada: {message.body.decode()}")
        for delivery in orders.consume("kitchen", "bob", until_empty=True):
            with delivery as message:
                print(f"bob: {message.body.decode()}")
        client.run(keys.delete(["example:orders"]))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7700")
