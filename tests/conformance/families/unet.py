"""Relatives of Stable Diffusion, and UNets with another encoder: PAG, LCM, DeepFloyd IF, Kandinsky 3."""

import diffusers

import tiny
from conformance.family import Family
from conformance.parts import autoencoder, clip_encoder, clip_tokenizer, sharp, t5_encoder, t5_tokenizer
from tiny import ddim, sd_unet


def _as(pipeline: type, name: str, **changes):
    """The parts of a layout of `tiny` in another class."""
    parts = {part: value for part, value in tiny.tiny(name).components.items() if value is not None}
    return pipeline(**{**parts, **changes})


_UNSAFE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _sd(pipeline: type, **changes):
    return _as(pipeline, "sd1", **_UNSAFE, **changes)


def _lcm():
    return _sd(
        diffusers.LatentConsistencyModelPipeline,
        unet=sd_unet(time_cond_proj_dim=16),
        scheduler=diffusers.LCMScheduler(),
    )


def _animate():
    tokenizer = clip_tokenizer()
    adapter = diffusers.MotionAdapter(
        block_out_channels=(32,) * 4, motion_layers_per_block=2, motion_norm_num_groups=8, motion_num_attention_heads=4
    )
    return diffusers.AnimateDiffPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=sd_unet(),
        motion_adapter=adapter,
        scheduler=ddim(),
    )


def _deepfloyd():
    """Draws pixels; its predictions carry variance channels."""
    tokenizer = t5_tokenizer()
    denoiser = diffusers.UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        cross_attention_dim=32,
        cross_attention_norm="group_norm",
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    return diffusers.IFPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        unet=sharp(denoiser),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def movq() -> diffusers.VQModel:
    """Kandinsky's autoencoder: its decoder is normalised by the latents."""
    return diffusers.VQModel(
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=12,
        norm_type="spatial",
    ).eval()


def _kandinsky3():
    tokenizer = t5_tokenizer()
    denoiser = diffusers.Kandinsky3UNet(
        time_embedding_dim=32,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(16, 16, 32, 32),
        cross_attention_dim=32,
        encoder_hid_dim=32,
    )
    return diffusers.Kandinsky3Pipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        unet=sharp(denoiser),
        scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        movq=movq(),
    )


FAMILIES = [
    Family("sd1-pag", lambda: _sd(diffusers.StableDiffusionPAGPipeline)),
    Family("sd1-panorama", lambda: _sd(diffusers.StableDiffusionPanoramaPipeline), {"width": 96}),
    Family("sdxl-pag", lambda: _as(diffusers.StableDiffusionXLPAGPipeline, "sdxl", add_watermarker=False)),
    Family("sd3.5-pag", lambda: _as(diffusers.StableDiffusion3PAGPipeline, "sd3"), {"max_sequence_length": 32}),
    Family("sd3.5-slg", lambda: tiny.tiny("sd3"), {"skip_guidance_layers": [1], "max_sequence_length": 32}),
    Family("lcm", _lcm),
    Family("animatediff", _animate, {"num_frames": 1}),
    Family("deepfloyd-if", _deepfloyd, {"height": 16, "width": 24}),
    Family("kandinsky3", _kandinsky3),
]
