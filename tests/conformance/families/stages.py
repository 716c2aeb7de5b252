"""Pipelines of two stages, and one that draws tokens: Kandinsky 2.2, Wuerstchen, Stable Cascade, Amused, HunyuanDiT."""

import diffusers
import torch
import transformers
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior

from conformance.families.unet import movq
from conformance.family import Family
from conformance.parts import autoencoder, clip_encoder, clip_tokenizer, lively, sharp, t5_encoder, t5_tokenizer
from tiny import WORDS, sd_unet


def awake(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that begin at zero, so that a first training step finds nothing to undo, are random."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    return sharp(module)


def _clip_vision():
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    return lively(transformers.CLIPVisionModelWithProjection(config))


def _kandinsky22():
    """A prior makes an image embedding of the text; the denoiser of pictures reads that alone."""
    tokenizer = clip_tokenizer()
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, embedding_dim=32, num_layers=2, clip_embed_dim=32
    )
    unet = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=32,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
    )
    return diffusers.KandinskyV22CombinedPipeline(
        unet=awake(lively(unet)),
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=False),
        movq=movq(),
        prior_prior=awake(lively(prior)),
        prior_image_encoder=_clip_vision(),
        prior_text_encoder=clip_encoder(tokenizer, project=32),
        prior_tokenizer=tokenizer,
        prior_scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        prior_image_processor=transformers.CLIPImageProcessorPil(),
    )


def _paella():
    return PaellaVQModel(levels=2, bottleneck_blocks=1, num_vq_embeddings=12, latent_channels=4, embed_dim=4).eval()


def _wuerstchen():
    first, second = clip_tokenizer(), clip_tokenizer()
    decoder = WuerstchenDiffNeXt(
        c_cond=32,
        c_hidden=[16, 16],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=4,
        clip_embd=32,
    )
    return diffusers.WuerstchenCombinedPipeline(
        tokenizer=first,
        text_encoder=clip_encoder(first),
        decoder=awake(decoder),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=_paella(),
        prior_tokenizer=second,
        prior_text_encoder=clip_encoder(second),
        prior_prior=awake(WuerstchenPrior(c_in=4, c=16, c_cond=32, c_r=16, depth=2, nhead=2)),
        prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def _cascade():
    tokenizer = clip_tokenizer()
    shared = {
        "conditioning_dim": 32,
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "timestep_ratio_embedding_dim": 16,
        "clip_text_pooled_in_channels": 32,
        "block_out_channels": (32, 32),
        "dropout": (0.0, 0.0),
    }
    prior = diffusers.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        clip_text_in_channels=32,
        clip_image_in_channels=32,
        switch_level=(False,),
        **shared,
    )
    decoder = diffusers.StableCascadeUNet(
        in_channels=4, out_channels=4, patch_size=2, effnet_in_channels=4, pixel_mapper_in_channels=3, **shared
    )
    text = clip_encoder(tokenizer, project=32)
    return diffusers.StableCascadeCombinedPipeline(
        tokenizer=tokenizer,
        text_encoder=text,
        decoder=awake(decoder),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=_paella(),
        prior_prior=awake(lively(prior)),
        prior_text_encoder=text,
        prior_tokenizer=tokenizer,
        prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def _amused():
    """Draws the tokens of a codebook, which have no noise; its scheduler unmasks them."""
    tokenizer = clip_tokenizer()
    transformer = diffusers.UVit2DModel(
        hidden_size=32,
        cond_embed_dim=32,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=5 * 8,
        encoder_hidden_size=32,
        vocab_size=32,
        codebook_size=24,
        in_channels=32,
        block_out_channels=32,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    vqvae = diffusers.VQModel(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=8,
        norm_num_groups=4,
        num_vq_embeddings=24,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    ).eval()
    return diffusers.AmusedPipeline(
        vqvae=vqvae,
        tokenizer=tokenizer,
        text_encoder=clip_encoder(tokenizer, project=32),
        transformer=sharp(transformer),
        scheduler=diffusers.AmusedScheduler(mask_token_id=31),
    )


def _bert():
    """BERT and a tokenizer of whole words and letters."""
    letters = [chr(c) for c in range(33, 127)]
    words = dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{c}" for c in letters)]
    )
    tokenizer = transformers.BertTokenizer({word: i for i, word in enumerate(words)}, model_max_length=77)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=77,
    )
    return tokenizer, lively(transformers.BertModel(config))


def _hunyuan_dit(pipeline: type):
    (first, bert), second = _bert(), t5_tokenizer()
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        hidden_size=32,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
    )
    return pipeline(
        vae=autoencoder(),
        text_encoder=bert,
        tokenizer=first,
        transformer=sharp(lively(transformer)),
        scheduler=diffusers.DDPMScheduler(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_encoder(second),
        tokenizer_2=second,
    )


def _ldm():
    """Latent Diffusion, the first of its kind, with a tokenizer and a BERT of its own."""
    tokenizer, bert = _bert()
    return diffusers.LDMTextToImagePipeline(
        vqvae=autoencoder(), bert=bert, tokenizer=tokenizer, unet=sd_unet(), scheduler=diffusers.DDIMScheduler()
    )


_DIT = {"use_resolution_binning": False}

FAMILIES = [
    Family("kandinsky2.2", _kandinsky22, {"prior_num_inference_steps": 2}),
    Family("wuerstchen", _wuerstchen, {"prior_num_inference_steps": 2, "height": 128, "width": 128}),
    Family("stable-cascade", _cascade, {"prior_num_inference_steps": 2, "height": 128, "width": 128}),
    Family("amused", _amused),
    Family("hunyuan-dit", lambda: _hunyuan_dit(diffusers.HunyuanDiTPipeline), _DIT),
    Family("hunyuan-dit-pag", lambda: _hunyuan_dit(diffusers.HunyuanDiTPAGPipeline), _DIT),
    Family("latent-diffusion", _ldm, {"guidance_scale": 4.0}),
]
