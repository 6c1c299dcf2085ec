"""MERT (arXiv:2306.00107): its last layer's mean over time, and the cosine of two such means.

MERT is HuBERT at 24 kHz; the code that comes with its weights adds two variants, which the published v1 models do not
use. So `transformers`' own HubertModel reads them, and no code from the hub is run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.errors import Told
from model.evaluation.baselines.resampling import resample
from model.evaluation.systems import package

HUB_NAME = "m-a-p/MERT-v1-95M"

CLIPS_AT_ONCE = 8
"""How many clips go through the model together, which bounds memory."""


class UnsupportedMert(Told, ValueError):
    says = "{name}: its {field} is {value!r}, which HuBERT does not have"
    name: str
    field: str
    value: object


class Mert:
    """MERT as the PHALAR paper compares with it: raw waveforms in, the last layer out."""

    def __init__(self, model: Any, rate: int, device: str) -> None:
        self.model = model.to(device).eval()
        self.rate = rate
        self.device = device

    @torch.no_grad()
    def embed(self, waveforms: Tensor) -> Tensor:
        """float32 (n, samples) at 16 kHz -> float32 (n, hidden size)."""
        rows = resample(waveforms, self.rate)
        layers = [self.model(part.to(self.device)).last_hidden_state for part in torch.split(rows, CLIPS_AT_ONCE)]
        return torch.cat([layer.mean(dim=1) for layer in layers])

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """The cosine of all against all, float32 (n, m)."""
        return functional.normalize(x, dim=1) @ functional.normalize(y, dim=1).T


def load(checkpoint: str | None, device: str = "cpu") -> Mert:
    """MERT by a folder or a name on the hub.

    Args:
        checkpoint: the folder of `config.json` and weights, or the name; None: `HUB_NAME`.
        device: where the model goes.

    Raises:
        ImportError: transformers is not installed.
        OSError: there is no such folder, and the hub has no such name or cannot be reached.
        UnsupportedMert: a variant with CQT features, or deep norm.
        ValueError: weights are missing, or of another shape.
    """
    transformers = package("transformers", "MERT", "baselines")
    HubertConfig = transformers.HubertConfig
    name = HUB_NAME if checkpoint is None else checkpoint
    fields, _ = HubertConfig.get_config_dict(name)
    for field in ("feature_extractor_cqt", "deepnorm"):
        if fields.get(field):
            raise UnsupportedMert(name, field, fields[field])
    known = HubertConfig().to_dict().keys() - {"model_type", "architectures", "auto_map"}
    config = HubertConfig(**{field: value for field, value in fields.items() if field in known})
    model, facts = transformers.HubertModel.from_pretrained(name, config=config, output_loading_info=True)
    missing = sorted(set(facts["missing_keys"]) - {"masked_spec_embed"})  # which only training uses
    if missing:
        raise ValueError(f"{name} lacks weights: {', '.join(missing[:5])}")
    return Mert(model, int(fields.get("sample_rate", 24_000)), device)
