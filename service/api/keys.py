"""API keys: how a token is made and known again, and whose request this is.

A token is `phalar_<id>_<secret>`. The id finds the row in the database, which holds the SHA-256 of the token; a slow
hash would only make guessing dearer, and 256 random bits cannot be guessed. Digests are compared in constant time. Keys
of the settings are digested too, so that timing tells neither their length nor their beginning.
"""

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import ClassVar

from indexer import ApiKey, ApiKeys
from model.errors import Told
from service.settings import Scope, Settings

SCOPES: tuple[Scope, ...] = ("read", "ingest", "admin")  # each includes those before it
_TOKEN = re.compile(r"phalar_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


class KeyMissing(Told):
    """A key is needed and the request carries none."""

    public = "This needs a key with the scope {scope!r}: Authorization: Bearer <key>."
    headers: ClassVar = {"WWW-Authenticate": 'Bearer realm="phalar"'}
    scope: str


class KeyUnknown(Told):
    public = "This key is unknown, was revoked or has expired."
    headers: ClassVar = {"WWW-Authenticate": 'Bearer realm="phalar", error="invalid_token"'}


class KeyRefused(Told):
    public = "This key does not grant the scope {scope!r}."
    scope: str

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": f'Bearer realm="phalar", error="insufficient_scope", scope="{self.scope}"'}


@dataclass(frozen=True)
class Caller:
    """Who asks. `owner` is charged for stems and requests; None: anybody, where no key is needed."""

    owner: str | None
    scope: Scope
    address: str = "unknown"

    @property
    def who(self) -> str:
        """Whose share of what is scarce it is: the key's, or, where there is none, the address's."""
        return f"key:{self.owner}" if self.owner is not None else f"address:{self.address}"

    @property
    def account(self) -> str:
        """What is charged for stems, and holds saved searches; all callers without a key share one."""
        return self.owner or "anybody"

    def check(self, needed: Scope) -> None:
        """Raise KeyRefused unless this caller's scope includes `needed`."""
        if SCOPES.index(self.scope) < SCOPES.index(needed):
            raise KeyRefused(needed)


def new_api_key(name: str, scope: Scope, expires_at: float | None) -> tuple[str, ApiKey]:
    """A token, which is shown once, and what the database keeps of it."""
    key_id = secrets.token_hex(6)
    token = f"phalar_{key_id}_{secrets.token_urlsafe(32)}"
    return token, ApiKey(key_id, _digest(token), name, scope, time.time(), expires_at)


class KeyRing:
    """The keys of the settings and those of the database.

    The database is asked at every request, by primary key: a key that was revoked has ended everywhere at that moment.
    """

    def __init__(self, settings: Settings, stored: ApiKeys) -> None:
        self._needed = settings.keys_needed
        self._configured = {scope: _digest(key) for scope, key in settings.keys.items()}
        self._stored = stored
        self._used_at: dict[str, float] = {}

    async def caller(self, token: str | None, needed: Scope) -> Caller:
        """Whose token this is; what it may do is not looked at.

        Raises:
            KeyMissing: keys are needed, and this request for the scope `needed` carries none.
            KeyUnknown: nobody's, or it was revoked or has expired.
        """
        if not self._needed:
            return Caller(None, "admin")
        if token is None:
            raise KeyMissing(needed)
        found = self._in_settings(token) or await self._in_database(token)
        if found is None:
            raise KeyUnknown
        return found

    async def flush_uses(self) -> None:
        """Record when keys were last used; called now and then, so that no request waits for it."""
        used_at, self._used_at = self._used_at, {}
        if used_at:
            await self._stored.note_uses(used_at)

    def _in_settings(self, token: str) -> Caller | None:
        digest, found = _digest(token), None
        for scope in SCOPES:  # every one is compared, whichever matches; the largest scope wins
            if scope in self._configured and secrets.compare_digest(self._configured[scope], digest):
                found = Caller(f"settings:{scope}", scope)
        return found

    async def _in_database(self, token: str) -> Caller | None:
        parts = _TOKEN.fullmatch(token)
        key = await self._stored.find(parts[1]) if parts else None
        if key is None or not secrets.compare_digest(key.digest, _digest(token)) or not key.works_at(time.time()):
            return None
        self._used_at[key.id] = time.time()
        return Caller(key.id, next(scope for scope in SCOPES if scope == key.scope))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
