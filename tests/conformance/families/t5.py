"""Pipelines that read one T5: Chroma, PixArt (alpha, sigma), AuraFlow."""

import diffusers
import transformers

from conformance.family import Family
from conformance.parts import autoencoder, autoencoder_16, flow, lively, sharp, t5_encoder, t5_tokenizer


def umt5(tokenizer) -> transformers.UMT5EncoderModel:
    return lively(
        transformers.UMT5EncoderModel(
            transformers.UMT5Config(
                vocab_size=len(tokenizer),
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                is_encoder_decoder=False,
                use_cache=False,
            )
        )
    )


def _chroma():
    tokenizer = t5_tokenizer()
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return diffusers.ChromaPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder_16(),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=sharp(transformer),
    )


def _pixart(pipeline: type):
    """Predictions carry variance channels: eight come out where four go in."""
    tokenizer = t5_tokenizer()
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )
    return pipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=autoencoder(),
        transformer=sharp(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
    )


def _aura_flow():
    tokenizer = t5_tokenizer()
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=umt5(tokenizer),
        vae=autoencoder(),
        transformer=sharp(lively(transformer)),
        scheduler=flow(shift=1.73),
    )


# The sizes that PixArt's resolution bins hold start at 256 pixels; cleaning captions needs BeautifulSoup.
_PIXART = {"use_resolution_binning": False, "clean_caption": False}

FAMILIES = [
    Family("chroma", _chroma),
    Family("pixart-alpha", lambda: _pixart(diffusers.PixArtAlphaPipeline), _PIXART),
    Family("pixart-sigma", lambda: _pixart(diffusers.PixArtSigmaPipeline), _PIXART),
    Family("aura-flow", _aura_flow),
]
