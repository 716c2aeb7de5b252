"""Pipelines that read a Qwen language model: Qwen-Image, FLUX.2 klein, Z-Image."""

import diffusers
import transformers

from conformance.families.flux2 import flux2_autoencoder, flux2_transformer
from conformance.family import Family
from conformance.parts import autoencoder_16, flow, lively, qwen3, qwen_tokenizer, sharp

VISION = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


def qwen25_vl(tokenizer, layers: int = 2) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of a few layers with a vision tower of one."""
    text = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in VISION.items()}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return lively(transformers.Qwen2_5_VLForConditionalGeneration(config))


def qwen_autoencoder() -> diffusers.AutoencoderKLQwenImage:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def _qwen_image():
    tokenizer = qwen_tokenizer(VISION.values())
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.QwenImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=qwen_autoencoder(),
        text_encoder=qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=sharp(lively(transformer)),
    )


def _klein():
    tokenizer = qwen_tokenizer()
    return diffusers.Flux2KleinPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=flux2_autoencoder(),
        text_encoder=qwen3(tokenizer, layers=28, model=transformers.Qwen3ForCausalLM, hidden=16),
        tokenizer=tokenizer,
        transformer=flux2_transformer(text=3 * 16, guidance=False),
    )


def _z_image():
    tokenizer = qwen_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    return diffusers.ZImagePipeline(
        scheduler=flow(shift=3.0),
        vae=autoencoder_16(),
        text_encoder=qwen3(tokenizer),
        tokenizer=tokenizer,
        transformer=sharp(transformer),
    )


FAMILIES = [
    Family("qwen-image", _qwen_image, {"negative_prompt": " ", "true_cfg_scale": 4.0}),
    Family("flux.2-klein", _klein),
    Family("z-image", _z_image),
]
