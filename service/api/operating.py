"""What whoever runs the service says and reads: reindexes, and whether all is well."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from indexer import IndexType
from service.api.schemas import IndexOut, ModelOut, ShortText
from service.work.sandbox import Confinement


class ReindexIn(BaseModel):
    """What the next index is to be made with; nothing given: the same model, at the rank that its music needs."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: ShortText | None = Field(None, description="a file in the checkpoints folder")
    rank: int | None = Field(
        None, ge=1, le=512, description="directions the fold keeps; null: as many as the music needs and memory holds"
    )
    index_type: IndexType | None = Field(
        None, description="flat, fp16, sq8 or ivf; null: what the catalog's size and the memory call for (FAISS only)"
    )


class RollbackOut(BaseModel):
    """The generation that answers now, and the one it replaced."""

    generation: int
    previous: int
    fingerprint: str


class WorkerOut(BaseModel):
    """What a living worker embeds on, as it last said."""

    device: str
    driver: str = Field(description="of a card, and the CUDA that torch was built for; empty on a CPU")
    batch: int = Field(description="windows embedded at once")
    embeddings_per_s: float = Field(description="while the device was at work; 0 before the first")


class ReadyOut(BaseModel):
    """Whether queries are answered, and with what."""

    status: Literal["ready", "starting", "rebuilding", "unreachable"]
    model: ModelOut
    index: IndexOut | None
    queue: dict[str, int]
    stems: dict[str, int]
    workers: dict[str, WorkerOut]
    decoders: Confinement = Field(
        description="what holds the processes that decode uploads: a system call filter and limits, or limits alone"
    )
