"""A gRPC call by hand over HTTP/2 (RFC 9113, gRPC over HTTP2), to send what a gRPC library keeps to itself.

Headers go out as HPACK literals without indexing (RFC 7541, 6.2.2).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from dataclasses import dataclass
from typing import Self

from hpack import Decoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
SETTINGS_MAX_CONCURRENT_STREAMS, SETTINGS_INITIAL_WINDOW_SIZE = 3, 4
ACK = END_STREAM = 1
END_HEADERS = 4
SILENCE_SECONDS_MAX = 30.0


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
    with Connection(address) as connection:
        connection.begin(1, method, timeout=timeout, encoding=encoding, accept_encoding=accept_encoding)
        time.sleep(wait_seconds)
        connection.send(DATA, END_STREAM, 1, framed(message, compressed=bool(encoding)))
        return connection.outcome(1)


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    """A message as gRPC frames it."""
    return struct.pack(">BI", compressed, len(message)) + message


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Connection:
    """One connection, on which a test sends what it likes. `window_bytes`: of each stream, for what the server sends."""

    def __init__(self, address: str, *, window_bytes: int = 65_535, answers_pings: bool = True) -> None:
        self.address = address
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=SILENCE_SECONDS_MAX)
        self._incoming = self.socket.makefile("rb")
        self._decoder = Decoder()
        self._answers_pings = answers_pings
        window = struct.pack(">HI", SETTINGS_INITIAL_WINDOW_SIZE, window_bytes)
        self.socket.sendall(PREFACE)
        self.send(SETTINGS, 0, 0, window)

    def begin(
        self, stream: int, method: str, *, timeout: str = "60S", encoding: str = "", accept_encoding: str = ""
    ) -> None:
        """Send the headers of a call on a stream, which is odd and higher than those before."""
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": self.address,
            "te": "trailers",
            "content-type": "application/grpc",
            "grpc-timeout": timeout,
        }
        if encoding:
            headers["grpc-encoding"] = encoding
        if accept_encoding:
            headers["grpc-accept-encoding"] = accept_encoding
        self.send(HEADERS, END_HEADERS, stream, b"".join(_literal(*item) for item in headers.items()))

    def call(self, stream: int, method: str, message: bytes) -> None:
        """Send a whole unary call. The message must fit into one frame."""
        self.begin(stream, method)
        self.send(DATA, END_STREAM, stream, framed(message))

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """Send one frame."""
        self.socket.sendall(_frame(kind, flags, stream, payload))

    def read(self) -> Frame:
        """The next frame; settings and pings are acknowledged. Raises ConnectionError at the end."""
        start = self._incoming.read(9)
        length = int.from_bytes(start[:3], "big")
        payload = self._incoming.read(length)
        if len(start) < 9 or len(payload) < length:
            raise ConnectionError("the server closed the connection")
        frame = Frame(start[3], start[4], int.from_bytes(start[5:9], "big"), payload)
        if not frame.flags & ACK and (frame.kind == SETTINGS or (frame.kind == PING and self._answers_pings)):
            self.send(frame.kind, ACK, 0, payload if frame.kind == PING else b"")
        return frame

    def outcome(self, stream: int) -> Outcome:
        """Read until a call has ended."""
        headers: dict[str, str] = {}
        data = b""
        while True:
            frame = self.read()
            if frame.kind == HEADERS:
                fields = self._decoder.decode(frame.payload)
                if frame.stream == stream:
                    headers.update(fields)
            if frame.stream != stream:
                continue
            if frame.kind == RST_STREAM:
                return Outcome(headers, data, was_reset=True)
            if frame.kind == DATA:
                data += frame.payload
                grown = struct.pack(">I", max(len(frame.payload), 1))
                self.send(WINDOW_UPDATE, 0, 0, grown)
                self.send(WINDOW_UPDATE, 0, stream, grown)
            if frame.kind in {HEADERS, DATA} and frame.flags & END_STREAM:
                return Outcome(headers, data, was_reset=False)

    def wait_until_closed(self) -> None:
        """Read on until the server has closed the connection. Raises TimeoutError when it is silent and does not."""
        with contextlib.suppress(ConnectionError):
            while True:
                self.read()

    def reset(self) -> None:
        """Close the connection with RST instead of FIN, as when the process is killed with data unread."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._incoming.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
