"""Loading pipelines: the embedded models by name, a folder, or a model of the hub.

Only safetensors are loaded and never remote code. The network is used only for a hub id that the user names.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from unleak.errors import BadInput, UnleakError, UnsupportedModel, choose
from unleak.models import frozen
from unleak.models.frozen import Frozen
from unleak.models.shipped import REMEDY, shipped
from unleak.saved import Name, Number, Rule, Saved, conform, parse_json, read_document

EMBEDDED = ("emoji-sd", "emoji-flux", "emoji-natural")
INDEX = "model_index.json"
TEXT = ("tokenizer", "text_encoder")  #: how the parts that read prompts are called in every pipeline
SETTINGS = "unleak.json"  #: in a model's folder: how the model is meant to be called
OFFLOAD = ("none", "model", "sequential")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16",
          "float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}  # fmt: skip
"""Names of a dtype -> its name in torch."""
_WEIGHTS = (".safetensors",)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model; it also loads with plain `from_pretrained(folder)`."""
    return shipped(f"models/{name}")


def load(
    model: str | Path = "emoji-sd",
    dtype: Any = None,
    device: str | None = None,
    offload: str = "none",
    text_only: bool = False,
) -> Any:
    """A `diffusers` pipeline from an embedded name, a folder or a hub id (`owner/name`).

    Args:
        dtype: a torch dtype or one of `DTYPES`. Default: float32 on a CPU; on an accelerator bfloat16 for flow models,
            whose activations float16 cannot hold, and float16 for others.
        device: as torch writes it, such as "cuda:1". Default: CUDA where there is one, else the CPU.
        offload: one of `OFFLOAD`: with "model" only the part that works just now is on the device, with "sequential"
            only the layer, which is slower and needs least memory.
        text_only: leave out everything but tokenizers and text encoders: the pipeline can encode prompts and draw
            nothing.

    Raises:
        BadInput: the folder is no pipeline, has no weights or only pickled ones; there is no such dtype or device;
            there is nothing to offload from. UnsupportedModel: the hub cannot be reached, or diffusers cannot build it.
    """
    where = _locate(model)
    device, dtype = find_device(device), find_dtype(dtype)
    choose("offload", offload, OFFLOAD)
    if offload != "none" and device == "cpu":
        raise BadInput(
            f"offload={offload!r} spares the memory of an accelerator, and the device is the CPU: leave it out"
        )
    import torch
    from diffusers import DiffusionPipeline

    quiet()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated")  # older versions know no other name
            index = DiffusionPipeline.load_config(where)
            parts = [name for name, value in index.items() if isinstance(value, list)]
            absent = {part: None for part in parts if text_only and not part.startswith(TEXT)}
            given = frozen_parts(where, index)
            if dtype is None:
                reduced = torch.bfloat16 if device != "cpu" and is_flow(_scheduler(where)) else torch.float16
                dtype = torch.float32 if device == "cpu" else reduced
            pipe = DiffusionPipeline.from_pretrained(where, torch_dtype=dtype, use_safetensors=True, **absent, **given)
    except UnleakError:
        raise
    except Exception as e:  # whatever a broken or foreign model makes diffusers raise
        if "trust_remote_code" in str(e):
            raise UnsupportedModel(f"{str(model)!r} needs code of its own, which unleak never runs") from e
        raise UnsupportedModel(f"diffusers could not load {str(model)!r}: {type(e).__name__}: {e}") from e
    pipe.set_progress_bar_config(disable=True)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def frozen_parts(where: str, index: dict[str, Any]) -> dict[str, Any]:
    """The parts of a folder whose weights someone else publishes, built. Raises BadInput: they are not here."""
    folder = folder_of(where)
    sources = recommended(where).frozen
    return {name: frozen.load(folder / name, index[name][1], source) for name, source in sources.items()}


def has_weights(model: str | Path) -> bool:
    """False for a folder with an index and configs and no file of weights at all; True for whatever else."""
    folder = folder_of(model)
    if str(model) in EMBEDDED or not (folder / INDEX).is_file():
        return True
    return any(file.suffix in _WEIGHTS + _PICKLES for file in folder.glob("*/*"))


def skeleton(folder: str | Path) -> Any:
    """The pipeline of a folder without its weights: every model stands on the meta device, built from its config alone.

    It tells its structure and draws nothing. Tokenizers and processors that the folder lacks are None.

    Raises:
        BadInput: the folder is no pipeline. UnsupportedModel: it needs classes that diffusers and transformers lack, or
            a config cannot be built.
    """
    import diffusers
    import torch
    import transformers

    where = folder_of(folder)
    if not (where / INDEX).is_file():
        raise BadInput(f"{where} has no {INDEX}: give the folder that save_pretrained() wrote")
    quiet()
    index = _read(where / INDEX)
    libraries = {"diffusers": diffusers, "transformers": transformers}

    def build(name: str, library: str | None, kind: str | None) -> Any:
        made = getattr(libraries.get(str(library)), str(kind), None)
        if kind is None or (made is None and not (where / name / "config.json").is_file()):
            return None
        if made is None:
            raise UnsupportedModel(f"{name} is a {kind} of {library}, which neither diffusers nor transformers has")
        if not issubclass(made, torch.nn.Module):
            return _if_there(made, where / name)
        with torch.device("meta"):
            if issubclass(made, diffusers.ModelMixin):
                return made.from_config(made.load_config(where / name))
            return made(made.config_class.from_pretrained(where / name))

    pipeline = getattr(diffusers, str(index.get("_class_name")), None)
    if pipeline is None:
        raise UnsupportedModel(f"diffusers {diffusers.__version__} has no pipeline {index.get('_class_name')!r}")
    values = {name: value for name, value in index.items() if not name.startswith("_")}
    try:
        parts = {n: build(n, *value) if isinstance(value, list) else value for n, value in values.items()}
        pipe = pipeline(**parts)
    except UnsupportedModel:
        raise
    except Exception as e:  # whatever a broken or foreign config makes the libraries raise
        raise UnsupportedModel(f"{str(where)!r} cannot be built from its configs: {type(e).__name__}: {e}") from e
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _if_there(kind: Any, folder: Path) -> Any:
    """A tokenizer, processor or scheduler out of its folder; None without the folder."""
    return kind.from_pretrained(folder) if folder.is_dir() else None


def find_device(name: str | None) -> str:
    """A device that torch has here; by default CUDA where there is one, else the CPU. Raises BadInput."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        there = 1 if device.type == "cpu" else _count(device.type)
    except (RuntimeError, ValueError, TypeError) as e:
        raise BadInput(f"no device {name!r}: write cpu, cuda, cuda:1 or mps") from e
    if (device.index or 0) >= there:
        raise BadInput(f"no device {name!r} here: torch finds {there} of {device.type!r}; leave it out, or write cpu")
    return str(device)


def _count(kind: str) -> int:
    """How many devices of a kind there are. Raises RuntimeError for a kind that torch does not know."""
    import torch

    module: Any = torch.get_device_module(kind)
    return int(module.device_count()) if module.is_available() else 0


def find_dtype(dtype: Any) -> Any:
    """The torch dtype of a name in `DTYPES`; a dtype, or None, as it is. Raises BadInput."""
    import torch

    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    return getattr(torch, DTYPES[choose("dtype", dtype, DTYPES)])


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler integrates a flow: it mixes data and noise itself, or says that flows are predicted."""
    config = scheduler.config
    mixes = hasattr(scheduler, "scale_noise") and not hasattr(scheduler, "add_noise")
    return mixes or config.get("prediction_type") == "flow_prediction" or bool(config.get("use_flow_sigmas"))


def _scheduler(where: str) -> Any:
    """The scheduler alone, by the class that the pipeline's index names."""
    import diffusers

    library, name = diffusers.DiffusionPipeline.load_config(where)["scheduler"]
    if library != "diffusers":
        raise UnsupportedModel(f"the scheduler of {where!r} is of {library}, not of diffusers: name the dtype")
    return getattr(diffusers, name).from_pretrained(where, subfolder="scheduler")


def quiet() -> None:
    """Turn off the loading chatter of diffusers and transformers (bars and notices), not their errors."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def folder_of(model: str | Path) -> Path:
    """The folder that a name may stand for; whatever the name, nothing is raised."""
    return Path(os.path.expanduser(model))  # noqa: PTH111 (Path's own raises where there is no such user)


def _locate(model: str | Path) -> str:
    """A checked folder, or a hub id that is cached or can be reached."""
    if str(model) in EMBEDDED:
        folder = embedded_folder(str(model))
        if not (folder / INDEX).is_file():
            raise BadInput(f"the weights of {model!r} are not installed: {REMEDY}")
        return str(folder)
    folder, text = folder_of(model), str(model)
    if not text or not os.path.exists(folder):  # noqa: PTH110 (also of what can be no path)
        if text.count("/") != 1 or text.startswith((".", "/", "~")):
            raise BadInput(f"no model {text!r}: give a pipeline folder, a hub id like owner/name, or one of {EMBEDDED}")
        check_hub(text)
        return text
    if not (folder / INDEX).is_file():
        raise BadInput(f"{folder} has no {INDEX}: give the folder that save_pretrained() wrote")
    for part in _read(folder / INDEX).keys() - recommended(folder).frozen.keys():
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
        data = parse_json(read_document(file))
    except ValueError as e:
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


def _is_name(text: str) -> bool:
    """Whether it names a file in the same folder."""
    return text == Path(text).name and text not in (".", "..")


@dataclass(frozen=True)
class ModelSettings:
    """What a model's `unleak.json` recommends.

    Attributes:
        call: arguments of the pipeline. guidance: the argument that sets how strong guidance is.
        edit: options of `unleak.edit`, of which each method takes those it knows. Under a preset's name stand those
            for it alone: ``{"steps": 15, "ale": {"target_guidance": 2.0}}``.
        calibration: a file in the same folder, what `unleak calibrate` made for the model called so.
        frozen: parts whose weights are not in the folder, and whose they are.
        world: the edition of `unleak.world` that the model draws, so that its judge and words are known; None: another.
    """

    call: dict[str, Any] = field(default_factory=dict)
    guidance: Annotated[Name, Rule("an argument of the pipeline", str.isidentifier)] = "guidance_scale"
    edit: dict[str, Any] = field(default_factory=dict)
    calibration: Annotated[Name, Rule("the name of a file", _is_name)] | None = None
    frozen: dict[str, Frozen] = field(default_factory=dict)
    world: Annotated[int, Rule("1 or 2, a world that ships", lambda edition: edition in (1, 2))] | None = None


def _check_call(read: ModelSettings) -> None:
    for name in read.call.keys() & _CALL.keys():
        conform(_CALL[name], read.call[name], f"call.{name}")


EXAMPLE = '{"call": {"num_inference_steps": 20}, "guidance": "true_cfg_scale", "edit": {"steps": 15}}'
FILE = Saved(
    "settings of a model", ModelSettings, f"it must look like {EXAMPLE}, and must name an argument", check=_check_call
)
_CALL: dict[str, Any] = {
    **dict.fromkeys(("num_inference_steps", "height", "width", "max_sequence_length"), Number | None),
    **dict.fromkeys(("guidance_scale", "true_cfg_scale"), float | None),
    **dict.fromkeys(("negative_prompt",), str | list[str] | None),
}
"""Arguments of many pipelines, and their types."""


def settings(model: str | Path) -> dict[str, Any]:
    """The call arguments that a model's folder recommends (`unleak.json`), or none. Raises BrokenFile."""
    return recommended(model).call


def edit_settings(model: str | Path) -> dict[str, Any]:
    """The options of `unleak.edit` that a model's folder recommends, or none. Raises BrokenFile."""
    return recommended(model).edit


def guidance(model: str | Path) -> str:
    """The call argument that sets how strong guidance is: what the folder's `unleak.json` says, else `guidance_scale`.

    In FLUX's pipeline `guidance_scale` is an input of distilled models, and `true_cfg_scale` is guidance.
    """
    return recommended(model).guidance


def calibration(model: str | Path) -> Path | None:
    """The calibration for `scan` and `guard` that comes with a model, if one does. Raises BrokenFile."""
    name = recommended(model).calibration
    return None if name is None else _settings_folder(model) / name


def world(model: str | Path) -> int | None:
    """The edition of the embedded world that a model draws; None: it draws another one. Raises BrokenFile."""
    return recommended(model).world


def recommended(model: str | Path) -> ModelSettings:
    """What the folder of a model recommends. Raises BrokenFile: its `unleak.json` cannot be used."""
    file = _settings_folder(model) / SETTINGS
    return FILE.load(file) if os.path.lexists(file) else ModelSettings()


def _settings_folder(model: str | Path) -> Path:
    return embedded_folder(str(model)) if str(model) in EMBEDDED else folder_of(model)
