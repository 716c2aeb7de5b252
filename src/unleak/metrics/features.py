"""What metrics see through: CLIP's image-text score and DINO's keys, from `transformers` models that the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unleak.errors import NotFinite, UnsupportedModel
from unleak.judges.asking import batches, check_length
from unleak.judges.load import locate

SIDE, LONGEST = 224, 480
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_clip(where: str) -> ClipScore:
    """From a folder or a hub id. Raises BadInput, UnsupportedModel."""
    model, processor = _load(where)
    if not hasattr(model, "get_text_features"):
        raise UnsupportedModel(f"{where!r} does not compare images with texts: give a CLIP of transformers")
    return ClipScore(model, processor, where)


def load_dino(where: str) -> DinoKeys:
    """From a folder or a hub id. Raises BadInput, UnsupportedModel."""
    return DinoKeys(_load(where)[0])


def _load(where: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoProcessor

    source = locate(where)
    try:
        model = AutoModel.from_pretrained(source, trust_remote_code=False, use_safetensors=True)
        return model, AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as e:  # whatever a broken or foreign model makes transformers raise
        line = str(e).strip().split("\n")[0]
        raise UnsupportedModel(f"transformers could not load {where!r}: {type(e).__name__}: {line}") from e


class ClipScore:
    """``100 max(cos(image, text), 0)``; ALE-Bench takes `openai/clip-vit-large-patch14`.

    Args:
        model, processor: of a contrastive image-text model. batch: images at once.
    """

    def __init__(self, model: Any, processor: Any, name: str = "clip", batch: int = 8) -> None:
        self.model, self.processor, self.name, self.batch = model.eval(), processor, name, batch

    def __call__(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Images [N, H, W, 3] uint8 and T texts -> [N, T]. Raises BadInput: a text is too long. NotFinite."""
        for text in texts:
            check_length(self.processor.tokenizer, text, self.name)
        scores = np.concatenate([self._cosines(part, list(texts)) for part in batches(images, self.batch)])
        if not np.isfinite(scores).all():
            raise NotFinite(f"{self.name} returned NaN; load it in float32 or bfloat16")
        return 100 * np.maximum(scores, 0.0)

    @torch.no_grad()
    def _cosines(self, images: Sequence[Any], texts: list[str]) -> np.ndarray:
        inputs = self.processor(text=texts, images=images, return_tensors="pt", padding="max_length")
        embeddings = self.model(**inputs.to(self.model.device, self.model.dtype))
        image, text = (F.normalize(rows.float(), dim=-1) for rows in (embeddings.image_embeds, embeddings.text_embeds))
        return (image @ text.T).cpu().numpy()


class DinoKeys:
    """Keys of a vision transformer's last layer, heads side by side; the features of the structure distance.

    Images have their shorter side at 224 pixels (the longer one at most 480) and ImageNet's normalisation.

    Args:
        model: `transformers` ViT; PIE-Bench and ALE-Bench take `facebook/dino-vitb8`.
        levels: 255.0: pixels are normalised as numbers from 0 to 255, an oversight of the published evaluators that
            their figures depend on. 1.0: as numbers from 0 to 1.

    Raises UnsupportedModel: the model has no key projections.
    """

    def __init__(self, model: Any, levels: float = 255.0) -> None:
        self.model, self.levels = model.eval(), levels
        key_layers = [part for name, part in model.named_modules() if name.rsplit(".", 1)[-1] in ("key", "k_proj")]
        if not key_layers:
            raise UnsupportedModel(f"{type(model).__name__} has no key projections: give a ViT of transformers")
        self._keys = key_layers[-1]

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images [N, H, W, 3] uint8 -> [N, 1 + patches, D]."""
        keys: list[Tensor] = []
        handle = self._keys.register_forward_hook(lambda module, args, output: keys.append(output))
        try:
            self.model(self._pixels(images), interpolate_pos_encoding=True)
        finally:
            handle.remove()
        return keys[0].float().cpu().numpy()

    def _pixels(self, images: np.ndarray) -> Tensor:
        parameter = next(self.model.parameters())
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(parameter.device).float() / 255.0
        scale = min(SIDE / min(x.shape[-2:]), LONGEST / max(x.shape[-2:]))
        size = [round(side * scale) for side in x.shape[-2:]]
        x = F.interpolate(x, size=size, mode="bilinear", antialias=True).clamp(0, 1) * self.levels
        mean, deviation = (x.new_tensor(part)[:, None, None] for part in (MEAN, DEVIATION))
        return ((x - mean) / deviation).to(parameter.dtype)
