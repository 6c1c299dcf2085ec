"""A mix and the stems placed in it -> one ZIP that a DAW opens."""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import BinaryIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from indexer import Stem
from model.audio.said import transposed_key
from service.api.downloads import fitted_name, safe_name
from service.api.fitted import Fitted
from service.api.ingest import for_decoder
from service.api.orders import BadPlaced, ExportIn, PlacedIn, placed_of
from service.settings import Settings
from service.work.answers import FittedAudio
from service.work.encoding import FittedTooLong, Order
from service.work.fitted import KeptFile, NoRoom
from service.work.fitting import Fitting
from service.work.session import Session, SessionTrack, dawproject_xml, metadata_xml, reaper_project, session_text
from service.work.turns import Turns
from service.work.uploads import Decoder

MOST_CLIPS = 8
"""A session's tracks last, all together, no longer than so many of the longest clips: its files lie on our disk."""


@dataclass
class Export:
    """Makes sessions, as many at a time as there are decoders for uploads."""

    settings: Settings
    decoder: Decoder
    fitted: Fitted
    _turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self._turns = Turns(self.settings.decoders)

    async def archive(self, wanted: ExportIn, who: str) -> tuple[KeptFile, str]:
        """The ZIP, which is on no disk any more once nobody holds it, and what it is called.

        Raises:
            BadPlaced: `placed` is no list of placed stems, or one begins after the mix has ended.
            StemNotFound: one of them is not, or no longer, in the catalog.
            AudioError: the mix cannot be used, a stem has nothing where it is wanted, or all is too long.
            BlobMissing, BlobStoreUnavailable, NoRoom.
        """
        placed = placed_of(wanted.placed)
        stems = [(await self.fitted.catalog.stem(one.stem_id), one) for one in placed]
        name = safe_name((wanted.file.filename or "mix").replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0])
        try:
            async with self._turns.turn(who):
                archive = await self._written(wanted, name, stems)
        except OSError as error:
            raise NoRoom(str(error)) from error
        return KeptFile(name, archive), f"{name} session.zip"

    async def _written(self, wanted: ExportIn, name: str, stems: list[tuple[Stem, PlacedIn]]) -> BinaryIO:
        folder = self.settings.fitted_folder
        folder.mkdir(parents=True, exist_ok=True)
        archive: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - handed on; without a name, it cannot stay
        try:
            with tempfile.TemporaryFile(dir=folder) as inner:
                with ZipFile(archive, "w", ZIP_STORED) as outside, ZipFile(inner, "w", ZIP_STORED) as dawproject:

                    async def add(path: str, write: Callable[[BinaryIO], Awaitable[FittedAudio]]) -> FittedAudio:
                        with tempfile.TemporaryFile(dir=folder) as wav:
                            audio = await write(wav)
                            for zipped in (outside, dawproject):
                                await asyncio.to_thread(_append, zipped, path, wav)
                        return audio

                    async with for_decoder(wanted.file) as source:
                        mix = await add("audio/00 mix.wav", lambda into: self.decoder.fit(source, Order(), into))
                    self._refuse_long(mix, stems)
                    tracks = [SessionTrack("mix", "audio/00 mix.wav", mix.channels, [("source", name)])]
                    for number, (stem, one) in enumerate(stems, start=1):
                        order = _order_of(one, one.loops(stem.kind), mix, number)
                        path = f"audio/{number:02d} {fitted_name(stem, order)}"

                        async def write(into: BinaryIO, stem: Stem = stem, order: Order = order) -> FittedAudio:
                            return await self.fitted.write(stem, order, into)

                        audio = await add(path, write)
                        tracks.append(SessionTrack(safe_name(stem.title), path, audio.channels, _notes(stem, one)))
                    tempo, key = _music(wanted, stems)
                    release = version("phalar-retrieval")
                    session = Session(name, mix.sample_rate, mix.frames, tempo, key, release, tracks)
                    dawproject.writestr(ZipInfo("project.xml"), dawproject_xml(session))
                    dawproject.writestr(ZipInfo("metadata.xml"), metadata_xml(session))
                    dawproject.close()
                    await asyncio.to_thread(_append, outside, f"{name}.dawproject", inner)
                    outside.writestr(ZipInfo(f"{name}.rpp"), reaper_project(session))
                    outside.writestr(ZipInfo(f"{name}.txt"), session_text(session))
                await asyncio.to_thread(archive.flush)
        except BaseException:
            archive.close()
            raise
        return archive

    def _refuse_long(self, mix: FittedAudio, stems: list[tuple[Stem, PlacedIn]]) -> None:
        seconds = (1 + len(stems)) * mix.frames / mix.sample_rate
        if seconds > MOST_CLIPS * self.settings.max_clip_s:
            raise FittedTooLong(round(seconds, 3), MOST_CLIPS * self.settings.max_clip_s)


def _append(zipped: ZipFile, path: str, file: BinaryIO) -> None:
    info = ZipInfo(path)
    info.file_size = file.seek(0, 2)
    file.seek(0)
    with zipped.open(info, "w") as into:
        shutil.copyfileobj(file, into, 1 << 20)


def _order_of(one: PlacedIn, loop: bool, mix: FittedAudio, number: int) -> Order:
    """A file as long as the mix, to the sample."""
    lead = round(one.at_s * mix.sample_rate)
    if lead >= mix.frames:
        raise BadPlaced(f"{number - 1}.at_s: the mix ends before")
    left_s = (mix.frames - lead) / mix.sample_rate
    fitting = Fitting(one.speed, one.transpose, one.start_s, left_s, loop, mix.sample_rate)
    return Order(fitting, "wav", lead / mix.sample_rate, one.gain_db)


def _music(wanted: ExportIn, stems: list[tuple[Stem, PlacedIn]]) -> tuple[float | None, str | None]:
    """Tempo and key as asked; else those that the first stem that has any is brought to."""
    tempi = (stem.tempo_bpm * one.speed for stem, one in stems if stem.tempo_bpm is not None)
    keys = (key for stem, one in stems if (key := transposed_key(stem.key or "", one.transpose)))
    return wanted.tempo_bpm or next(tempi, None), wanted.mix_key or next(keys, None)


def _notes(stem: Stem, one: PlacedIn) -> list[tuple[str, str]]:
    whole = {"track": stem.track, "collection": stem.collection, "file": stem.file_name, "sha256": stem.sha256}
    recorded = "tempo not known" if stem.tempo_bpm is None else f"{stem.tempo_bpm:.4g} BPM"
    return [
        ("instrument", stem.instrument or "not said"),
        ("recorded", f"{recorded}, {stem.key or 'no key'}"),
        ("played", f"speed {one.speed:g}, {one.transpose:+g} semitones, {one.gain_db:+g} dB"),
        ("placed", f"second {one.start_s:g} of the stem at second {one.at_s:g} of the mix"),
        ("source", ", ".join(f"{name} {value}" for name, value in whole.items() if value)),
        ("licence", "not stated: ask whoever the stem is from"),
    ]
