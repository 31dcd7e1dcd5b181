# Generated from _async/session_store.py by scripts/generate_sync.py: change that one and run the script.
"""Sessions: small documents that go when nobody has used them for a while."""

from __future__ import annotations

import json
import re
import secrets
from typing import TYPE_CHECKING, Any

from vecmem_client import keys, strings
from vecmem_client._errors import VecmemClientError, VersionConflictError
from vecmem_client._operations import BytesLike, as_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vecmem_client._sync.client import Client

_ID_BYTES = 32
_ID = re.compile(r"[A-Za-z0-9_-]{43}")
_ATTEMPTS_MAX = 100


class SessionStore:
    """Sessions under ids that cannot be guessed, each a JSON object, gone `ttl_seconds` after it was last used.

    Using is creating, getting, updating and touching. A session is one string under the key `prefix` and its id, so that its data and
    its expiry change together. An id that was never given out here, whatever a cookie says, is one of no session.
    """

    def __init__(self, client: Client, prefix: BytesLike = b"session:", ttl_seconds: float = 1_800.0) -> None:
        self._client = client
        self._prefix = as_bytes(prefix)
        self._ttl_seconds = ttl_seconds

    def create(self, data: Mapping[str, Any] | None = None) -> str:
        """Begin a session with some data; returns its id. Raises TypeError or ValueError for what JSON cannot say."""
        session_id = secrets.token_urlsafe(_ID_BYTES)
        self._client.run(strings.set(self._key(session_id), _encode(data or {}), ttl_seconds=self._ttl_seconds))
        return session_id

    def get(self, session_id: str, *, touch: bool = True) -> dict[str, Any] | None:
        """Return the data; None: there is no such session. `touch` False: that is no use of it, and only a read for the server."""
        if not _known(session_id):
            return None
        key = self._key(session_id)
        if not touch:
            return _decode(self._client.run(strings.get(key)))
        [content, touched] = self._client.pipeline([strings.get(key), keys.expire(key, ttl_seconds=self._ttl_seconds)])
        for result in (content, touched):
            if isinstance(result, VecmemClientError):
                raise result
        return _decode(content)

    def update(
        self, session_id: str, changes: Mapping[str, Any], *, remove: Iterable[str] = ()
    ) -> dict[str, Any] | None:
        """Set some entries of the data, and remove others; returns all of it. None: there is no such session, and none is made.

        Updates at the same time are all done, one after the other. Raises TypeError or ValueError for what JSON cannot say.
        """
        if not _known(session_id):
            return None
        key = self._key(session_id)
        removed = set(remove)
        for _ in range(_ATTEMPTS_MAX):
            found = self._client.run(strings.get_versioned(key))
            if found is None:
                return None
            data = {name: value for name, value in json.loads(found.value).items() if name not in removed}
            data.update(changes)
            content = _encode(data)
            written = self._client.run(
                strings.set(key, content, ttl_seconds=self._ttl_seconds, expected_version=found.version)
            )
            if written.written:
                return _decode(content)
        raise VersionConflictError(f"others have changed the session before each of {_ATTEMPTS_MAX} attempts")

    def touch(self, session_id: str) -> bool:
        """Use a session; returns whether it is there."""
        if not _known(session_id):
            return False
        return self._client.run(keys.expire(self._key(session_id), ttl_seconds=self._ttl_seconds))

    def delete(self, session_id: str) -> bool:
        """End a session; returns whether it was there."""
        return _known(session_id) and self._client.run(keys.delete([self._key(session_id)])) == 1

    def _key(self, session_id: str) -> bytes:
        return self._prefix + session_id.encode()


def _known(session_id: str) -> bool:
    """Whether it may be an id; others are not even asked for."""
    return _ID.fullmatch(session_id) is not None


def _encode(data: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _decode(content: bytes | None) -> dict[str, Any] | None:
    return None if content is None else dict(json.loads(content))
