"""Pipelines that read a Qwen3-VL: Krea 2, Ideogram 4, JoyImage, Qwen-Image 2.1, NucleusMoE, DreamLite, FIBO 2."""

import diffusers
import torch
import transformers

from conformance.families.flux2 import flux2_autoencoder
from conformance.families.llm import without_videos
from conformance.families.qwen import VISION, qwen_autoencoder
from conformance.families.t5_more import wan_autoencoder
from conformance.family import Family
from conformance.parts import flow, lively, qwen_tokenizer, sharp


def qwen3_vl(tokenizer, layers: int = 3, hidden: int = 32, model: type = transformers.Qwen3VLForConditionalGeneration):
    """A Qwen3-VL of `layers` layers with a vision tower of one."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": hidden,
        "patch_size": 14,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in VISION.items()}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    return lively(model(config))


def qwen3_vl_processor(tokenizer):
    """Pictures become patches of 14 pixels, joined two by two."""
    images = transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
    return without_videos(transformers.Qwen3VLProcessor, tokenizer, images)


def _krea2():
    """Twelve layers of the encoder are fused inside the denoiser."""
    tokenizer = qwen_tokenizer(VISION.values())
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=32,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.Krea2Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=qwen_autoencoder(),
        text_encoder=qwen3_vl(tokenizer, model=transformers.Qwen3VLModel),
        tokenizer=tokenizer,
        transformer=sharp(lively(transformer)),
        text_encoder_select_layers=(1, 2, 3),
    )


def _ideogram4():
    """A second denoiser draws what the text does not say."""
    tokenizer = qwen_tokenizer(VISION.values())

    def denoiser():
        return sharp(
            lively(
                diffusers.Ideogram4Transformer2DModel(
                    in_channels=16,
                    num_layers=2,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    intermediate_size=32,
                    adaln_dim=16,
                    llm_features_dim=13 * 16,
                    mrope_section=(4, 2, 2),
                )
            )
        )

    return diffusers.Ideogram4Pipeline(
        scheduler=flow(),
        vae=flux2_autoencoder(),
        text_encoder=qwen3_vl(tokenizer, layers=36, hidden=16, model=transformers.Qwen3VLModel),
        tokenizer=tokenizer,
        transformer=denoiser(),
        unconditional_transformer=denoiser(),
    )


def _joyimage():
    tokenizer = qwen_tokenizer(VISION.values())
    transformer = diffusers.JoyImageEditTransformer3DModel(
        in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=32, num_layers=2, rope_dim_list=[4, 6, 6]
    )
    pipe = diffusers.JoyImageEditPipeline(
        scheduler=flow(shift=4.0),
        vae=wan_autoencoder(),
        text_encoder=qwen3_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=sharp(lively(transformer)),
        processor=qwen3_vl_processor(tokenizer),
    )
    sizes = pipe.vae_image_processor
    sizes.get_default_height_width = lambda image, height=None, width=None: (64, 96)  # its buckets hold 1024 x 1024
    return pipe


def _qwen_image21():
    tokenizer = qwen_tokenizer(VISION.values())
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    return diffusers.QwenImage21Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=qwen3_vl(tokenizer),
        processor=qwen3_vl_processor(tokenizer),
        transformer=sharp(lively(transformer)),
    )


def experts(module):
    """Weights of experts, which the class leaves uninitialised."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 3:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    return module


def _nucleus():
    tokenizer = qwen_tokenizer(VISION.values())
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
        dense_moe_strategy="none",
    )
    return diffusers.NucleusMoEImagePipeline(
        transformer=sharp(lively(experts(transformer))),
        scheduler=flow(use_dynamic_shifting=True),
        vae=qwen_autoencoder(),
        text_encoder=qwen3_vl(tokenizer, layers=8),
        processor=qwen3_vl_processor(tokenizer),
    )


def _dreamlite():
    tokenizer = qwen_tokenizer(VISION.values())
    unet = diffusers.DreamLiteUNetModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=8,
        ff_mult=2,
    )
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=4
    )
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(2.0)  # its pictures would be flat
    return diffusers.DreamLitePipeline(
        text_encoder=qwen3_vl(tokenizer),
        tokenizer=tokenizer,
        processor=qwen3_vl_processor(tokenizer),
        vae=vae.eval(),
        unet=sharp(unet),
        scheduler=flow(use_dynamic_shifting=True),
    )


FAMILIES = [
    Family("krea2", _krea2, {"max_sequence_length": 64}),
    Family("ideogram4", _ideogram4, {"max_sequence_length": 64, "guidance_schedule": [7.0, 3.0]}),
    Family("joyimage", _joyimage),
    Family("qwen-image-2.1", _qwen_image21),
    Family("nucleus-moe", _nucleus),
    Family("dreamlite", _dreamlite),
]
