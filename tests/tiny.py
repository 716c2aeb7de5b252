"""Tiny pipelines of the real diffusers classes: random weights, built in about a second, no network.

``tiny("sd1")`` returns a `StableDiffusionPipeline` laid out like Stable Diffusion 1.x; "sd2", "sdxl", "sd3"
and "flux" likewise. Equal calls give equal weights. ``save_tiny(name, folder)`` writes one that
`DiffusionPipeline.from_pretrained` reads back. The images mean nothing; shapes, names and control flow are
real.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import diffusers
import torch
import transformers

NAMES = ("sd1", "sd2", "sdxl", "sd3", "flux")

_CORPUS = """
a an the and or of on in at by to with next near left right under over big small old new red blue
green yellow white black brown pink wooden furry golden striped mouse laptop cat dog bat ball
cricket bow arrow glasses wine palm tree chicken farm cup tea key piano note book pool table hot
bridge gate city horse zebra bus car house mountain fall squirrel lion burger photo painting picture
animal fruit apple pepper diamond person woman man boy girl standing sitting running eating wearing
hat shirt park street beach sky night day business podcast limits
"""
WORDS = _CORPUS.split()


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, in CLIP's order ("!" first)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i, _ in enumerate(rest)]


def _merges(words: list[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair merges of a word list, most frequent first, ties in alphabetical order."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = Counter(pair for word in pieces for pair in pairwise(word))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [word[i] + word[i + 1]]
                i += 1
    return merges


def clip_tokenizer(pad: str = "<|endoftext|>") -> transformers.CLIPTokenizer:
    """Byte-level BPE with `</w>`; frequent words are one token, rare ones split."""
    alphabet, merges = _byte_alphabet(), _merges(WORDS, 200)
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges)]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    made = transformers.CLIPTokenizer(vocab, merges, pad_token=pad, model_max_length=77)
    assert len(set(made("a red zebra").input_ids)) >= 5, "the vocabulary did not reach the tokenizer"
    return made


def t5_tokenizer() -> transformers.T5Tokenizer:
    """Unigram pieces with `▁`: small words and every other noun are whole, the rest is spelled in letters."""
    whole = [(f"▁{word}", -6.0 - 0.01 * i) for i, word in enumerate([*WORDS[:33], *WORDS[33::2]])]
    letters = [(chr(c), -12.0 - 0.01 * i) for i, c in enumerate(range(33, 127))]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return transformers.T5Tokenizer([*special, *whole, *letters], extra_ids=0, model_max_length=512)


def clip_encoder(tokenizer, act: str = "quick_gelu", project: int | None = None):
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=project or 32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.CLIPTextModelWithProjection if project else transformers.CLIPTextModel
    return lively(model(config))


def t5_encoder(tokenizer):
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return lively(transformers.T5EncoderModel(config))


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """Weights of unit gain, so that rows differ and depend on their context."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    return module.eval()


def sharp(module: torch.nn.Module, gain: float = 4.0) -> torch.nn.Module:
    """Larger queries and keys: flat attention would hide mistakes."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            owner = name.rsplit(".", 2)[-2] if name.count(".") > 1 else ""
            if owner in {"to_q", "to_k", "add_q_proj", "add_k_proj"} and parameter.ndim == 2:
                parameter.mul_(gain)
            if owner in {"norm_q", "norm_k", "norm_added_q", "norm_added_k"}:
                parameter.mul_(gain / 2)
    return module.eval()


def autoencoder(shift: float | None = None):
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=128,
        shift_factor=shift,
    ).eval()


def ddim():
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def sd_unet(**changes):
    """Four levels of which three have cross-attention: the block names of Stable Diffusion 1.x and 2.x."""
    config = dict(  # noqa: C408
        sample_size=16,
        block_out_channels=(32,) * 4,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return sharp(diffusers.UNet2DConditionModel(**{**config, **changes}))


def _stable_diffusion(unet, text_encoder, tokenizer):
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd1():
    tokenizer = clip_tokenizer()
    return _stable_diffusion(sd_unet(), clip_encoder(tokenizer), tokenizer)


def _sd2():
    tokenizer = clip_tokenizer(pad="!")
    unet = sd_unet(attention_head_dim=(2, 4, 8, 8), use_linear_projection=True)
    return _stable_diffusion(unet, clip_encoder(tokenizer, act="gelu"), tokenizer)


def _sdxl():
    first, second = clip_tokenizer(), clip_tokenizer(pad="!")
    unet = sd_unet(
        block_out_channels=(32,) * 3,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(first),
        text_encoder_2=clip_encoder(second, act="gelu", project=16),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    )


def _sd3():
    first, second, third = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=32,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    t5 = t5_encoder(third)
    t5_wide = transformers.T5Config(**{**t5.config.to_dict(), "d_model": 64})
    return diffusers.StableDiffusion3Pipeline(
        transformer=sharp(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift=0.06),
        text_encoder=clip_encoder(first, project=16),
        tokenizer=first,
        text_encoder_2=clip_encoder(second, act="gelu", project=16),
        tokenizer_2=second,
        text_encoder_3=lively(transformers.T5EncoderModel(t5_wide)),
        tokenizer_3=third,
    )


def _flux():
    first, second = clip_tokenizer(), t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=autoencoder(shift=0.06),
        text_encoder=clip_encoder(first),
        tokenizer=first,
        text_encoder_2=t5_encoder(second),
        tokenizer_2=second,
        transformer=sharp(transformer),
    )


_BUILDERS = {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}


def tiny(name: str, seed: int = 0) -> diffusers.DiffusionPipeline:
    """A fresh tiny pipeline; `name` is one of `NAMES`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = _BUILDERS[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write a tiny pipeline as a diffusers folder (safetensors) and return the folder."""
    tiny(name, seed).save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def draw(pipe, prompt="a red mouse and a laptop", *, seeds=(0,), steps=3, size=(64, 64), **kwargs) -> torch.Tensor:
    """Final latents of a short run, one CPU generator per image; `size` is (height, width) in pixels."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    if "max_sequence_length" not in kwargs and hasattr(pipe, "transformer"):
        kwargs["max_sequence_length"] = 32
    return pipe(
        prompt,
        num_inference_steps=steps,
        height=size[0],
        width=size[1],
        generator=generators if len(generators) > 1 else generators[0],
        output_type="latent",
        **kwargs,
    ).images


def latents(seed: int = 5) -> torch.Tensor:
    """[1, 4, 8, 12]: what a picture of 64 x 96 pixels is to a tiny Stable Diffusion."""
    return torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(seed))
