"""`phalar api`: the HTTP interface alone."""

from service.commands.console import FAILED, fail, log_to_stderr
from service.commands.threads import waiting_threads_sleep


def api() -> None:
    """Only the HTTP interface, in this process; `serve` runs this, and so does a container."""
    waiting_threads_sleep()
    import uvicorn

    from service.api.app import create_app
    from service.api.connections import server_options
    from service.commands.threads import keep_numpy_on_one_thread
    from service.settings import InsecureBind, Settings

    log_to_stderr("api")
    keep_numpy_on_one_thread()
    settings = Settings()
    settings.keep_private()
    try:
        application = create_app(settings)
    except InsecureBind as error:
        fail(str(error), FAILED)
    uvicorn.run(application, **server_options(settings))
