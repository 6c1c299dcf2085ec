"""`phalar api`: the HTTP interface alone."""

from service.commands.console import FAILED, fail, log_to_stderr, read_settings
from service.commands.threads import waiting_threads_sleep


def api() -> None:
    """Only the HTTP interface, in this process; `serve` runs this, and so does a container."""
    waiting_threads_sleep()
    import uvicorn

    from service.api.app import create_app
    from service.commands.threads import keep_numpy_on_one_thread
    from service.settings import InsecureBind

    log_to_stderr("api")
    keep_numpy_on_one_thread()
    settings = read_settings()
    try:
        application = create_app(settings)
    except InsecureBind as error:
        fail(str(error), FAILED)
    uvicorn.run(
        application,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
    )
