"""What was embedded of a mix, kept with it: a search that repeats embeds nothing again."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from model.audio import Windows
from service.search.retrieval import Embedder
from service.work.shelf import Keeper


class Remembering:
    """An Embedder for one mix, which keeps what the other one embeds; a key that was embedded before is not again."""

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
        chosen = {key: np.flatnonzero(laid.transpose == key) for key in np.unique(laid.transpose).tolist()}
        names: dict[int, str] = {}
        kept: dict[int, NDArray[np.complex64]] = {}
        for key, which in chosen.items():
            of_key = digest.copy()
            of_key.update(
                np.stack([laid.starts[which], laid.lengths[which]]).astype("<i8").tobytes() + str(key).encode()
            )
            names[key] = f"embedded:{self._mix}:{of_key.hexdigest()}"
            if found := await self._keeper.get(names[key]):
                kept[key] = np.frombuffer(found[1], "<c8").astype(np.complex64).reshape(len(which), -1)
        lacking = np.flatnonzero(~np.isin(laid.transpose, [*kept]))
        if len(lacking):
            embedded = await self._embedder.embed(fingerprint, waveform, laid[lacking], deadline_s)
            for key in chosen.keys() - kept.keys():
                kept[key] = embedded[laid.transpose[lacking] == key]
                await self._keeper.put(names[key], np.ascontiguousarray(kept[key], "<c8").tobytes())
        embedding = np.empty((len(laid), next(iter(kept.values())).shape[1]), np.complex64)
        for key, which in chosen.items():
            embedding[which] = kept[key]
        return embedding
