"""Connections: how many at a time, in all and from one address, and how long one may take to say what it wants.

uvicorn waits for ever for a request's head, and for a client to read its answer. Its protocol is watched here.
"""

import asyncio
import functools
import resource
from contextlib import suppress
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from service.settings import Settings

HEAD_S = 10.0  # from a connection's begin, or its last answer, to the end of the next request's head
UNREAD_S = 60.0  # how long a client may read nothing of an answer
BACKLOG = 128  # connections taken in one go, before any of them is counted
LINGER_S = 1.0  # before one that is turned away is told so: who comes again at once would come without end
LINGERING = 64  # that wait for it at a time
RESERVED = 256 + BACKLOG + LINGERING  # descriptors for the database, the queue, files and decoders
MOST_FILES = 2**16  # where the system allows any number
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 2\r\n"
    b"Connection: close\r\nContent-Length: 21\r\n\r\nToo many connections."
)


def server_options(settings: Settings) -> dict[str, Any]:
    """What uvicorn is started with: the keyword arguments of its Config beside the application."""
    return {
        "host": settings.host,
        "port": settings.port,
        "http": functools.partial(Connection, Bounds(settings, _most_files())),
        "ws": "none",
        "backlog": BACKLOG,
        "server_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": settings.trusted_proxies,
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": 10,
    }


def client_address(host: str | None) -> str:
    """Who a client is by its address; of IPv6 the first 64 bits, for whoever has one address has all that begin so."""
    if host is None:
        return "unknown"
    try:
        address = ip_address(host)
    except ValueError:
        return host[:64]
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(IPv6Network((address, 64), strict=False))
    return str(address)


class Bounds:
    """The connections of one server.

    Where there is no room, the one that has been silent the longest makes it: of the same address if that has its
    share, else of all. Where none is silent, the new one is turned away.
    """

    def __init__(self, settings: Settings, files: int) -> None:
        self._most = max(4, min(settings.max_connections, files - RESERVED))
        self._share = self._most // 4
        self._proxies = settings.trusted_proxies
        self._held: dict[str, set[Connection]] = {}
        self._silent: dict[Connection, None] = {}  # the one that is silent longest stands first
        self._lingering: dict[Connection, asyncio.TimerHandle] = {}  # the one turned away first stands first
        self._count = 0

    def admit(self, new: "Connection") -> bool:
        """Whether there is room for it, or was made."""
        of_address = self._held.get(new.address, set())
        full = self._count >= self._most
        if full or (len(of_address) >= self._share and not self._is_proxy(new.host)):
            leaving = next((held for held in self._silent if full or held in of_address), None)
            if leaving is None:
                return False
            self.leave(leaving)
            leaving.transport.close()
        self._held.setdefault(new.address, set()).add(new)
        self._count += 1
        return True

    def turn_away(self, new: "Connection") -> None:
        """Tell it, a little later, that there is no room."""
        self._lingering[new] = new.loop.call_later(LINGER_S, new.refuse)
        if len(self._lingering) > LINGERING:
            next(iter(self._lingering)).refuse()

    def leave(self, gone: "Connection") -> None:
        """It is closed, or about to be."""
        self._silent.pop(gone, None)
        if (told_later := self._lingering.pop(gone, None)) is not None:
            told_later.cancel()
        of_address = self._held.get(gone.address, set())
        if gone in of_address:
            of_address.remove(gone)
            self._count -= 1
            if not of_address:
                del self._held[gone.address]

    def note(self, connection: "Connection", *, silent: bool) -> None:
        """Whether a request is waited for."""
        self._silent.pop(connection, None)
        if silent:
            self._silent[connection] = None

    def _is_proxy(self, host: str) -> bool:
        for trusted in self._proxies.replace(",", " ").split():
            if trusted == "*":
                return True
            with suppress(ValueError):  # a host's name: uvicorn compares it with a socket's path
                if ip_address(host) in ip_network(trusted, strict=False):
                    return True
        return False


class Connection(H11Protocol):
    """uvicorn's, with ends to its patience."""

    def __init__(self, bounds: Bounds, **given: Any) -> None:
        super().__init__(**given)
        self.host = self.address = "unknown"
        self._bounds = bounds
        self._admitted = False
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.host = self.client[0] if self.client else "unknown"
        self.address = client_address(self.host)
        self._admitted = self._bounds.admit(self)
        if self._admitted:
            self._await_head()
        else:
            self._bounds.turn_away(self)

    def refuse(self) -> None:
        self._bounds.leave(self)
        self.transport.write(FULL)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._bounds.leave(self)
        if self._head is not None:
            self._head.cancel()
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._admitted:  # what it said is read, or its end would reach the client before the answer
            return self.transport.pause_reading()
        super().data_received(data)
        if self._at_work and self._head is not None:
            self._head.cancel()
            self._head = None
            self._bounds.note(self, silent=False)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # where the next request is here already, it has begun now
        if not self._at_work:
            self._await_head()
        self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    @property
    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
        self._head = self.loop.call_later(HEAD_S, self._give_up)
        self._bounds.note(self, silent=True)

    def _give_up(self) -> None:
        self._head = None
        self._watch_reader()
        self.transport.close()  # which sends what it has; where nobody reads it, the watch ends it

    def _watch_reader(self) -> None:
        self._stop_watching()
        if waiting := self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(UNREAD_S, self._end_unless_read, waiting)

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _end_unless_read(self, waited: int) -> None:
        if self.transport.get_write_buffer_size() >= waited:
            self.transport.abort()
        else:
            self._watch_reader()


def _most_files() -> int:
    """Raise the limit of open files to what is allowed; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    with suppress(ValueError, OSError):  # a system may allow less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
