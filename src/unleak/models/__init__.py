"""Loading pipelines: the embedded models by name, a folder, or a model of the hub.

Only safetensors are loaded and never remote code. The network is used only for a hub id that the user names.
"""

from __future__ import annotations

import json
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

from unleak.errors import BadInput, UnsupportedModel

EMBEDDED = ("emoji-sd",)
SETTINGS = "unleak.json"  #: in a model's folder: keyword arguments that the model is meant to be called with
_WEIGHTS = (".safetensors",)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model; it also loads with plain `from_pretrained(folder)`."""
    return Path(str(files("unleak.models") / name))


def load(model: str | Path = "emoji-sd", dtype: Any = None, device: str | None = None) -> Any:
    """A `diffusers` pipeline from an embedded name, a folder or a hub id (`owner/name`).

    `dtype` defaults to float32 on CPU, float16 on an accelerator. Raises BadInput for a folder that is no
    pipeline, has no weights or only pickled ones; UnsupportedModel if diffusers cannot build it.
    """
    import torch
    from diffusers import DiffusionPipeline

    where = _locate(model)
    quiet()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.float16)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated")  # older versions know no other name
            pipe = DiffusionPipeline.from_pretrained(where, torch_dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as e:
        raise UnsupportedModel(f"diffusers could not load {str(model)!r}: {e}") from e
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def quiet() -> None:
    """Turn off the loading chatter of diffusers and transformers (bars and notices), not their errors."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _locate(model: str | Path) -> str:
    """A checked folder, or the hub id unchanged."""
    if str(model) in EMBEDDED:
        folder = embedded_folder(str(model))
        if not (folder / "model_index.json").is_file():
            raise BadInput(f"the files of {model!r} are not installed in {folder}; reinstall unleak")
        return str(folder)
    folder = Path(model).expanduser()
    if not folder.exists():
        text = str(model)
        if text.count("/") == 1 and not text.startswith((".", "/", "~")):
            return text
        raise BadInput(f"no model {text!r}: give a pipeline folder, a hub id like owner/name, or one of {EMBEDDED}")
    if not (folder / "model_index.json").is_file():
        raise BadInput(f"{folder} has no model_index.json: give the folder that save_pretrained() wrote")
    for part in json.loads((folder / "model_index.json").read_text("utf-8")):
        _check_weights(folder / part)
    return str(folder)


def _check_weights(part: Path) -> None:
    """Every part with a model config must have its weights as safetensors."""
    config = part / "config.json"
    if not config.is_file():
        return
    names = [f.name for f in part.iterdir()]
    if any(n.endswith(_WEIGHTS) for n in names):
        return
    if any(n.endswith(_PICKLES) for n in names):
        raise BadInput(
            f"{part} holds only pickled weights, which can run code when loaded; convert them: load the model "
            "where you trust it and call save_pretrained(folder, safe_serialization=True)"
        )
    raise BadInput(f"{part} has a config but no weights (*.safetensors); the folder is incomplete")


def settings(model: str | Path) -> dict[str, Any]:
    """The call arguments that a model's folder recommends (`unleak.json`), or none."""
    folder = embedded_folder(str(model)) if str(model) in EMBEDDED else Path(model).expanduser()
    file = folder / SETTINGS
    return json.loads(file.read_text("utf-8"))["call"] if file.is_file() else {}
