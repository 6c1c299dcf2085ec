"""`phalar api`: the HTTP interface alone."""

import gc
import socket
from contextlib import suppress
from typing import Annotated

import typer

from service.commands.console import FAILED, begin_process, fail
from service.commands.threads import waiting_threads_sleep


def api(
    door: Annotated[int | None, typer.Option(help="Descriptor of the socket to answer on; set by `serve`.")] = None,
) -> None:
    """Only the HTTP interface, in this process; `serve` runs this, and so does a container."""
    waiting_threads_sleep()
    import uvicorn

    from service.api.app import create_app
    from service.api.connections import server_options
    from service.settings import InsecureBind

    settings = begin_process()
    settings.make_data_folder()
    try:
        application = create_app(settings)
    except InsecureBind as error:
        fail(str(error), FAILED)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            # What was loaded stays: looking through it for garbage would stop the event loop for 0.2 s each time.
            gc.collect()
            gc.freeze()

    server = Server(uvicorn.Config(application, **server_options(settings)))
    with suppress(KeyboardInterrupt):  # it has stopped in good order by then
        server.run(sockets=None if door is None else [socket.socket(fileno=door)])
    if not server.started:
        raise typer.Exit(FAILED)
