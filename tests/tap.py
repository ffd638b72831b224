"""The operator of a broker who keeps everything: in between, with the certificate of the broker itself."""

import select
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

HOST = "127.0.0.1"
LOOK_S = 0.1  # for the end
PATIENCE_S = 10.0
PIECE_BYTES = 65_536


class Tap:
    """Listens where the broker is looked for, and hands on what comes, inside a `with`."""

    def __init__(self, port: int, broker_port: int, broker_folder: Path) -> None:
        self._broker_port = broker_port
        self._inwards = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._inwards.load_cert_chain(broker_folder / "server.pem", broker_folder / "server.key")
        self._onwards = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._onwards.check_hostname, self._onwards.verify_mode = False, ssl.CERT_NONE
        self._listener = socket.create_server((HOST, port))
        self._listener.settimeout(LOOK_S)
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._streams: list[bytearray] = []

    def __enter__(self) -> Self:
        self._begin(threading.Thread(target=self._listen))
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    @property
    def recorded(self) -> bytes:
        """Every byte of MQTT so far, one direction of one connection after the other."""
        return b"\n".join(map(bytes, self._streams))

    def _begin(self, thread: threading.Thread) -> None:
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while not self._is_over.is_set():
            with suppress(TimeoutError):
                plain, _ = self._listener.accept()
                self._begin(threading.Thread(target=self._hand_on, args=[plain]))

    def _hand_on(self, plain: socket.socket) -> None:
        """One connection, by one thread: OpenSSL's must not be read and written at once."""
        plain.settimeout(PATIENCE_S)
        with (
            suppress(OSError),
            plain,
            self._inwards.wrap_socket(plain, server_side=True) as member,
            socket.create_connection((HOST, self._broker_port), timeout=PATIENCE_S) as onwards,
            self._onwards.wrap_socket(onwards) as broker,
        ):
            self._exchange(member, broker)

    def _exchange(self, member: ssl.SSLSocket, broker: ssl.SSLSocket) -> None:
        ways = {member: (broker, bytearray()), broker: (member, bytearray())}
        self._streams += [stream for _, stream in ways.values()]
        for end in ways:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not self._is_over.is_set():
            ready = [end for end in ways if end.pending()] or select.select([*ways], [], [], LOOK_S)[0]
            for end in ready:
                other, stream = ways[end]
                end.settimeout(0)  # what came may be a ticket of TLS, and nothing to hand on
                try:
                    piece = end.recv(PIECE_BYTES)
                except ssl.SSLWantReadError:
                    continue
                finally:
                    end.settimeout(PATIENCE_S)
                if not piece:
                    return
                stream += piece
                other.sendall(piece)
