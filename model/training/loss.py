"""InfoNCE over the pairs of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.training.recipe import LossSettings


def contrastive_loss(
    anchors: Tensor,
    positives: Tensor,
    score: Callable[[Tensor, Tensor], Tensor],
    settings: LossSettings,
    decoys: Tensor | None = None,
    decoys_of: Tensor | None = None,
    past: Tensor | None = None,
    past_is_own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """How badly each submix tells its own track's other submix from those of other tracks.

    Args:
        anchors: (n, ...), any embedding that `score` takes.
        positives: (n, ...); row i is of the same track and window as the anchors' row i.
        score: of all against all, (n, ...) and (m, ...) -> (n, m).
        settings: the target, the directions, the negatives.
        decoys: (m, ...), positives at the wrong time: negatives of every row but the positive that they repeat.
        decoys_of: int64 (m,), the rows of those positives.
        past: (q, ...), embeddings of earlier batches: negatives of every row, where `settings.negatives` is "all".
        past_is_own: bool (n, q), where those are of the row's own track, and say nothing.

    Returns:
        The mean cross-entropy in nats, and the part of the rows whose true pair has the highest score.
    """
    n = len(anchors)
    others = positives[:0] if decoys is None else decoys
    if settings.negatives == "all":
        both = torch.cat([anchors, positives])
        earlier = positives[:0] if past is None else past
        logits = score(both, torch.cat([both, others, earlier]))  # (2n, 2n + m + q)
        rows = torch.arange(2 * n, device=logits.device)
        itself = torch.zeros_like(logits, dtype=torch.bool)
        itself[rows, rows] = True
        if decoys_of is not None:
            itself[n + decoys_of, 2 * n + torch.arange(len(decoys_of), device=logits.device)] = True
        if past_is_own is not None:
            itself[:, 2 * n + len(others) :] = past_is_own.repeat(2, 1)
        return _smoothed(logits.masked_fill(itself, -torch.inf), rows.roll(n), settings.positive)
    logits = score(anchors, torch.cat([positives, others]))  # (n, n + m)
    rows = torch.arange(n, device=logits.device)
    loss, accuracy = _smoothed(logits, rows, settings.positive)
    if settings.direction == "one":
        return loss, accuracy
    back, accuracy_back = _smoothed(logits[:, :n].T, rows, settings.positive)
    return (loss + back) / 2, (accuracy + accuracy_back) / 2


class Queue:
    """The latest embeddings of earlier batches, as further negatives: a batch of few tracks is then compared with many.

    What was embedded some steps ago is nearly what the weights of today would give, as long as they learn slowly (Wang
    et al. 2020, cross-batch memory).
    """

    def __init__(self, most: int) -> None:
        self.most = most  # embeddings
        self.held: tuple[Tensor, Tensor] | None = None  # (q, ...) and their tracks, int64 (q,), the latest first

    def past(self, tracks: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """What it holds, and where that is of the same track as a row, bool (n, q); None twice where it is empty."""
        return (None, None) if self.held is None else (self.held[0], tracks[:, None] == self.held[1])

    def push(self, embeddings: Tensor, tracks: Tensor) -> None:
        """Add (m, ...) and their tracks, int64 (m,), and let the oldest go."""
        if self.most:
            added = embeddings.detach(), tracks
            both = zip(added, self.held or [part[:0] for part in added], strict=True)
            embeddings, tracks = (torch.cat(parts)[: self.most] for parts in both)
            self.held = embeddings, tracks


def _smoothed(logits: Tensor, true: Tensor, positive: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy with `positive` for the true column and the rest spread evenly over all finite others."""
    log = torch.log_softmax(logits, dim=1)
    of_true = log.gather(1, true[:, None])[:, 0]
    finite = torch.isfinite(logits)
    others = torch.where(finite, log, 0.0).sum(dim=1) - of_true
    smoothed = positive * of_true + (1 - positive) * others / (finite.sum(dim=1) - 1).clamp_min(1)
    return -smoothed.mean(), (logits.argmax(dim=1) == true).float().mean()
