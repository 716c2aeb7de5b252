"""Pipelines that read a Gemma 2: Sana (behind its long instruction), Lumina 2 (behind its system prompt)."""

import diffusers

from conformance.family import Family
from conformance.parts import autoencoder_16, flow, gemma2, gemma_tokenizer, sharp


def deep_autoencoder() -> diffusers.AutoencoderDC:
    """Sana's autoencoder, eightfold instead of thirty-two-fold."""
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,)),
        scaling_factor=0.41407,
    ).eval()


def _sana():
    tokenizer = gemma_tokenizer()
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=8,
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma2(tokenizer),
        vae=deep_autoencoder(),
        transformer=sharp(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def _lumina2():
    tokenizer = gemma_tokenizer()
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=16,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(300, 64, 64),
        cap_feat_dim=32,
    )
    return diffusers.Lumina2Pipeline(
        transformer=sharp(transformer),
        scheduler=flow(shift=6.0),
        vae=autoencoder_16(),
        text_encoder=gemma2(tokenizer),
        tokenizer=tokenizer,
    )


FAMILIES = [
    Family("sana", _sana, {"use_resolution_binning": False}),
    Family("lumina2", _lumina2),
]
