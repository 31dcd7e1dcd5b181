"""Keep the sessions of a web application, gone half an hour after they were last used.

Run it with a server at hand: `python session_store.py [HOST:PORT]`. It prints:

    {'user': 'Ada'}
    {'user': 'Ada', 'cart': ['tea', 'milk']}
    signed out: None
    a made-up cookie: None
"""

from __future__ import annotations

import sys

from vecmem_client import Client, SessionStore


def main(target: str) -> None:
    """Sign in, shop, sign out."""
    with Client(target) as client:
        sessions = SessionStore(client, "example:session:", ttl_seconds=1_800)

        # Signing in: the id goes into a cookie.
        session_id = sessions.create({"user": "Ada"})

        # Each request: reading the session moves its end on.
        print(sessions.get(session_id))
        sessions.update(session_id, {"cart": ["tea"]})
        session = sessions.get(session_id)
        assert session is not None
        sessions.update(session_id, {"cart": [*session["cart"], "milk"]})
        print(sessions.get(session_id))

        sessions.delete(session_id)
        print("signed out:", sessions.get(session_id))
        print("a made-up cookie:", sessions.get("no such session"))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7700")
