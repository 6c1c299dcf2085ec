"""What was embedded of a mix, kept with it: a search that repeats embeds nothing again."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from model.audio import Windows
from service.search.retrieval import Embedder
from service.work.shelf import Keeper


class Remembering:
    """An Embedder for one mix, which keeps what the other one embeds: fewer keys than were asked for
    before are a part of those."""

    def __init__(self, embedder: Embedder, keeper: Keeper, mix: str) -> None:
        """`mix`: its name, before which nothing is known of it, however alike it is to another."""
        self._embedder = embedder
        self._keeper = keeper
        self._mix = mix

    async def embed(
        self, fingerprint: str, waveform: NDArray[np.float32], laid: Windows, deadline_s: float
    ) -> NDArray[np.complex64]:
        """As the other embeds; see `Queue.embed`."""
        digest = hashlib.sha256(f"{fingerprint} {laid.frames} {laid.inner}".encode())
        digest.update(np.ascontiguousarray(waveform, "<f4").data)
        digest.update(np.stack([laid.starts, laid.lengths]).astype("<i8").tobytes())
        name = f"embedded:{self._mix}:{digest.hexdigest()}"
        found = await self._keeper.get(name)
        if found and (spare := found[1][0] - laid.semitones) >= 0:
            keys = 2 * found[1][0] + 1
            kept = np.frombuffer(found[1], "<c8", offset=1).astype(np.complex64).reshape(len(laid), keys, -1)
            return kept[:, spare : keys - spare].reshape(len(laid), -1)
        embedding = await self._embedder.embed(fingerprint, waveform, laid, deadline_s)
        await self._keeper.put(name, bytes([laid.semitones]) + np.ascontiguousarray(embedding, "<c8").tobytes())
        return embedding
