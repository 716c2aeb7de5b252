"""The laws hold however a pipeline is run: with a LoRA, offloaded, cast layer by layer, under autocast, on a backend.

One family of each way in which text reaches a picture, each condition on each.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import accelerate
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from conformance import family
from unleak.core.anatomy import Anatomy
from unleak.errors import UnleakError
from unleak.report.verbs import VERBS, Trial

NAMES = ("sd1", "pixart-sigma", "sd3.5", "flux.1", "qwen-image")
CORE = ("sd1", "flux.1")
"""Those that run with every test; the others carry a marker."""
SHOWN = ("Maps", "Patch", "Boost", "Guard")
"""A verb that looks, one that changes text, one that changes attention, one that adds rows to the batch."""


def lora(pipe: Any) -> Any:
    """An adapter on every query projection of the denoiser, with weights that act."""
    import peft

    denoiser = Anatomy.of(pipe).denoiser
    if not hasattr(denoiser, "add_adapter"):
        pytest.skip("this denoiser takes no adapters")
    denoiser.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    return contextlib.nullcontext()


def offload(pipe: Any) -> Any:
    """Weights stand elsewhere until a layer runs, as in sequential offload."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(part, execution_device=torch.device("cpu"))
    return contextlib.nullcontext()


def layerwise(pipe: Any) -> Any:
    """Weights of the denoiser are kept in 8 bits and computed with in 32."""
    Anatomy.of(pipe).denoiser.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    return contextlib.nullcontext()


def fused(pipe: Any) -> Any:
    """Queries, keys and values come from one projection."""
    denoiser = Anatomy.of(pipe).denoiser
    if not hasattr(denoiser, "fuse_qkv_projections"):
        pytest.skip("this denoiser has no fused projections")
    denoiser.fuse_qkv_projections()
    return contextlib.nullcontext()


def autocast(pipe: Any) -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def backend(name: AttentionBackendName) -> Callable[[Any], Any]:
    return lambda pipe: attention_backend(name)


CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "lora": lora,
    "offload": offload,
    "layerwise casting": layerwise,
    "fused projections": fused,
    "autocast": autocast,
    "backend native": backend(AttentionBackendName.NATIVE),
    "backend native math": backend(AttentionBackendName._NATIVE_MATH),
}
NEEDS = {"lora": "peft"}


@pytest.fixture(params=CONDITIONS)
def condition(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    if (package := NEEDS.get(request.param)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    return CONDITIONS[request.param]


def states(trial: Trial) -> dict[str, str]:
    """What becomes of each verb: that it works, or the kind of its refusal."""
    found = {}
    for verb in VERBS:
        if verb.name in SHOWN:
            try:
                verb.show(trial)
                found[verb.name] = "yes"
            except UnleakError as error:
                found[verb.name] = type(error).__name__
    return found


@cache
def as_it_is(name: str) -> dict[str, str]:
    chosen = family(name)
    return states(Trial(chosen.pipe(), chosen.settings()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CORE else pytest.mark.conformance) for name in NAMES]
)
def test_verbs_act_are_idle_at_strength_0_and_leave_nothing(name: str, condition: Callable[[Any], Any]) -> None:
    chosen = family(name)
    pipe = chosen.pipe()
    with condition(pipe):
        trial = Trial(pipe, chosen.settings())
        try:
            bare = trial.bare
        except AttributeError as error:
            pytest.skip(f"diffusers itself cannot run it so: {error}")
        assert states(trial) == as_it_is(name)
        assert torch.equal(Trial(pipe, trial.call).bare, bare)
