"""Who may do what, and how often: API keys by scope, rates, and how a route gets hold of the backend."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.backend import Backend
from service.api.connections import client_address
from service.api.keys import Caller, KeyMissing, KeyUnknown
from service.settings import Scope

_bearer = HTTPBearer(auto_error=False, description="needed where the service was given keys")


def backend(request: Request) -> Backend:
    """What the app's lifespan opened."""
    found: Backend = request.app.state.backend
    return found


TheBackend = Annotated[Backend, Depends(backend)]


class Guard:
    """A dependency that lets a request through when its key grants `scope` and its rate allows; see GuardedRoute.

    Raises:
        KeyMissing: keys are needed and none was sent.
        KeyUnknown, KeyRefused: this one does not exist any more, or is not enough.
        TooManyRequests: come back later.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(
        self, request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Caller:
        admitted: tuple[Guard, Caller] | None = getattr(request.state, "admitted", None)
        return admitted[1] if admitted and admitted[0] is self else await self.admit(request)

    async def admit(self, request: Request) -> Caller:
        """Decide by the request's head alone."""
        services, credentials = backend(request), await _bearer(request)
        try:
            caller = await services.keys.caller(credentials.credentials if credentials else None, self.scope)
        except (KeyMissing, KeyUnknown):  # guesses count too
            await limit(request, self.scope, None)
            raise
        await limit(request, self.scope, caller.owner)
        caller.check(self.scope)
        caller = replace(caller, address=_address(request))
        request.state.admitted = (self, caller)
        return caller


Reader = Annotated[Caller, Depends(Guard("read"))]
"""Whoever may search."""


async def limit(request: Request, scope: Scope, owner: str | None) -> None:
    """Count a request of this owner, or, where there is none, of its address. Raises TooManyRequests."""
    who = f"key:{owner}" if owner is not None else f"address:{_address(request)}"
    request.state.allowance = await backend(request).rates.take(scope, who)


async def limit_by_address(request: Request) -> None:
    """A dependency for endpoints that need no key and cost something."""
    await limit(request, "read", None)


class GuardedRoute(APIRoute):
    """A route whose Guard decides before the body is read: nobody without a key fills our disk with an upload.

    FastAPI reads the body first and asks dependencies afterwards.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        guards = [found.call for found in self.dependant.dependencies if isinstance(found.call, Guard)]

        async def guarded(request: Request) -> Response:
            for guard in guards:
                await guard.admit(request)
            return await handler(request)

        return guarded


def _address(request: Request) -> str:
    return client_address(request.client.host if request.client else None)
