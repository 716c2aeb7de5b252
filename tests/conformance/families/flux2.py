"""FLUX.2 dev: Mistral 3 behind a processor, three of its layers joined on channels."""

import diffusers
import transformers

from conformance.family import Family
from conformance.parts import flow, lively, mistral_tokenizer, sharp


def flux2_autoencoder() -> diffusers.AutoencoderKLFlux2:
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=128,
    ).eval()


def flux2_transformer(text: int, guidance: bool) -> diffusers.Flux2Transformer2DModel:
    """One joint and two fused single-stream blocks; `text` is the width of its text rows."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    return sharp(lively(transformer))


class TextProcessor(transformers.ProcessorMixin):
    """What Mistral 3's processor does to text alone; the one for pictures needs torchvision."""

    def __init__(self, tokenizer=None, chat_template=None):
        super().__init__(tokenizer, chat_template=chat_template)


def mistral3(tokenizer, layers: int) -> transformers.Mistral3ForConditionalGeneration:
    """A Mistral 3 of `layers` narrow layers with a vision tower of one."""
    text = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 4096,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "head_dim": 8,
    }
    config = transformers.Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=tokenizer.convert_tokens_to_ids("[IMG]")
    )
    return lively(transformers.Mistral3ForConditionalGeneration(config))


def _dev():
    tokenizer = mistral_tokenizer()
    return diffusers.Flux2Pipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=flux2_autoencoder(),
        text_encoder=mistral3(tokenizer, layers=31),
        tokenizer=TextProcessor(tokenizer, chat_template=tokenizer.chat_template),
        transformer=flux2_transformer(text=3 * 16, guidance=True),
    )


FAMILIES = [Family("flux.2-dev", _dev)]
