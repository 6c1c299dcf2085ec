"""What an attacker sends, each attack in a process of its own: `python -m benchmarks.attacks NAME URL FOLDER`.

It stands for a machine of its own, and must not take the service's processors for what it computes itself. So it
imports nothing that takes long, sends what `abuse.py` has laid into FOLDER, and has the lowest priority. It says
`ready`, begins with the first line on stdin, ends with stdin, and says how many requests or connections it made.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

ADDRESS = "127.0.0.2"
BOUNDARY = "a-boundary-of-a-form"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
PATIENCE_S = 180.0
REFUSED_S = 0.05  # how soon whoever was cut off comes again

Send = Callable[..., bytes]
"""Of a method, a path, a body and headers: sends them and returns the answer's body."""


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    """A multipart body of fields and files: name, the file's name or None, content."""
    pieces = []
    for name, file, content in parts:
        named = f'name="{name}"' if file is None else f'name="{name}"; filename="{file}"'
        pieces += [f"--{BOUNDARY}\r\nContent-Disposition: form-data; {named}\r\n\r\n".encode(), content, b"\r\n"]
    return b"".join([*pieces, f"--{BOUNDARY}--\r\n".encode()])


class Attacker:
    """One client, which goes on for ever."""

    def __init__(self, url: str, folder: Path) -> None:
        self.made = 0
        self._host, self._port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self._folder = folder

    def audio(self, name: str) -> bytes:
        return (self._folder / f"{name}.flac").read_bytes()

    def repeat(self, once: Callable[[Send], object]) -> None:
        """Again and again over one connection, over a new one where the service ends it."""
        while True:
            connection = HTTPConnection(self._host, self._port, PATIENCE_S, (ADDRESS, 0))

            def send(
                method: str,
                path: str,
                body: bytes = b"",
                headers: Mapping[str, str] | None = None,
                connection: HTTPConnection = connection,
            ) -> bytes:
                self.made += 1
                connection.request(method, path, body or None, headers or {})
                return connection.getresponse().read()

            with suppress(HTTPException, OSError, ValueError):  # refused, or cut off
                while True:
                    once(send)
            connection.close()
            time.sleep(REFUSED_S)

    def connect(self) -> socket.socket:
        self.made += 1
        return socket.create_connection((self._host, self._port), 10, (ADDRESS, 0))

    def hold(self, begun: bytes) -> None:
        """Hundreds of connections that say no more than this."""
        held: list[socket.socket] = []
        while True:
            with suppress(OSError):
                held.append(connection := self.connect())
                connection.sendall(begun)
            if len(held) >= 1100:
                while held:
                    held.pop().close()
            time.sleep(0.005)


def other_sites(attacker: Attacker) -> None:
    def once(send: Send) -> None:
        send("DELETE", "/stems/x", b"", {"Host": "evil.example"})
        send("POST", "/admin/reindex", b"", {"Origin": "http://evil.example"})

    attacker.repeat(once)


def copies(attacker: Attacker) -> None:
    """Thirty small files of twenty minutes each, no two alike: each has its own bytes for the samples' MD5."""
    audio, number = attacker.audio("constant"), count(1)

    def unlike() -> bytes:
        return audio[:26] + next(number).to_bytes(8, "big") + os.urandom(8) + audio[42:]

    def once(send: Send) -> None:
        send("POST", "/stems", form(*(("files", "c.flac", unlike()) for _ in range(30))), FORM)

    attacker.repeat(once)


def dense(attacker: Attacker) -> None:
    """A few bytes that cost much to decode."""
    body = form(("files", "d.flac", attacker.audio("dense")))
    attacker.repeat(lambda send: send("POST", "/stems", body, FORM))


def often(attacker: Attacker) -> None:
    """A mix of one stem, named 32 times."""

    def once(send: Send) -> None:
        (stem,) = json.loads(send("GET", "/stems?limit=1"))["stems"]
        send("POST", "/retrieve", form(*[("stem_id", None, stem["id"].encode())] * 32), FORM)

    attacker.repeat(once)


def abandoned(attacker: Attacker) -> None:
    """Searches sent and left."""
    body = form(("file", "m.flac", attacker.audio("clip")))
    head = f"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: {FORM['Content-Type']}\r\n\r\n"
    while True:
        sent = []
        for _ in range(8):
            with suppress(OSError):
                sent.append(connection := attacker.connect())
                connection.sendall(head.encode() + body)
        time.sleep(0.3)
        for connection in sent:
            connection.close()


def methods(attacker: Attacker) -> None:
    attacker.repeat(lambda send: send("M" + os.urandom(6000).hex(), "/stems"))


def large_json(attacker: Attacker) -> None:
    body = json.dumps({f"unknown {n}": n for n in range(200_000)}).encode()
    attacker.repeat(lambda send: send("PATCH", "/stems/x", body, {"Content-Type": "application/json"}))


def long_metadata(attacker: Attacker) -> None:
    said = json.dumps([{f"unknown {n}": 1 for n in range(50_000)}]).encode()
    body = form(("files", "m.flac", b"x"), ("metadata", None, said))
    attacker.repeat(lambda send: send("POST", "/stems", body, FORM))


def empty_files(attacker: Attacker) -> None:
    body = form(*[("files", "e", b"")] * 1000)
    attacker.repeat(lambda send: send("POST", "/stems", body, FORM))


HALF = "POST /stems HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n"
HALF += "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
ATTACKS: dict[str, Callable[[Attacker], None]] = {
    "names of other hosts, pages of other sites": other_sites,
    "thirty files of twenty minutes in a few kilobytes": copies,
    "eight channels at 655 kHz": dense,
    "one stem 32 times": often,
    "searches sent and abandoned": abandoned,
    "methods of 12 KB": methods,
    "connections without a head": lambda attacker: attacker.hold(b""),
    "half a body": lambda attacker: attacker.hold(HALF.encode()),
    "large JSON": large_json,
    "long metadata": long_metadata,
    "a thousand empty files": empty_files,
}


def main() -> None:
    name, url, folder = sys.argv[1:]
    os.nice(19)
    attacker = Attacker(url, Path(folder))
    print("ready", flush=True)
    sys.stdin.readline()
    threading.Thread(target=ATTACKS[name], args=(attacker,), daemon=True).start()
    sys.stdin.read()
    print(attacker.made, flush=True)
    os._exit(0)  # whatever it still waits for


if __name__ == "__main__":
    main()
