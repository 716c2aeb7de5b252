"""Cost of regional prompts and maps where text and image attend jointly, as ratios to the bare pipeline.

FLUX's shapes at 1024 x 1024 with random weights: 4096 image tokens and 512 text rows, one double and two single blocks
at full width (3072, 24 heads). A run is one call of the denoiser; the text encoders are small. Variants are
interleaved; on a CPU times are the process's own, so that a busy machine does not count. `--small` checks the script in
seconds.

    python benchmarks/joint.py [--dtype bf16] [--repeats 3] [--json FILE] [--small]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from overhead import Variant, about, measure, options_of, summarise, table
from unleak.engine.session import attach
from unleak.regions.methods.rgbcam import RGBCAM
from unleak.words.methods.maps import Maps

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny import autoencoder, clip_tokenizer, t5_tokenizer

ITEMS = ("red mouse", "blue cup", "furry dog", "golden key", "old car", "big horse", "small apple", "white bridge")
PROMPT = " and ".join(f"a {item}" for item in ITEMS)


def masks() -> torch.Tensor:
    """Eight regions, two rows of four, with a background between them: bool [8, 64, 64]."""
    stack = torch.zeros(8, 64, 64, dtype=torch.bool)
    for k, mask in enumerate(stack):
        y, x = 32 * (k // 4), 16 * (k % 4)
        mask[y + 2 : y + 30, x + 2 : x + 14] = True
    return stack


VARIANTS = (
    Variant("bare", lambda pipe: contextlib.nullcontext()),
    Variant("regional prompts, 8 regions", lambda pipe: attach(pipe, RGBCAM(ITEMS, masks(), rest="neutral")), 1.15),
    Variant("maps of 8 items (unleak.Maps)", lambda pipe: attach(pipe, Maps(",".join(ITEMS))), 1.02),
)


def build(small: bool, dtype: torch.dtype, device: str) -> Any:
    """A FLUX pipeline with random weights; its denoiser has FLUX's width unless `small`."""
    first, second = clip_tokenizer(), t5_tokenizer()
    clip = transformers.CLIPTextConfig(
        vocab_size=len(first), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        bos_token_id=first.bos_token_id, eos_token_id=first.eos_token_id, pad_token_id=first.pad_token_id,
    )  # fmt: skip
    t5 = transformers.T5Config(
        vocab_size=len(second), d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4, is_encoder_decoder=False,
    )  # fmt: skip
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16 if small else 128,
        num_attention_heads=4 if small else 24, joint_attention_dim=64, pooled_projection_dim=32,
        guidance_embeds=True, axes_dims_rope=(4, 6, 6) if small else (16, 56, 56),
    )  # fmt: skip
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift=0.0),
        text_encoder=transformers.CLIPTextModel(clip),
        tokenizer=first,
        text_encoder_2=transformers.T5EncoderModel(t5),
        tokenizer_2=second,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


def calls(pipe: Any, small: bool) -> dict[str, Callable[[], Any]]:
    """One call of the denoiser under every variant."""
    side, rows = (256, 128) if small else (1024, 512)

    def run(variant: Variant) -> None:
        with variant.open(pipe), torch.no_grad():
            pipe(
                PROMPT, num_inference_steps=1, height=side, width=side, max_sequence_length=rows, output_type="latent",
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip

    return {variant.name: partial(run, variant) for variant in VARIANTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = options_of(parser, repeats=3)
    torch.manual_seed(0)
    pipe = build(options.small, getattr(torch, options.torch_dtype), options.device)
    found = measure(calls(pipe, options.small), options.repeats, options.device)
    summary = summarise(found, VARIANTS[0].name)
    rows = [{"variant": v.name, "budget": v.budget, "memory_budget": v.memory, **summary[v.name]} for v in VARIANTS]
    print(table(rows))
    if options.json:
        made = {"schema": "unleak/overhead/1", **about(options), "rows": rows, "measured": found}
        options.json.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
