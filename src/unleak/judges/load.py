"""A judge from a `transformers` model that the user names by folder or hub id.

What the model can do is read from its config: the class that wrote it (`architectures`), looked up in the registries
of transformers' auto classes. Weights are safetensors, and no code of the model's own is run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from unleak.errors import BadInput, UnleakError, UnsupportedModel
from unleak.judges import Judge
from unleak.models import check_hub, check_weights, quiet


def load_judge(where: str | Path, device: str | None = None) -> Judge:
    """The judge that a model makes: a detector, a question answerer, or an image-text comparer.

    Raises:
        BadInput: no such folder or id; no safetensors in it.
        UnsupportedModel: transformers cannot load it, or it can do none of the three.
    """
    source = _locate(where)
    import torch
    from transformers import AutoConfig, AutoProcessor

    quiet()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        auto, make = _ability(config, str(where))
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        model = auto.from_pretrained(source, trust_remote_code=False, use_safetensors=True)
    except UnleakError:
        raise
    except Exception as e:  # whatever a broken or foreign model makes transformers raise
        line = str(e).strip().split("\n")[0]
        raise UnsupportedModel(
            f"transformers could not load the judge {str(where)!r}: {type(e).__name__}: {line}"
        ) from e
    return make(model.to(device), processor, str(where))


def _ability(config: Any, where: str) -> tuple[Any, Callable[..., Judge]]:
    """The auto class that loads this model, and the judge that it makes."""
    import transformers

    from unleak.judges.clip import ClipJudge
    from unleak.judges.detector import DetectorJudge
    from unleak.judges.vqa import VqaJudge

    abilities: dict[Any, Callable[..., Judge]] = {
        transformers.AutoModelForZeroShotObjectDetection: DetectorJudge,
        transformers.AutoModelForVisualQuestionAnswering: VqaJudge,
        transformers.AutoModelForZeroShotImageClassification: ClipJudge,
    }
    written = set(config.architectures or ())
    for auto, make in abilities.items():
        known = auto._model_mapping.get(type(config), ())
        if written & {cls.__name__ for cls in (known if isinstance(known, tuple) else (known,))}:
            return auto, make
    raise UnsupportedModel(
        f"{where!r} ({', '.join(sorted(written)) or type(config).__name__}) is no judge: give a zero-shot object "
        "detector, a visual question answering model or a zero-shot image classifier of transformers"
    )


def _locate(where: str | Path) -> str:
    folder, text = Path(where).expanduser(), str(where)
    if not text or not folder.exists():
        if text.count("/") != 1 or text.startswith((".", "/", "~")):
            raise BadInput(f"no judge {text!r}: give the folder of a transformers model, or a hub id like owner/name")
        check_hub(text, "config.json")
        return text
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} has no config.json: give the folder that save_pretrained() wrote")
    check_weights(folder)
    return str(folder)
