"""A proxy in front of a server, to lose what is sent either way and to cut connections."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Forwards bytes to the server. `cut` ends connections.

    While `mute` is set, what the server answers is swallowed, while `deaf` is, what clients send; `swallowed_bytes` of it.
    """

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.mute = threading.Event()
        self.deaf = threading.Event()
        self.swallowed_bytes = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._pairs.append((client, server))
                for source, target, swallow in ((client, server, self.deaf), (server, client, self.mute)):
                    thread = threading.Thread(target=self._forward, args=(source, target, swallow))
                    self._threads.append(thread)
                    thread.start()

    def _forward(self, source: socket.socket, target: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):  # the other direction has ended the connection
            while data := source.recv(65536):
                if swallow.is_set():
                    self.swallowed_bytes += len(data)
                else:
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for pair in self._pairs:
            for end in pair:
                end.close()
