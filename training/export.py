"""Save a trained pipeline as the folder that ships: half precision, safetensors, settings of the call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from transformers import CLIPTokenizer


def export(pipe: DiffusionPipeline, folder: Path, settings: dict[str, Any]) -> None:
    """Save in half precision, so that plain `from_pretrained(folder)` still runs in single precision; `settings` are
    for `unleak.json`. Of the parts that are `frozen` there, the config alone is saved."""
    pipe.to(dtype=torch.float16).save_pretrained(folder)
    for name, part in pipe.components.items():
        if name.startswith("text_encoder"):
            config = folder / name / "config.json"
            stated = json.loads(config.read_text("utf-8")) | {"dtype": "float32"}  # transformers loads what is stated
            config.write_text(json.dumps(stated, indent=2) + "\n", "utf-8")
        if isinstance(part, CLIPTokenizer):
            bpe = json.loads((folder / name / "tokenizer.json").read_text("utf-8"))["model"]
            (folder / name / "vocab.json").write_text(json.dumps(bpe["vocab"], ensure_ascii=False), "utf-8")
            merges = ["#version: 0.2", *(" ".join(m) for m in bpe["merges"])]  # older transformers read these two
            (folder / name / "merges.txt").write_text("\n".join(merges) + "\n", "utf-8")
    for config in folder.glob("*/config.json"):  # where a part was read from says nothing to others
        stated = json.loads(config.read_text("utf-8"))
        if stated.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(stated, indent=2) + "\n", "utf-8")
    for name in settings.get("frozen", {}):
        for weights in (folder / name).glob("*.safetensors"):
            weights.unlink()
    (folder / "unleak.json").write_text(json.dumps(settings) + "\n", "utf-8")
