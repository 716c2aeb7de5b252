"""Pipelines with a picture beside the prompt: Kontext, FLUX.2, Qwen-Image-Edit, JoyImage, control images."""

import inspect

import diffusers
import numpy as np
from PIL import Image

import tiny
from conformance.families.flux2 import FAMILIES as FLUX2
from conformance.families.llm import _cogview4, qwen2_vl_processor
from conformance.families.qwen import FAMILIES as QWEN
from conformance.families.qwen3_vl import FAMILIES as QWEN3_VL
from conformance.family import Family
from conformance.parts import sharp

_BUILD = {family.name: family.build for family in (*FLUX2, *QWEN, *QWEN3_VL)}


def photo(height: int = 64, width: int = 96) -> Image.Image:
    """Two slopes and a bright corner."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * y / height, 255 * x / width
    return Image.fromarray(np.stack([red, green, 255.0 * (x + y < 40)], -1).astype(np.uint8))


PHOTO = photo()


def _kontext():
    parts = {name: part for name, part in tiny.tiny("flux").components.items() if part is not None}
    return diffusers.FluxKontextPipeline(**parts)


def _flux_control():
    """The control image's channels stand beside those of the latents."""
    parts = {name: part for name, part in tiny.tiny("flux").components.items() if part is not None}
    config = {**parts["transformer"].config, "in_channels": 32, "out_channels": 16, "_use_default_values": []}
    transformer = sharp(diffusers.FluxTransformer2DModel.from_config(config))
    names = inspect.signature(diffusers.FluxControlPipeline.__init__).parameters
    return diffusers.FluxControlPipeline(
        **{name: part for name, part in {**parts, "transformer": transformer}.items() if name in names}
    )


def _qwen_edit(pipeline: type):
    """Each picture is scaled to 1024 x 1024 pixels, so this autoencoder shrinks by 64."""
    parts = _BUILD["qwen-image"]().components
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * 7,
        num_res_blocks=1,
        temperal_downsample=[False] * 6,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return pipeline(**{**parts, "vae": vae.eval()}, processor=qwen2_vl_processor(parts["tokenizer"]))


def _controlnet():
    parts = tiny.tiny("sd1").components
    net = diffusers.ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(8, 8, 8, 8))
    return diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=net.eval(), requires_safety_checker=False)


_LARGE = {"negative_prompt": " ", "true_cfg_scale": 4.0, "height": 128, "width": 256}

FAMILIES = [
    Family(
        "flux.1-kontext",
        _kontext,
        {"image": PHOTO, "max_sequence_length": 32, "max_area": 64 * 96, "_auto_resize": False},
    ),
    Family("flux.2-dev-reference", _BUILD["flux.2-dev"], {"image": PHOTO}),
    Family("flux.2-klein-reference", _BUILD["flux.2-klein"], {"image": [PHOTO, PHOTO]}),
    Family(
        "qwen-image-edit", lambda: _qwen_edit(diffusers.QwenImageEditPipeline), {"image": PHOTO, **_LARGE}, slow=True
    ),
    Family(
        "qwen-image-edit-plus",
        lambda: _qwen_edit(diffusers.QwenImageEditPlusPipeline),
        {"image": [PHOTO], **_LARGE},
        slow=True,
    ),
    Family("joyimage-edit", _BUILD["joyimage"], {"image": PHOTO}),
    Family("flux.1-control", _flux_control, {"control_image": PHOTO, "max_sequence_length": 32}),
    Family("cogview4-control", lambda: _cogview4(diffusers.CogView4ControlPipeline, 8), {"control_image": PHOTO}),
    Family("sd1-controlnet", _controlnet, {"image": PHOTO}),
]
