"""Train the denoiser of `emoji-sd` on the frozen autoencoder and text encoder, and save the whole pipeline.

    python training/train_unet.py --vae runs/vae/vae --text runs/text --steps 6000 --out runs/unet

Velocity prediction on a zero-terminal-SNR schedule, logit-normal and uniform timesteps, cosine decay, EMA, 10 % empty
captions. Latents and text rows of the first `--cache` samples are kept in memory and reused in later epochs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from common import Log, Run, adamw, arguments, autocast, cosine, device, generator, timesteps
from export import export
from samples import Samples
from unleak import world

#: how the model is meant to be called, and how edits with it; chosen on the development split
CALL = {"num_inference_steps": 20, "guidance_scale": 3.0}
EDIT = {
    "steps": 8, "target_guidance": 3.0, "dilation": 0.0, "threshold": 0.15,
    "ale": {"target_guidance": 2.0}, "ale-official": {"target_guidance": 2.0},
}  # fmt: skip


def build(latents: int, text_width: int, channels: tuple[int, ...], layers: int, size: int) -> UNet2DConditionModel:
    n = len(channels)
    return UNet2DConditionModel(
        sample_size=size, in_channels=latents, out_channels=latents, block_out_channels=channels,
        layers_per_block=layers, cross_attention_dim=text_width, attention_head_dim=8, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * n, up_block_types=("CrossAttnUpBlock2D",) * n,
    )  # fmt: skip


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip


def fit(
    a: argparse.Namespace, run: Run, unet: UNet2DConditionModel, batch: Callable[[int], tuple[Tensor, Tensor]],
    empty: Tensor, dev: torch.device, compiled: bool = False,
) -> None:  # fmt: skip
    """Train up to `run.stop`. `batch(step)` gives latents [B, C, h, w] and rows [B, L, d]; `empty` [L, d] are the rows
    of the empty caption, which one sample of ten gets."""
    print(f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters", flush=True)
    alphas = scheduler().alphas_cumprod.to(dev)
    # plain attention: the fused kernel's backward is slow on CPU
    unet.set_attn_processor(AttnProcessor() if dev.type == "cpu" else AttnProcessor2_0())
    forward = torch.compile(unet) if compiled else unet
    log = Log(a.steps, a.batch)
    while run.step < run.stop:
        g = generator(a.seed + 1, run.step, dev)
        z, rows = batch(run.step)
        drop = torch.rand(a.batch, generator=g, device=dev) < 0.1
        rows = torch.where(drop[:, None, None], empty, rows)
        t = (timesteps(a.batch, g, dev) * len(alphas)).long().clamp(0, len(alphas) - 1)
        noise = torch.randn(z.shape, generator=g, device=dev)
        alpha = alphas[t][:, None, None, None]
        noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * z
        with autocast(dev):
            out = forward(noisy.contiguous(memory_format=torch.channels_last), t, rows, return_dict=False)[0]
        loss = F.mse_loss(out.float(), velocity)
        norm = run.update(loss, a.lr * cosine(run.step, a.steps, 300))
        log(run.step, loss=loss.item(), norm=norm)


def main() -> None:
    ap = arguments(__doc__ or "", steps=6500, batch=64, lr=8e-4, out="runs/unet")
    ap.add_argument("--vae", type=Path, default=Path("runs/vae/vae"))
    ap.add_argument("--text", type=Path, default=Path("runs/text"))
    ap.add_argument("--world", type=int, default=1)
    ap.add_argument("--channels", type=int, nargs="+", default=(128, 256))
    ap.add_argument("--layers", type=int, default=2)
    ap.add_argument("--cache", type=int, default=150_000)
    ap.add_argument("--compile", action="store_true", help="torch.compile: needs a C++ compiler")
    ap.add_argument("--init", type=Path, help="a UNet folder to start from")
    ap.add_argument("--export-only", action="store_true", help="save the pipeline of the last checkpoint and stop")
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    dev = device()
    vae = AutoencoderKL.from_pretrained(a.vae).to(dev, memory_format=torch.channels_last).requires_grad_(False).eval()
    encoder = CLIPTextModel.from_pretrained(a.text / "text_encoder").to(dev).requires_grad_(False).eval()
    tok = CLIPTokenizer.from_pretrained(a.text / "tokenizer")

    def encode(texts: list[str]) -> tuple[Tensor]:
        """Text rows [B, L, d], as the pipeline makes them."""
        ids = tok(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(dev)
        return (encoder(input_ids=ids).last_hidden_state,)

    w = world.load(a.world)
    unet = build(vae.config.latent_channels, encoder.config.hidden_size, tuple(a.channels), a.layers, w.image // w.cell)
    if a.init:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(a.init).state_dict())
    unet = unet.to(dev, memory_format=torch.channels_last)
    run = Run(a, unet, adamw(unet, a.lr, 0.01), 0.9995)

    if not a.export_only:
        data = Samples(vae, encode, a.seed, a.cache, dev, edition=a.world)
        batch = lambda step: data.batch(step * a.batch, a.batch)  # noqa: E731
        fit(a, run, unet, batch, data.empty[0], dev, a.compile)
        if run.paused():
            return

    unet.load_state_dict(run.averaged())
    unet.set_attn_processor(AttnProcessor2_0())
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tok, unet=unet.eval(), scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    export(pipe, a.out / "pipeline", {"call": CALL, "edit": EDIT})


if __name__ == "__main__":
    main()
