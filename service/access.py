"""Who may do what: API keys by scope, and how a route gets hold of the backend."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.backend import Backend
from service.errors import KeyMissing, KeyRefused
from service.settings import Scope, key_allows

_bearer = HTTPBearer(auto_error=False, description="needed where the service was given keys")


def backend(request: Request) -> Backend:
    """What the app's lifespan opened."""
    found: Backend = request.app.state.backend
    return found


TheBackend = Annotated[Backend, Depends(backend)]


def require(scope: Scope) -> Callable[..., None]:
    """A dependency that lets a request through when its key grants `scope`.

    Raises:
        KeyMissing: keys are configured and none was sent.
        KeyRefused: this one is not enough.
    """

    def check(
        services: TheBackend, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> None:
        keys = services.settings.keys
        if keys and credentials is None:
            raise KeyMissing(f"This needs a key with the scope {scope!r}: Authorization: Bearer <key>.", scope=scope)
        if not key_allows(keys, credentials.credentials if credentials else None, scope):
            raise KeyRefused(f"This key does not grant the scope {scope!r}.", scope=scope)

    return check
