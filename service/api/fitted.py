"""Stems as they are to sound: from the disk, or made by the decoder and kept there."""

from dataclasses import dataclass
from typing import BinaryIO

from indexer import Catalog, Stem, StemNotFound
from service.work.answers import FittedAudio
from service.work.blobs import BlobMissing, Blobs
from service.work.encoding import Order
from service.work.fitted import FittedFiles, KeptFile
from service.work.uploads import Decoder


@dataclass
class Fitted:
    """Gives fitted files of stems that are in the catalog."""

    catalog: Catalog
    blobs: Blobs
    decoder: Decoder
    files: FittedFiles

    async def file(self, stem: Stem, order: Order) -> KeptFile:
        """A stem's audio as ordered.

        Raises:
            StemNotFound: it was deleted meanwhile; nothing of it is kept.
            AudioError: as of `Decoder.fit`.
            BlobMissing, BlobStoreUnavailable, NoRoom.
        """
        kept = await self.files.get(stem.sha256, order)
        try:
            kept = kept or await self.files.make(stem.sha256, order, lambda into: self._write(stem, order, into))
        finally:  # what was deleted meanwhile is a stem that is not there, and nothing else
            await self._refuse_deleted(stem)
        return kept

    async def write(self, stem: Stem, order: Order, into: BinaryIO) -> FittedAudio:
        """A stem's audio as ordered, into a file that is not kept. Raises as `file` does, and OSError: no room."""
        try:
            return await self._write(stem, order, into)
        finally:
            await self._refuse_deleted(stem)

    async def _refuse_deleted(self, stem: Stem) -> None:
        try:
            await self.catalog.stem(stem.id)
        except StemNotFound:
            if not await self.catalog.holds(stem.sha256):
                await self.files.forget(stem.sha256)
            raise

    async def _write(self, stem: Stem, order: Order, into: BinaryIO) -> FittedAudio:
        try:
            async with self.blobs.fetch(stem.sha256) as path:
                return await self.decoder.fit(path, order, into)
        except FileNotFoundError:  # deleted since it was looked for
            raise BlobMissing(stem.sha256) from None
