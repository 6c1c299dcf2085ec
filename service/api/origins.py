"""Whose request a browser may bring here: the names that this service goes by, and pages of other sites.

A page of any site can send requests to whatever this machine reaches, and by a name of its own (DNS rebinding) also
read the answers. Where keys are needed such a request has none. Where none are, these rules keep it out.
"""

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from service.settings import Settings, is_loopback

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/@\[\]]+))(?::\d*)?", re.IGNORECASE)
OUR_OWN = ("same-origin", "none")  # of Sec-Fetch-Site; `none`: typed, or from a bookmark


class UnknownHost(Exception):
    """The request is for a name that is not this service's."""

    public = "This service does not go by that name. PHALAR_ALLOWED_HOSTS lists those it answers to."


class CrossSite(Exception):
    """A page of another site sent the request, without a key."""

    public = "A page of another site may not ask this without a key."


class Origins:
    """Tells requests of our own page, of programs and of links from those that another site makes a browser send."""

    def __init__(self, settings: Settings) -> None:
        self._names = tuple(name.lower() for name in settings.allowed_hosts.replace(",", " ").split())
        self._any_host = settings.keys_needed and not self._names

    def check(self, method: str, headers: Headers) -> None:
        """Raise UnknownHost or CrossSite."""
        host = headers.get("host", "")
        if not self._any_host and not self._ours(host):
            raise UnknownHost
        if "authorization" not in headers and not self._same_site(method, host, headers):
            raise CrossSite

    def _ours(self, host: str) -> bool:
        parts = _HOST.fullmatch(host)
        if parts is None:
            return False
        name = (parts[1] or parts[2]).rstrip(".").lower()
        return is_loopback(name) or name.endswith(".localhost") or self._named(name)

    def _named(self, name: str) -> bool:
        return any(name == known or (known[:2] == "*." and name.endswith(known[1:])) for known in self._names)

    def _same_site(self, method: str, host: str, headers: Headers) -> bool:
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:
            followed = (
                method in ("GET", "HEAD")
                and headers.get("sec-fetch-mode") == "navigate"
                and headers.get("sec-fetch-dest") not in ("object", "embed")
            )
            return site in OUR_OWN or followed
        if origin is None:
            return True  # no browser: those say one or the other
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.netloc.lower() == host.lower() or self._named((parts.hostname or "").lower())
