"""A judge by its name, or from a `transformers` model that the user names by folder or hub id.

What the model can do is read from its config: the class that wrote it (`architectures`), looked up in the registries
of transformers' auto classes. Weights are safetensors, and no code of the model's own is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from unleak.errors import BadInput, UnleakError, UnsupportedModel
from unleak.judges import Judge
from unleak.models import check_hub, check_weights, folder_of, quiet

JUDGES: dict[str, tuple[str, str]] = {
    "glyphs": ("unleak.judges.glyphs", "glyph_judge"),
}
"""Judges that need no model of the user's: name -> module and the function that makes one. A new one is one line."""


def load_judge(where: str | Path, device: str | None = None) -> Judge:
    """The judge of a name in `JUDGES`, or the one that a model makes: a detector, a question answerer, or an image-text
    comparer. A folder of the same name is meant with a path: `./glyphs`.

    Raises:
        BadInput: no such name, folder or id; no safetensors in it.
        UnsupportedModel: transformers cannot load it, or it can do none of the three.
    """
    if str(where) in JUDGES:
        module, function = JUDGES[str(where)]
        judge: Judge = getattr(import_module(module), function)()
        return judge
    from unleak.judges.clip import ClipJudge
    from unleak.judges.detector import DetectorJudge
    from unleak.judges.vqa import VqaJudge

    abilities: dict[str, Callable[..., Judge]] = {
        "AutoModelForZeroShotObjectDetection": DetectorJudge,
        "AutoModelForVisualQuestionAnswering": VqaJudge,
        "AutoModelForZeroShotImageClassification": ClipJudge,
    }
    description = "a zero-shot object detector, a visual question answering model or a zero-shot image classifier"
    model, processor, ability = load_model(where, list(abilities), "judge", description, device)
    return abilities[ability](model, processor, str(where))


def load_model(
    where: str | Path, abilities: Sequence[str], role: str, description: str, device: str | None = None
) -> tuple[Any, Any, str]:
    """A model with its processor, and which ability it has.

    Args:
        abilities: names of classes of transformers that load a model: auto classes, or model classes.
        role, description: what the model is to be, for messages.

    Raises BadInput and UnsupportedModel as `load_judge` does.
    """
    source = locate(where, role)
    import torch
    import transformers

    quiet()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        ability = _ability(config, abilities)
        if ability is None:
            written = ", ".join(config.architectures or ()) or type(config).__name__
            raise UnsupportedModel(f"{str(where)!r} ({written}) is no {role}: give {description} of transformers")
        processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False)
        loader = getattr(transformers, ability)
        model = loader.from_pretrained(source, use_safetensors=True, **_no_code(loader))
    except UnleakError:
        raise
    except Exception as e:  # whatever a broken or foreign model makes transformers raise
        line = str(e).strip().split("\n")[0]
        raise UnsupportedModel(
            f"transformers could not load the {role} {str(where)!r}: {type(e).__name__}: {line}"
        ) from e
    return model.to(device).eval(), processor, ability


def _ability(config: Any, abilities: Sequence[str]) -> str | None:
    """The first of `abilities` that the class which wrote this model has."""
    import transformers

    written = set(config.architectures or ())
    for name in abilities:
        known = getattr(getattr(transformers, name), "_model_mapping", {}).get(type(config), ())
        if written & {name, *(cls.__name__ for cls in (known if isinstance(known, tuple) else (known,)))}:
            return name
    return None


def _no_code(loader: Any) -> dict[str, Any]:
    """Only auto classes would run a model's own code, and only they take the word."""
    return {"trust_remote_code": False} if hasattr(loader, "_model_mapping") else {}


def locate(where: str | Path, role: str = "model") -> str:
    """A checked folder, or a hub id that is cached or can be reached. Raises BadInput, UnsupportedModel."""
    folder, text = folder_of(where), str(where)
    if not text or not os.path.exists(folder):  # noqa: PTH110 (also of what can be no path)
        if text.count("/") != 1 or text.startswith((".", "/", "~")):
            named = f", or one of {', '.join(JUDGES)}" if role == "judge" else ""
            raise BadInput(
                f"no {role} {text!r}: give the folder of a transformers model, a hub id like owner/name{named}"
            )
        check_hub(text, "config.json")
        return text
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} has no config.json: give the folder that save_pretrained() wrote")
    check_weights(folder)
    return str(folder)
