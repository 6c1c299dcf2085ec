"""Keys on a graphics card, which compares many at a time."""

import logging
import threading
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

log = logging.getLogger("phalar.index")
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# A graphics card answers no deeper.
DEEPEST_ON_CARD = 2048


class CardKeys:
    """Flat keys on a graphics card; only faiss-gpu has them."""

    def __init__(self, keys: Any) -> None:
        self._resources = faiss.StandardGpuResources()
        self._keys = faiss.index_cpu_to_gpu(self._resources, 0, keys)
        self._lock = threading.Lock()  # the resources serve one thread at a time

    @classmethod
    def of(cls, keys: Any) -> "CardKeys | None":
        """None without faiss-gpu, without a card, for other types than flat, or when the card has no room."""
        if (
            not hasattr(faiss, "StandardGpuResources")
            or not faiss.get_num_gpus()
            or not isinstance(keys, faiss.IndexFlat)
        ):
            return None
        try:
            return cls(keys)
        except RuntimeError as error:
            log.warning("the keys stay in memory, the graphics card did not take them: %s", error)
            return None

    def search(self, queries: Float32, k: int) -> tuple[Float32, Int64]:
        with self._lock:
            found: tuple[Float32, Int64] = self._keys.search(queries, k)
        return found
