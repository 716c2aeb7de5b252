"""Tiny modular pipelines: the blocks of diffusers around the parts of a tiny classic pipeline."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tiny import tiny

BLOCKS = {
    "sdxl": diffusers.StableDiffusionXLAutoBlocks,
    "sd3": diffusers.StableDiffusion3AutoBlocks,
    "flux": diffusers.FluxAutoBlocks,
}
"""The blocks that draw, by the name of the classic tiny pipeline whose parts they use."""


def modular(name: str, guider: Any = None, seed: int = 0) -> diffusers.ModularPipeline:
    """A fresh tiny modular pipeline that draws from text; `name` is one of `BLOCKS`."""
    return modular_of(tiny(name, seed), BLOCKS[name](), guider)


def modular_of(classic: Any, blocks: Any, guider: Any = None) -> diffusers.ModularPipeline:
    """The parts of a classic pipeline inside these blocks; its guider is `guider`, or plain guidance of 4."""
    pipe = blocks.get_workflow("text2image").init_pipeline()
    parts = {name: part for name, part in classic.components.items() if name in pipe.components}
    if "guider" in pipe.components:
        parts["guider"] = guider or diffusers.ClassifierFreeGuidance(guidance_scale=4.0)
    pipe.update_components(**parts)
    for block in pipe._blocks.sub_blocks.values():
        if hasattr(block, "sub_blocks") and hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
    return pipe


def guiders(stack: str = "mid_block.attentions") -> dict[str, Any]:
    """Every guider for pictures, by its class; `stack`: where layers can be left out."""
    layer = {"indices": [0], "fqn": stack}
    attention = diffusers.LayerSkipConfig(**layer, skip_attention=False, skip_attention_scores=True, skip_ff=False)
    made = [
        diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
        diffusers.ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=0),
        diffusers.AdaptiveProjectedGuidance(guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.5),
        diffusers.TangentialClassifierFreeGuidance(guidance_scale=4.0),
        diffusers.SkipLayerGuidance(
            guidance_scale=4.0,
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=1.0,
            skip_layer_config=diffusers.LayerSkipConfig(**layer, skip_ff=False),
        ),
        diffusers.PerturbedAttentionGuidance(
            guidance_scale=4.0,
            perturbed_guidance_start=0.0,
            perturbed_guidance_stop=1.0,
            perturbed_guidance_config=attention,
        ),
    ]
    return {type(guider).__name__: guider for guider in made}


def draw_modular(
    pipe: Any, prompt: Any = "a red mouse and a laptop", *, steps: int = 3, seed: int = 0, **kwargs: Any
) -> torch.Tensor:
    """Final latents of a short run at 64 x 64 pixels."""
    if "max_sequence_length" in pipe._blocks.input_names:
        kwargs.setdefault("max_sequence_length", 32)
    return pipe(
        prompt=prompt,
        num_inference_steps=steps,
        height=64,
        width=64,
        generator=torch.Generator("cpu").manual_seed(seed),
        **{"output_type": "latent", "output": "images", **kwargs},
    )
