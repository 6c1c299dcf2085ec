"""The mix of a query: from a file, from stems of the catalog, or as it was kept; and stems that are laid into it."""

import io
import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from indexer import Catalog, Stem
from model.audio import SAMPLE_RATE, Waveform
from model.errors import Told
from service.api.ingest import for_decoder
from service.api.placing import Placed, PlacedBeyondEnd
from service.api.schemas import RetrieveIn
from service.metrics import Stopwatch
from service.search.placing import laid
from service.work.blobs import Blobs
from service.work.decoding import DecoderCrashed
from service.work.encoding import Order
from service.work.fitting import Fitting
from service.work.shelf import Shelf
from service.work.turns import Budget, Manifold
from service.work.uploads import Decoder

SAMPLE_BYTES = 4  # float32


class NoMix(Told):
    public = "Send either `file`, or `mix_id`, or `stem_id` once or more."


class MixNotFound(Told):
    """No mix is kept under this id for this caller: there never was one, or its time is over."""

    public = "No mix is kept as {mix_id}: send it again."
    mix_id: str


class MixNotReady(Told):
    public = "The stem {stem_id} of the mix could not be used itself."
    stem_id: str


@dataclass(frozen=True, eq=False)
class Mix:
    """What is searched with.

    waveform: float32 (samples,), 16 kHz. `stem_ids` and `rows`: of the stems that make it up, which are not wanted.
    `mix_id`: under which it can be asked for again; None: it is not kept. `warnings`: of its files.
    """

    waveform: Waveform
    warnings: tuple[str, ...] = ()
    stem_ids: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    mix_id: str | None = None


@dataclass
class Mixes:
    """Makes the mixes of queries, and keeps them for a while."""

    catalog: Catalog
    blobs: Blobs
    decoder: Decoder
    budget: Budget
    shelf: Shelf

    async def of(self, query: RetrieveIn, owner: str | None, watch: Stopwatch) -> Mix:
        """The mix that a query names, without the stems that are placed in it.

        Raises:
            AudioError: it cannot be used.
            NoMix: there is none, or there are several.
            MixNotFound: none is kept under its id, of this owner.
            StemNotFound, MixNotReady: a stem of it is unknown, or failed.
        """
        if (query.file is not None) + (query.mix_id is not None) + bool(query.stem_id) != 1:
            raise NoMix
        budget = Manifold(self.budget, query.waveforms)
        if query.mix_id is not None:
            with watch.stage("fetch"):
                return await self._kept(query.mix_id, owner, budget)
        with watch.stage("decode"):
            if query.file is not None:
                async with for_decoder(query.file) as audio:
                    clip = await self.decoder.decode(audio, budget=budget)
                mix = Mix(clip.waveform, clip.warnings)
            else:
                mix = await self._sum(await self._stems(query.stem_id), Manifold(self.budget, max(2, query.waveforms)))
        with watch.stage("keep"):
            return await self._keep(mix, owner)

    async def lay(self, mix: Mix, placed: Sequence[Placed], watch: Stopwatch) -> Mix:
        """The mix with stems laid into it, which are then no answers; its waveform is changed. One after the other: of
        what they sound like one is held at a time, no longer than the mix.

        Raises:
            StemNotFound, MixNotReady: one is unknown, was deleted meanwhile, or failed.
            PlacedBeyondEnd: one would begin after its own or the mix's end.
            AudioError: one cannot be decoded or stretched within the limits.
        """
        stems = await self._stems([one.stem_id for one in placed])
        by_id = {stem.id: stem for stem in stems}
        with watch.stage("place"):
            for one in placed:
                stem = by_id[one.stem_id]
                try:
                    at, fitting = laid(one, len(mix.waveform), stem.duration_s, one.loops(stem.kind), one.at_s)
                except ValueError:
                    raise PlacedBeyondEnd(stem.id) from None
                part = await self.fitted(stem, fitting)
                mix.waveform[at:] += np.float32(10 ** (one.gain_db / 20)) * part
        return replace(mix, stem_ids=(*mix.stem_ids, *by_id), rows=(*mix.rows, *(stem.row for stem in stems)))

    async def fitted(self, stem: Stem, fitting: Fitting) -> Waveform:
        """What of a stem sounds, and how: float32 (samples,), 16 kHz, of the fitting's duration.

        Raises:
            AudioError: it cannot be decoded or stretched within the limits.
            BlobMissing: its audio is not there.
        """
        wav = io.BytesIO()
        async with self.blobs.fetch(stem.sha256) as path:
            told = await self.decoder.fit(path, Order(fitting, "wav", mono=True), wav)
        size = SAMPLE_BYTES * told.frames
        samples = wav.getvalue()[-size:]  # the last thing in the file: no header that a child wrote is read
        if (len(samples), told.channels, told.frames / SAMPLE_RATE) != (size, 1, fitting.duration_s):
            raise DecoderCrashed("its samples are not those asked for")
        found = np.frombuffer(samples, "<f4").astype(np.float32)
        if not np.isfinite(found).all():
            raise DecoderCrashed("its samples are not finite")
        return found

    async def _stems(self, stem_ids: Sequence[str]) -> list[Stem]:
        stems = [await self.catalog.stem(stem_id) for stem_id in dict.fromkeys(stem_ids)]
        for stem in stems:
            if stem.state == "failed":
                raise MixNotReady(stem.id)
        return stems

    async def _sum(self, stems: Sequence[Stem], budget: Budget) -> Mix:
        """The mix of some stems that start together, as long as the longest; the score ignores its loudness.

        However many there are, two waveforms of that length are held.
        """
        longest = math.ceil(max(stem.duration_s for stem in stems) * SAMPLE_RATE) + 1
        length = 0
        warnings: list[str] = []
        taken = await budget.take(longest)
        mix = np.zeros(longest, np.float32)
        budget.until_forgotten(mix, taken)
        for stem in stems:
            async with self.blobs.fetch(stem.sha256) as path:
                clip = await self.decoder.decode(path)
            mix[: len(clip.waveform)] += clip.waveform
            length = max(length, len(clip.waveform))
            warnings += clip.warnings
        return Mix(mix[:length], tuple(warnings), tuple(stem.id for stem in stems), tuple(stem.row for stem in stems))

    async def _keep(self, mix: Mix, owner: str | None) -> Mix:
        if mix.waveform.nbytes > self.shelf.largest:
            return mix
        mix_id = secrets.token_hex(16)
        about = {"warnings": mix.warnings, "stem_ids": mix.stem_ids, "rows": mix.rows}
        samples = np.ascontiguousarray(mix.waveform, "<f4").tobytes()
        kept = await self.shelf.put(_name(mix_id, owner), samples, json.dumps(about).encode())
        return replace(mix, mix_id=mix_id if kept else None)

    async def _kept(self, mix_id: str, owner: str | None, budget: Budget) -> Mix:
        name = _name(mix_id, owner)
        taken = await budget.take(await self.shelf.size(name) // SAMPLE_BYTES)
        try:
            found = await self.shelf.get(name)
            if found is None:
                raise MixNotFound(mix_id)
        except BaseException:
            budget.give_back(taken)
            raise
        about, samples = found
        waveform = np.frombuffer(samples, "<f4").astype(np.float32)
        budget.until_forgotten(waveform, taken)
        told = {name: tuple(value) for name, value in json.loads(about).items()}
        return Mix(waveform, **told, mix_id=mix_id)


def _name(mix_id: str, owner: str | None) -> str:
    """Another owner's mix has another name, whoever has learnt its id."""
    return f"mix:{owner}:{mix_id}"
