"""Payloads and times between Python and the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

PayloadLike = Mapping[str, Any] | bytes | str
"""A payload: a mapping of JSON types, or a JSON object as text or as UTF-8 bytes, which is sent as it is."""


def encode_payload(payload: PayloadLike) -> bytes:
    """Return a payload as JSON bytes.

    Besides JSON's own types a mapping may hold datetimes with a time zone (sent as RFC 3339, so that time ranges find
    them) and numpy scalars and arrays. Raises TypeError for other types, ValueError for NaN, infinities and
    datetimes without a zone.
    """
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, str):
        return payload.encode()
    if not isinstance(payload, Mapping):
        raise TypeError(f"a payload is a mapping or JSON text, not {type(payload).__name__}")
    if type(payload) is not dict:
        payload = dict(payload)
    return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_encode).encode()


def aware(moment: datetime, name: str) -> datetime:
    """Return `moment`; raise TypeError unless it is a datetime, ValueError unless it says its time zone."""
    if not isinstance(moment, datetime):
        raise TypeError(f"{name} is a datetime, not {type(moment).__name__}")
    if moment.tzinfo is None:
        raise ValueError(f"{name} is {moment.isoformat()} without a time zone: say which, for instance UTC")
    return moment


def decode_time(timestamp: Timestamp) -> datetime:
    """Return a time in UTC, to the microsecond."""
    return timestamp.ToDatetime(tzinfo=UTC)


def decode_float32(value: float) -> float:
    """Return the shortest decimal that is the same float32, which is what its author wrote: 0.97, not 0.97000002861."""
    return float(str(np.float32(value)))


def _encode(value: object) -> Any:
    if isinstance(value, datetime):
        return aware(value, "a time in a payload").isoformat()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a payload holds JSON types, not {type(value).__name__}")
