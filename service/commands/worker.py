"""`phalar worker`: one worker."""

from typing import Annotated

import typer

from service.commands.console import FAILED, begin_process, fail
from service.commands.threads import waiting_threads_sleep


def worker(
    slot: Annotated[int | None, typer.Option(help="This worker's number on this machine; set by `serve`.")] = None,
) -> None:
    """Only a worker: embeds what the queue holds. Start more of them, on other machines too, to embed faster."""
    waiting_threads_sleep()
    import asyncio

    from model.checkpoints import CheckpointError
    from service.api.errors import problem
    from service.local.supervisor import DEVICE_LOST
    from service.work.device import DeviceLost
    from service.work.process import run_worker

    try:
        asyncio.run(run_worker(begin_process(), problem, slot))
    except CheckpointError as error:
        fail(str(error), FAILED)
    except DeviceLost as error:
        fail(str(error), DEVICE_LOST)
