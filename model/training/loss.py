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
    in_keys: Tensor | None = None,
    pitched: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """How badly each submix tells its own track's other submix from those of other tracks.

    Args:
        anchors: (n, ...), any embedding that `score` takes.
        positives: (n, ...); row i is of the same track and window as the anchors' row i.
        score: of all against all, (n, ...) and (m, ...) -> (n, m).
        settings: the target, the directions, the negatives.
        decoys: (m, ...), positives at the wrong time: negatives of every row but the positive that they repeat.
        decoys_of: int64 (m,), the rows of those positives.
        in_keys: (2n, keys, ...), anchors, then positives, in other keys: negatives of every row but their own; with
            `negatives` "all".
        pitched: bool (2n,), which of these play notes. What plays none is no negative in another key, nor is a partner
            of what plays none.

    Returns:
        The mean cross-entropy in nats, and the part of the rows whose true pair has the highest score.
    """
    n = len(anchors)
    others = positives[:0] if decoys is None else decoys
    if settings.negatives == "all":
        both = torch.cat([anchors, positives])
        logits = score(both, torch.cat([both, others]))  # (2n, 2n + m)
        rows = torch.arange(2 * n, device=logits.device)
        itself = torch.zeros_like(logits, dtype=torch.bool)
        itself[rows, rows] = True
        if decoys_of is not None:
            itself[n + decoys_of, 2 * n + torch.arange(len(decoys_of), device=logits.device)] = True
        logits = logits.masked_fill(itself, -torch.inf)
        if in_keys is not None and pitched is not None:
            moved = score(both, in_keys.flatten(0, 1)).view(2 * n, 2 * n, -1)  # (rows, clips, keys)
            unknown = ~pitched.repeat(2 * n, 1)
            unknown[rows, rows] = True
            unknown[rows, rows.roll(n)] |= ~pitched
            logits = torch.cat([logits, moved.masked_fill(unknown[:, :, None], -torch.inf).flatten(1)], dim=1)
        return _smoothed(logits, rows.roll(n), settings.positive)
    logits = score(anchors, torch.cat([positives, others]))  # (n, n + m)
    rows = torch.arange(n, device=logits.device)
    loss, accuracy = _smoothed(logits, rows, settings.positive)
    if settings.direction == "one":
        return loss, accuracy
    back, accuracy_back = _smoothed(logits[:, :n].T, rows, settings.positive)
    return (loss + back) / 2, (accuracy + accuracy_back) / 2


def _smoothed(logits: Tensor, true: Tensor, positive: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy with `positive` for the true column and the rest spread evenly over all finite others."""
    log = torch.log_softmax(logits, dim=1)
    of_true = log.gather(1, true[:, None])[:, 0]
    finite = torch.isfinite(logits)
    others = torch.where(finite, log, 0.0).sum(dim=1) - of_true
    smoothed = positive * of_true + (1 - positive) * others / (finite.sum(dim=1) - 1).clamp_min(1)
    return -smoothed.mean(), (logits.argmax(dim=1) == true).float().mean()
