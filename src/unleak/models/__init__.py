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

EMBEDDED = ("emoji-sd", "emoji-flux")
INDEX = "model_index.json"
TEXT = ("tokenizer", "text_encoder")  #: how the parts that read prompts are called in every pipeline
SETTINGS = "unleak.json"  #: in a model's folder: how the model is meant to be called
_WEIGHTS = (".safetensors",)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model; it also loads with plain `from_pretrained(folder)`."""
    return Path(str(files("unleak.models") / name))


def load(model: str | Path = "emoji-sd", dtype: Any = None, device: str | None = None, text_only: bool = False) -> Any:
    """A `diffusers` pipeline from an embedded name, a folder or a hub id (`owner/name`).

    `dtype` defaults to float32 on CPU, float16 on an accelerator. `text_only` leaves out everything but tokenizers and
    text encoders: the pipeline can encode prompts and draw nothing. Raises BadInput for a folder that is no
    pipeline, has no weights or only pickled ones; UnsupportedModel if the hub cannot be reached or diffusers
    cannot build it.
    """
    where = _locate(model)
    import torch
    from diffusers import DiffusionPipeline

    quiet()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.float16)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated")  # older versions know no other name
            parts = [name for name, value in DiffusionPipeline.load_config(where).items() if isinstance(value, list)]
            absent = {part: None for part in parts if text_only and not part.startswith(TEXT)}
            pipe = DiffusionPipeline.from_pretrained(where, torch_dtype=dtype, use_safetensors=True, **absent)
    except Exception as e:  # whatever a broken or foreign model makes diffusers raise
        if "trust_remote_code" in str(e):
            raise UnsupportedModel(f"{str(model)!r} needs code of its own, which unleak never runs") from e
        raise UnsupportedModel(f"diffusers could not load {str(model)!r}: {type(e).__name__}: {e}") from e
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
    """A checked folder, or a hub id that is cached or can be reached."""
    if str(model) in EMBEDDED:
        folder = embedded_folder(str(model))
        if not (folder / INDEX).is_file():
            raise BadInput(f"the files of {model!r} are not installed in {folder}; reinstall unleak")
        return str(folder)
    folder, text = Path(model).expanduser(), str(model)
    if not text or not folder.exists():
        if text.count("/") != 1 or text.startswith((".", "/", "~")):
            raise BadInput(f"no model {text!r}: give a pipeline folder, a hub id like owner/name, or one of {EMBEDDED}")
        check_hub(text)
        return text
    if not (folder / INDEX).is_file():
        raise BadInput(f"{folder} has no {INDEX}: give the folder that save_pretrained() wrote")
    for part in _read(folder / INDEX):
        check_weights(folder / part)
    return str(folder)


def check_hub(name: str, file: str = INDEX) -> None:
    """One short question to the hub unless the model (its `file`) is cached: the loader itself would ask many times.

    Raises BadInput for a text that is no id, UnsupportedModel where there is no such model or no hub.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        if not isinstance(try_to_load_from_cache(name, file), str):
            HfApi().model_info(name, timeout=10)
    except HFValidationError:
        raise BadInput(f"{name!r} is neither a folder nor a hub id like owner/name") from None
    except RepositoryNotFoundError as e:
        raise UnsupportedModel(
            f"no folder {name!r}, and the hub shows no such model: misspelt, private or gated?"
        ) from e
    except Exception as e:  # every HTTP library has its own
        raise UnsupportedModel(
            f"no folder {name!r}, and the hub cannot be asked ({_line(e)}); give a folder with the model"
        ) from e


def _line(e: BaseException) -> str:
    return str(e).strip().split("\n")[0].rstrip(".") or type(e).__name__


def _read(file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder. Raises BadInput."""
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise BadInput(f"{file} cannot be read as JSON ({_line(e)}): save the model again") from e
    if not isinstance(data, dict):
        raise BadInput(f"{file} holds no JSON object: save the model again")
    return data


def check_weights(part: Path) -> None:
    """A folder with a model config must have its weights as safetensors. Raises BadInput."""
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
    file, data = _settings(model)
    call = data.get("call")
    if not isinstance(call, dict):
        raise BadInput(f'{file} must look like {{"call": {{"num_inference_steps": 20}}}}')
    return call


def edit_settings(model: str | Path) -> dict[str, Any]:
    """The options of `unleak.edit` that a model's folder recommends, or none: each method takes those it knows.

    Under a preset's name stand those for it alone: ``{"steps": 15, "ale": {"target_guidance": 2.0}}``.
    """
    file, data = _settings(model)
    options = data.get("edit", {})
    if not isinstance(options, dict):
        raise BadInput(f'{file} must look like {{"edit": {{"steps": 15}}}}')
    return options


def guidance(model: str | Path) -> str:
    """The call argument that sets how strong guidance is: what the folder's `unleak.json` says, else `guidance_scale`.

    In FLUX's pipeline `guidance_scale` is an input of distilled models, and `true_cfg_scale` is guidance.
    """
    file, data = _settings(model)
    name = data.get("guidance", "guidance_scale")
    if not isinstance(name, str):
        raise BadInput(f'{file} must name an argument of the pipeline, like {{"guidance": "true_cfg_scale"}}')
    return name


def _settings(model: str | Path) -> tuple[Path, dict[str, Any]]:
    folder = embedded_folder(str(model)) if str(model) in EMBEDDED else Path(model).expanduser()
    file = folder / SETTINGS
    return file, _read(file) if file.is_file() else {"call": {}}
