"""A judge of copies from a detector that the user gives, such as SSCD: cosine similarity to training images."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unleak.errors import BadInput, NotFinite


@dataclass(frozen=True)
class Preprocess:
    """How images become the detector's input: shorter side, central crop, normalisation per channel.

    The defaults are those of GUARD and Wen et al. for SSCD; SSCD's own are ImageNet's mean and deviation. Figures with
    different ones are not comparable.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __call__(self, images: np.ndarray) -> Tensor:
        """[N,H,W,3] uint8 -> [N,3,crop,crop] float32."""
        return torch.stack([self._one(Image.fromarray(image)) for image in images])

    def _one(self, image: Image.Image) -> Tensor:
        scale = self.resize / min(image.size)
        size = (max(self.crop, round(image.width * scale)), max(self.crop, round(image.height * scale)))
        left, top = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
        resized = image.resize(size, Image.Resampling.BILINEAR)
        pixels = np.array(resized.crop((left, top, left + self.crop, top + self.crop)), np.float32) / 255
        mean, std = (torch.tensor(channels)[:, None, None] for channels in (self.mean, self.std))
        return (torch.from_numpy(pixels).permute(2, 0, 1) - mean) / std


class EmbeddingJudge:
    """Largest cosine similarity to reference images in the space of a copy detector, such as SSCD.

    Args:
        embed: [N,3,h,w] -> [N,D]; see `copy_detector`.
        references: the training images that may be copied, [M,H,W,3] uint8 each or together.
        threshold: 0.7 is what Wen et al. and GUARD call a copy under SSCD, 0.5 what others do. Report which.
    """

    def __init__(
        self,
        embed: Callable[[Tensor], Tensor],
        references: Sequence[np.ndarray] | np.ndarray,
        *,
        name: str,
        threshold: float = 0.7,
        preprocess: Preprocess = Preprocess(),
        batch: int = 32,
    ) -> None:
        if not len(references):
            raise BadInput("a copy detector compares with training images: give at least one reference")
        self.embed, self.preprocess, self.batch = embed, preprocess, batch
        self.name, self.threshold = name, threshold
        self.references = self._directions(references)

    def similarity(self, images: np.ndarray) -> np.ndarray:
        """Largest cosine [N], -1 to 1. See `judges.copies.CopyJudge`. Raises NotFinite."""
        return (self._directions(images) @ self.references.mT).max(1).values.numpy()

    @torch.no_grad()
    def _directions(self, images: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """Unit vectors [N, D]; images may differ in size."""
        inputs = torch.cat([self.preprocess(np.asarray(image)[None]) for image in images])
        embeddings = torch.cat([self.embed(part).float().cpu() for part in inputs.split(self.batch)])
        if not torch.isfinite(embeddings).all():
            raise NotFinite(f"{self.name} returned NaN or infinity")
        return torch.nn.functional.normalize(embeddings, dim=1)


def copy_detector(path: str | Path, sha256: str) -> Callable[[Tensor], Tensor]:
    """An embedding network from a file that the user trusts, `.onnx` or TorchScript (`.pt`, `.torchscript`).

    A model is a program. ONNX is the safer of the two: a fixed set of operators, and external data is not followed,
    because the checked bytes are all that is loaded. A TorchScript archive holds code of its own, which torch runs
    outside of Python; only its hash says whose code it is. So nothing is loaded unless the file's SHA-256 is the one
    that you give, and you should have that from where the model was published, not from the file. Plain pickled
    modules are never loaded.

    Raises:
        BadInput: the file is missing, has another hash or another ending, or cannot be read as what it claims to be.
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt", ".torchscript"):
        raise BadInput(f"{path} is no copy detector: give an .onnx file, or TorchScript as .pt or .torchscript")
    try:
        data = path.read_bytes()
    except OSError as e:
        raise BadInput(f"cannot read the copy detector {path}: {e.strerror or e}") from e
    actual_hash = hashlib.sha256(data).hexdigest()
    if actual_hash != sha256.strip().lower():
        raise BadInput(
            f"{path} has SHA-256 {actual_hash}, not {sha256}: it is not the file you mean, and was not loaded"
        )
    try:
        return _onnx(data) if path.suffix == ".onnx" else _torchscript(data)
    except ImportError:
        raise BadInput("ONNX files need onnxruntime: pip install 'unleak[onnx]'") from None
    except Exception as e:  # whatever a broken file makes either library raise
        raise BadInput(f"{path} cannot be loaded: {str(e).strip().splitlines()[0]}") from e


def _torchscript(data: bytes) -> Callable[[Tensor], Tensor]:
    model = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()

    def embed(x: Tensor) -> Tensor:
        out: Tensor = model(x)
        return out

    return embed


def _onnx(data: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {name: x.numpy()})[0]))
