"""Pipelines that read a language model: HunyuanImage, HiDream, Lumina-Next, PRX, Kandinsky 5, CogView 4 and others."""

import diffusers
import tokenizers
import transformers

from conformance.families.qwen import VISION, qwen25_vl
from conformance.families.t5_more import wan_autoencoder
from conformance.family import Family
from conformance.parts import (
    autoencoder,
    autoencoder_16,
    clip_encoder,
    clip_tokenizer,
    flow,
    gemma_tokenizer,
    language_model,
    lively,
    qwen3,
    qwen_tokenizer,
    sharp,
    t5_encoder,
    t5_tokenizer,
)


def _lumina_next():
    tokenizer = gemma_tokenizer()
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=16,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=32,
    )
    return diffusers.LuminaPipeline(
        transformer=sharp(transformer),
        scheduler=flow(),
        vae=autoencoder(),
        text_encoder=language_model(transformers.GemmaModel, transformers.GemmaConfig, tokenizer),
        tokenizer=tokenizer,
    )


def byt5_encoder() -> transformers.T5EncoderModel:
    """A T5 over bytes."""
    config = transformers.T5Config(
        vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, is_encoder_decoder=False
    )
    return lively(transformers.T5EncoderModel(config))


def _hunyuan_image():
    tokenizer = qwen_tokenizer(VISION.values())
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=32,
        text_embed_2_dim=32,
        rope_axes_dim=(8, 8),
    )
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=128,
        scaling_factor=0.75,
    ).eval()
    guider = diffusers.AdaptiveProjectedMixGuidance(guidance_scale=3.5)
    return diffusers.HunyuanImagePipeline(
        scheduler=flow(shift=4.0),
        vae=vae,
        text_encoder=qwen25_vl(tokenizer, layers=4),  # it reads the last but two, which must have read other words
        tokenizer=tokenizer,
        text_encoder_2=byt5_encoder(),
        tokenizer_2=transformers.ByT5Tokenizer(),
        transformer=sharp(transformer),
        guider=guider,
        ocr_guider=diffusers.AdaptiveProjectedMixGuidance(guidance_scale=3.5),
    )


def _hidream():
    first, second, third, fourth = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer(), qwen_tokenizer()
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[32, 32],
        text_emb_dim=32,
        num_routed_experts=2,
        num_activated_experts=2,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(16, 16),
        llama_layers=[0, 1, 1, 2],
        force_inference_output=True,
    )
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=flow(shift=3.0),
        vae=autoencoder(shift=0.1),
        text_encoder=clip_encoder(first, project=16),
        tokenizer=first,
        text_encoder_2=clip_encoder(second, act="gelu", project=16),
        tokenizer_2=second,
        text_encoder_3=t5_encoder(third),
        tokenizer_3=third,
        text_encoder_4=language_model(
            transformers.LlamaForCausalLM, transformers.LlamaConfig, fourth, attn_implementation="eager"
        ),
        tokenizer_4=fourth,
        transformer=sharp(transformer),
    )
    pipe.default_sample_size = 8  # every picture is scaled to as many pixels as this square has
    return pipe


def t5gemma_encoder(tokenizer):
    """The encoder half of a T5Gemma."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 4096,
        "layer_types": ["full_attention"] * 2,
    }
    config = transformers.T5GemmaConfig(
        encoder=transformers.T5GemmaModuleConfig(**sizes), is_encoder_decoder=False, vocab_size=len(tokenizer)
    )
    return lively(transformers.T5GemmaEncoderModel(config)).encoder


def _prx():
    tokenizer = gemma_tokenizer()
    tokenizer.model_max_length = 64
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=4, context_in_dim=32, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8]
    )
    return diffusers.PRXPipeline(
        transformer=sharp(lively(transformer)),
        scheduler=flow(),
        text_encoder=t5gemma_encoder(tokenizer),
        tokenizer=tokenizer,
        vae=autoencoder(shift=0.1),
    )


def without_videos(processor: type, tokenizer, image_processor):
    """The processor of a vision model without its reader of videos, which would need torchvision."""
    made = object.__new__(processor)
    made.image_processor, made.tokenizer, made.chat_template = image_processor, tokenizer, tokenizer.chat_template
    made.image_token, made.video_token = "<|image_pad|>", "<|video_pad|>"
    made.image_token_id = tokenizer.convert_tokens_to_ids(made.image_token)
    made.video_token_id = tokenizer.convert_tokens_to_ids(made.video_token)
    return made


def qwen2_vl_processor(tokenizer):
    """Pictures become patches of 14 pixels, joined two by two."""
    images = transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
    return without_videos(transformers.Qwen2VLProcessor, tokenizer, images)


def _kandinsky5():
    tokenizer, second = qwen_tokenizer(VISION.values()), clip_tokenizer()
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=32,
        in_text_dim2=32,
        time_dim=32,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )
    pipe = diffusers.Kandinsky5T2IPipeline(
        transformer=sharp(lively(transformer)),
        vae=autoencoder(),
        text_encoder=qwen25_vl(tokenizer),
        tokenizer=qwen2_vl_processor(tokenizer),
        text_encoder_2=clip_encoder(second),
        tokenizer_2=second,
        scheduler=flow(),
    )
    pipe.resolutions = [(96, 64)]  # it draws in the nearest of its sizes
    return pipe


def glm_tokenizer():
    """`[gMASK]<sop>` in front of every text, padded on the left."""
    starts = "[gMASK]", "<sop>"
    made = qwen_tokenizer(starts)
    ids = [(start, made.convert_tokens_to_ids(start)) for start in starts]
    made._tokenizer.post_processor = tokenizers.processors.TemplateProcessing("[gMASK] <sop> $A", special_tokens=ids)
    made.padding_side = "left"
    return made


def _cogview4(pipeline: type = diffusers.CogView4Pipeline, channels: int = 4):
    tokenizer = glm_tokenizer()
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=channels,
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
    return pipeline(
        tokenizer=tokenizer,
        text_encoder=language_model(transformers.GlmModel, transformers.GlmConfig, tokenizer),
        vae=autoencoder(),
        transformer=sharp(transformer),
        scheduler=flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
    )


def _ovis():
    tokenizer = qwen_tokenizer()
    transformer = diffusers.OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.OvisImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder(shift=0.1),
        text_encoder=qwen3(tokenizer),
        tokenizer=tokenizer,
        transformer=sharp(transformer),
    )


EMPTY = 128_000  #: the token that Bria's pipeline gives for an empty text, whatever its tokenizer


def _bria_fibo():
    tokenizer = qwen_tokenizer()
    transformer = diffusers.BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        text_encoder_dim=32,
        axes_dims_rope=[4, 6, 6],
    )
    return diffusers.BriaFiboPipeline(
        transformer=sharp(transformer),
        scheduler=flow(use_dynamic_shifting=True),
        vae=wan_autoencoder(),
        text_encoder=language_model(
            transformers.SmolLM3ForCausalLM, transformers.SmolLM3Config, tokenizer, vocab=EMPTY + 1
        ),
        tokenizer=tokenizer,
    )


def _longcat():
    tokenizer = qwen_tokenizer(VISION.values())
    transformer = diffusers.LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 6, 6],
    )
    return diffusers.LongCatImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder_16(),
        text_encoder=qwen25_vl(tokenizer),
        tokenizer=tokenizer,
        text_processor=qwen2_vl_processor(tokenizer),
        transformer=sharp(transformer),
    )


def _hunyuan_video():
    tokenizer, second = qwen_tokenizer(("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")), clip_tokenizer()
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4
    ).eval()
    return diffusers.HunyuanVideoPipeline(
        text_encoder=language_model(transformers.LlamaModel, transformers.LlamaConfig, tokenizer),
        tokenizer=tokenizer,
        transformer=sharp(transformer),
        vae=vae,
        scheduler=flow(shift=7.0),
        text_encoder_2=clip_encoder(second),
        tokenizer_2=second,
    )


def _omnigen():
    """No text encoder: the denoiser reads the tokens themselves."""
    tokenizer = qwen_tokenizer(("<|user|>", "<|end|>", "<|assistant|>", "<|diffusion|>"))
    transformer = diffusers.OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=tokenizer.pad_token_id,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4, "type": "su"},
        time_step_dim=4,
    )
    return diffusers.OmniGenPipeline(
        transformer=sharp(transformer), scheduler=flow(invert_sigmas=True), vae=autoencoder(), tokenizer=tokenizer
    )


FAMILIES = [
    Family("lumina-next", _lumina_next, {"max_sequence_length": 32}),
    Family("hunyuan-image-2.1", _hunyuan_image),
    Family("hidream", _hidream, {"max_sequence_length": 32}),
    Family("prx", _prx, {"use_resolution_binning": False, "skip_text_cleaning": True}, needs="ftfy"),
    Family("kandinsky5", _kandinsky5),
    Family("cogview4", _cogview4),
    Family("ovis-image", _ovis),
    Family("bria-fibo", _bria_fibo, {"negative_prompt": "a dog", "max_sequence_length": 64}),
    Family("omnigen", _omnigen, needs="torchvision"),
    Family("longcat-image", _longcat, {"enable_prompt_rewrite": False}),
    Family("hunyuan-video", _hunyuan_video, {"num_frames": 1}),
]
