"""A gRPC call by hand over HTTP/2 (RFC 9113, gRPC over HTTP2), to send what a gRPC library keeps to itself.

Headers go out as HPACK literals without indexing (RFC 7541, 6.2.2).
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

from hpack import Decoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
ACK = END_STREAM = 1
END_HEADERS = 4


@dataclass(frozen=True)
class Outcome:
    """How a call ended: its headers and trailers, the bytes of all data, and whether the server reset the stream."""

    headers: dict[str, str]
    data: bytes
    was_reset: bool


def call(
    address: str,
    method: str,
    message: bytes,
    *,
    timeout: str = "60S",
    wait_seconds: float = 0.0,
    encoding: str = "",
    accept_encoding: str = "",
) -> Outcome:
    """Make a unary call with a `grpc-timeout` header; the message follows its headers after `wait_seconds`.

    With an `encoding` the message is one compressed so; `accept_encoding` lists those that the reply may have.
    """
    host, _, port = address.rpartition(":")
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": address,
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-timeout": timeout,
    }
    if encoding:
        headers["grpc-encoding"] = encoding
    if accept_encoding:
        headers["grpc-accept-encoding"] = accept_encoding
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(PREFACE + _frame(SETTINGS, 0, 0))
        connection.sendall(_frame(HEADERS, END_HEADERS, 1, b"".join(_literal(*item) for item in headers.items())))
        time.sleep(wait_seconds)
        connection.sendall(_frame(DATA, END_STREAM, 1, struct.pack(">BI", bool(encoding), len(message)) + message))
        return _read_outcome(connection)


def _read_outcome(connection: socket.socket) -> Outcome:
    headers: dict[str, str] = {}
    data = b""
    decoder = Decoder()
    with connection.makefile("rb") as incoming:
        while True:
            start = incoming.read(9)
            if len(start) < 9:
                raise ConnectionError("the server closed the connection")
            length = int.from_bytes(start[:3], "big")
            kind, flags = start[3], start[4]
            payload = incoming.read(length)
            if kind == SETTINGS and not flags & ACK:
                connection.sendall(_frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                connection.sendall(_frame(PING, ACK, 0, payload))
            elif kind == RST_STREAM:
                return Outcome(headers, data, was_reset=True)
            elif kind == HEADERS:
                headers.update(decoder.decode(payload))
            elif kind == DATA:
                data += payload
            if kind in {HEADERS, DATA} and flags & END_STREAM:
                return Outcome(headers, data, was_reset=False)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
