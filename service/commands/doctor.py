"""`phalar doctor`: what this machine has, and what will be slow on it."""

import typer

from service.commands.console import FAILED, read_settings
from service.commands.threads import waiting_threads_sleep


def doctor() -> None:
    """Tell what this machine has and what will be slow: device, driver, kernel, memory, disk, soundfonts, FFmpeg.

    Exit code 1 where the settings ask for a device that cannot be used.
    """
    waiting_threads_sleep()
    from service.local.doctor import as_lines, examine

    findings = examine(read_settings())
    print("\n".join(as_lines(findings)))
    if any(finding.what == "PHALAR_DEVICE" and finding.drawback for finding in findings):
        raise typer.Exit(FAILED)
