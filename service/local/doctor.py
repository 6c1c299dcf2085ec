"""`phalar doctor`: what this machine has, and what will be slow or missing on it."""

import importlib.util
import os
import shutil
from dataclasses import dataclass

from model.axial_kernel import fastest_kernel
from model.device import DeviceUnavailable, facts_of, open_device, why_no_card
from model.training.render import SOUNDFONTS
from service.settings import Settings, writable

LITTLE_DISK, LITTLE_MEMORY = 5 * 2**30, 4 * 2**30  # bytes


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and, where that is a drawback, which."""

    what: str
    found: str
    drawback: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; nothing is changed, and nothing raised."""
    return [_device(settings), _card(), _kernel(), _processors(), _memory(), _disk(settings), _soundfonts(), _ffmpeg()]


def _device(settings: Settings) -> Finding:
    try:
        return Finding("PHALAR_DEVICE", f"{settings.device}: {facts_of(open_device(settings.device))}")
    except DeviceUnavailable as error:
        return Finding("PHALAR_DEVICE", settings.device, f"workers will not start: {error.reason}")


def _card() -> Finding:
    if (reason := why_no_card()) is not None:
        return Finding("card", reason, "training is slow: `paper` needs a card, `default` takes hours on two cores")
    return Finding("card", str(facts_of(open_device("cuda"))))


def _kernel() -> Finding:
    kernel = fastest_kernel()
    if kernel is None:
        slow = "the CPU takes about twice as long: no C++ compiler when this was installed, or no build for it"
        return Finding("CPU kernel", "none", slow)
    return Finding("CPU kernel", kernel.name)


def _processors() -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("processors", str(count), "a search and an ingest share them" if count < 2 else "")


def _memory() -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    short = "a worker, an API and their decoders need about 4 GiB" if memory < LITTLE_MEMORY else ""
    return Finding("memory", f"{memory / 2**30:.1f} GiB", short)


def _disk(settings: Settings) -> Finding:
    place = settings.data_folder
    try:
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
    except OSError as error:  # a folder on the way that this user may not enter, say
        return Finding("free disk", f"none at {place}", f"`phalar serve` will not start: {error.strerror}")
    drawback = "uploads and indexes soon fill it" if free < LITTLE_DISK else ""
    if not place.is_dir():
        drawback = "`phalar serve` will not start: that is no folder"
    elif not writable(place):
        drawback = "`phalar serve` will not start: nothing may be written there"
    return Finding("free disk", f"{free / 2**30:.1f} GiB at {place}", drawback)


def _soundfonts() -> Finding:
    there = [path for path in SOUNDFONTS if path.is_file()]
    if not there:
        return Finding("soundfonts", "none", "`phalar train render` has nothing to play: see docs/training.md")
    player = importlib.util.find_spec("fluidsynth") is not None
    missing = "" if player else "`phalar train render` needs pip install 'phalar-retrieval[train]'"
    return Finding("soundfonts", ", ".join(path.name for path in there), missing)


def _ffmpeg() -> Finding:
    import av

    program = shutil.which("ffmpeg")
    return Finding("FFmpeg", f"{av.ffmpeg_version_info} in PyAV; program: {program or 'none, not needed'}")


def as_lines(findings: list[Finding]) -> list[str]:
    """One line each, drawbacks below what they belong to."""
    width = max(len(finding.what) for finding in findings)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.what:<{width}}  {finding.found}")
        if finding.drawback:
            lines.append(f"{'':<{width}}  ! {finding.drawback}")
    return lines
