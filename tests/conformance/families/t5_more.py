"""More transformers that read one T5: CogView 3, Bria, Latte, and text-to-video models drawing one frame."""

import diffusers
import torch

from conformance.families.t5 import umt5
from conformance.family import Family
from conformance.parts import autoencoder, flow, sharp, t5_encoder, t5_tokenizer


def _t5():
    tokenizer = t5_tokenizer()
    return {"tokenizer": tokenizer, "text_encoder": t5_encoder(tokenizer)}


def _cogview3():
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=16,
    )
    return diffusers.CogView3PlusPipeline(
        **_t5(),
        vae=autoencoder(),
        transformer=sharp(transformer),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


def _bria():
    transformer = diffusers.BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 6, 6],
    )
    return diffusers.BriaPipeline(
        **_t5(), transformer=sharp(transformer), scheduler=flow(use_dynamic_shifting=True), vae=autoencoder(shift=0.1)
    )


def _latte():
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        num_embeds_ada_norm=1000,
        attention_bias=True,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=1,
    )
    return diffusers.LattePipeline(
        **_t5(), transformer=sharp(transformer), vae=autoencoder(), scheduler=diffusers.DDIMScheduler()
    )


def wan_autoencoder() -> diffusers.AutoencoderKLWan:
    return diffusers.AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def _wan():
    tokenizer = t5_tokenizer()
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=umt5(tokenizer),
        vae=wan_autoencoder(),
        transformer=sharp(transformer),
        scheduler=flow(shift=3.0),
    )


def _cogvideox():
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=32,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        temporal_compression_ratio=4,
    ).eval()
    return diffusers.CogVideoXPipeline(
        **_t5(), vae=vae, transformer=sharp(transformer), scheduler=diffusers.CogVideoXDDIMScheduler()
    )


def _ltx():
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        patch_size_t=1,
    ).eval()
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return diffusers.LTXPipeline(**_t5(), vae=vae, transformer=sharp(transformer), scheduler=flow())


def _mochi():
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=32,
        time_embed_dim=4,
        activation_fn="swiglu",
        max_sequence_length=32,
    )
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=4,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
        latents_mean=None,
        latents_std=None,
    ).eval()
    return diffusers.MochiPipeline(**_t5(), vae=vae, transformer=sharp(transformer), scheduler=flow())


def _allegro():
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=32,
        sample_width=12,
        sample_height=8,
        sample_frames=1,
    )
    vae = diffusers.AutoencoderKLAllegro(
        block_out_channels=(8,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=16
    ).eval()
    vae.enable_tiling()  # it decodes in no other way
    vae.kernel, vae.stride = (4, 64, 64), (4, 32, 32)
    return diffusers.AllegroPipeline(
        **_t5(), vae=vae, transformer=sharp(transformer), scheduler=diffusers.EulerAncestralDiscreteScheduler()
    )


def _cosmos2():
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        extra_pos_embed_type=None,
        concat_padding_mask=False,  # its mask is resized by torchvision
    )
    return diffusers.Cosmos2TextToImagePipeline(
        **_t5(),
        transformer=sharp(transformer),
        vae=wan_autoencoder(),
        scheduler=flow(use_karras_sigmas=True),
        safety_checker=_Safe(),
    )


class _Safe(diffusers.ModelMixin, diffusers.ConfigMixin):
    """A safety checker that lets everything pass, in place of one of several billion weights."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video):
        return video


_FRAME = {"num_frames": 1}

FAMILIES = [
    Family("cogview3", _cogview3, {"max_sequence_length": 32}),
    Family("bria", _bria),
    Family("latte", _latte, {"video_length": 1}),
    Family("wan", _wan, {**_FRAME, "max_sequence_length": 32}),
    Family("cogvideox", _cogvideox, {**_FRAME, "max_sequence_length": 32}),
    Family("ltx", _ltx, _FRAME),
    Family("mochi", _mochi, {**_FRAME, "max_sequence_length": 32}),
    Family("allegro", _allegro, {**_FRAME, "max_sequence_length": 32}),
    Family("cosmos2", _cosmos2, {"max_sequence_length": 32}),
]
