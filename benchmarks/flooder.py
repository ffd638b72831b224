"""A stranger that floods: forged HELLOs in a member's name and forged JOINs, so many a second.

Run as `python benchmarks/flooder.py` by flood.py, until its stdin closes; then it prints how many it sent.
One raw connection and packets made beforehand, so that it takes as little of the machine as it can.
"""

import json
import os
import select
import socket
import ssl
import struct
import sys
import time

BATCH_S = 0.01
FORGED = 64  # different frames of each kind


def main(
    port: int, federation: str, victim: str, rate: int, user: str = "", password: str = "", ca: str = ""
) -> None:
    """Flood until stdin closes."""
    connection: socket.socket = socket.create_connection(("127.0.0.1", port))
    if ca:
        connection = ssl.create_default_context(cafile=ca).wrap_socket(
            connection, server_hostname="127.0.0.1"
        )
    connection.sendall(_connect(user, password))
    if connection.recv(4) != b"\x20\x02\x00\x00":
        raise SystemExit("the broker does not let the stranger in")
    packets = [packet for _ in range(FORGED) for packet in _forged(federation, victim)]
    batch = max(1, round(rate * BATCH_S))
    block = b"".join(packets[number % len(packets)] for number in range(batch))
    sent, began = 0, time.monotonic()
    while not select.select([sys.stdin], [], [], 0)[0]:
        due = began + sent / rate
        time.sleep(max(0.0, due - time.monotonic()))
        connection.sendall(block)
        sent += batch
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - began}))


def _connect(user: str, password: str) -> bytes:
    """MQTT 3.1.1 section 3.1: clean session, keep-alive 600 s."""
    flags = 0x02 | (0xC0 if user else 0)
    fields = [f"flood{os.getpid()}", *([user, password] if user else [])]
    body = b"\x00\x04MQTT\x04" + bytes([flags]) + b"\x02\x58"
    body += b"".join(struct.pack(">H", len(field)) + field.encode() for field in fields)
    return b"\x10" + bytes([len(body)]) + body


def _forged(federation: str, victim: str) -> list[bytes]:
    """A HELLO of a device, 77 bytes, and a JOIN, 110: each of the right shape and with a wrong mac."""
    hello = struct.pack(">BBH", 0x10, 0, 1) + os.urandom(73)
    join = struct.pack(">BBI", 0x30, 0, 1) + os.urandom(104)
    return [_publish(f"fi1/{federation}/a/{victim}", hello), _publish(f"fi1/{federation}/join", join)]


def _publish(topic: str, payload: bytes) -> bytes:
    """Section 3.3, QoS 0. All of ours are 128 to 16,383 bytes or below 128."""
    body = struct.pack(">H", len(topic)) + topic.encode() + payload
    size = len(body)
    length = bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])
    return b"\x30" + length + body


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
