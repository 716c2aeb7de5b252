"""Train the denoiser of `emoji-flux` on the frozen autoencoder and text encoders, and save the whole pipeline.

    python training/train_flux.py --vae runs/vae/vae --text runs/t5 --steps 28000 --out runs/flux
    python training/train_flux.py --from runs/flux/pipeline --steps 10500 --lr 7e-4 --seed 3 --share single=0.3 \
        --cache 80000 --out runs/flux-on

The second one goes on from a saved pipeline, with new samples and fresh Adam moments.

Flow matching: `x_s = (1 - s) x + s noise`, the model says `noise - x`. Logit-normal and uniform `s`, cosine decay, EMA,
10 % empty captions. Latents and text features of the first `--cache` samples are kept and reused in later epochs.

Most captions fill a third of the text rows, and pads cost as much as words. Batches are of like length, and seven of
eight see no more rows than their longest caption needs; since the number of pads varies, it can mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from common import Log, Run, adamw, arguments, autocast, cosine, device, generator, timesteps
from export import export
from mixture import SHARES
from samples import Samples

HEAD = 32
WINDOW = 8  # batches that are drawn together and sorted by the length of their captions
#: how the model is meant to be called; chosen on the development split. FLUX's pipeline does not know the model's size,
#: and needs a negative prompt for guidance, which is off at a true_cfg_scale of 1
CALL = {
    "num_inference_steps": 12, "true_cfg_scale": 4.0, "height": 64, "width": 64, "max_sequence_length": 32,
    "negative_prompt": "",
}  # fmt: skip


def build(
    latents: int, text_width: int, pooled_width: int, width: int, double: int, single: int
) -> FluxTransformer2DModel:
    """FLUX packs 2x2 latents into a token; text stands at position 0, a token at (0, row, column).

    Modulations and output start at zero (Peebles and Xie, arXiv 2212.09748): every block is the identity at first.
    """
    model = FluxTransformer2DModel(
        in_channels=4 * latents, num_layers=double, num_single_layers=single, attention_head_dim=HEAD,
        num_attention_heads=width // HEAD, joint_attention_dim=text_width, pooled_projection_dim=pooled_width,
        guidance_embeds=False, axes_dims_rope=(4, 14, 14),
    )  # fmt: skip
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (name == "proj_out" or ".norm" in name or name.startswith("norm_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def pack(z: Tensor) -> Tensor:
    """Latents [B, C, h, w] -> tokens [B, h/2 * w/2, 4C], as the pipeline packs them."""
    return FluxPipeline._pack_latents(z, *z.shape)


def plain_attention():
    """On a CPU the fused kernel's backward is slow in bfloat16, and only there."""
    return sdpa_kernel(SDPBackend.MATH) if torch.is_autocast_enabled("cpu") else nullcontext()


def fit(
    a: argparse.Namespace, run: Run, transformer: FluxTransformer2DModel,
    batch: Callable[[int], tuple[Tensor, Tensor, Tensor]], empty: tuple[Tensor, Tensor], dev: torch.device,
) -> None:  # fmt: skip
    """Train up to `run.stop`. `batch(step)` gives latents [B, C, h, w], rows [B, l, d] and pooled vectors [B, p];
    `empty`, rows [L, d] and a vector [p] of the empty caption, is what one sample of ten gets."""
    print(f"{sum(p.numel() for p in transformer.parameters()) / 1e6:.1f} M parameters", flush=True)
    log = Log(a.steps, a.batch)
    while run.step < run.stop:
        g = generator(a.seed + 1, run.step, dev)
        z, rows, pooled = batch(run.step)
        drop = torch.rand(a.batch, generator=g, device=dev) < 0.1
        rows = torch.where(drop[:, None, None], empty[0][: rows.shape[1]], rows)
        pooled = torch.where(drop[:, None], empty[1], pooled)
        places = FluxPipeline._prepare_latent_image_ids(1, z.shape[-2] // 2, z.shape[-1] // 2, dev, torch.float32)
        x = pack(z)
        s = timesteps(a.batch, g, dev)
        noise = torch.randn(x.shape, generator=g, device=dev)
        noisy = torch.lerp(x, noise, s[:, None, None])
        with autocast(dev), plain_attention():
            out = transformer(
                hidden_states=noisy, encoder_hidden_states=rows, pooled_projections=pooled, timestep=s,
                img_ids=places, txt_ids=torch.zeros(rows.shape[1], 3, device=dev), return_dict=False,
            )[0]  # fmt: skip
        loss = F.mse_loss(out.float(), noise - x)
        norm = run.update(loss, a.lr * cosine(run.step, a.steps, 300))
        log(run.step, loss=loss.item(), norm=norm)


def main() -> None:
    ap = arguments(__doc__ or "", steps=28000, batch=32, lr=1e-3, out="runs/flux")
    ap.add_argument("--vae", type=Path, default=Path("runs/vae/vae"))
    ap.add_argument("--text", type=Path, default=Path("runs/t5"))
    ap.add_argument("--from", dest="start", type=Path, help="a saved pipeline: its VAE, encoders and denoiser")
    ap.add_argument("--share", nargs="*", default=[], metavar="KIND=SHARE", help="other shares than the mixture's")
    ap.add_argument("--beside", type=float, default=1.0, help="weight of 'next to' and 'beside'; 'and' has 4")
    ap.add_argument("--width", type=int, default=192)
    ap.add_argument("--double", type=int, default=2, help="double-stream blocks")
    ap.add_argument("--single", type=int, default=4, help="single-stream blocks")
    ap.add_argument("--cache", type=int, default=50_000)
    ap.add_argument("--export-only", action="store_true", help="save the pipeline of the last checkpoint and stop")
    a = ap.parse_args()
    try:
        shares = {kind: float(share) for kind, _, share in (one.partition("=") for one in a.share)}
    except ValueError:
        ap.error(f"--share: give KIND=SHARE, a number each, not {' '.join(a.share)}")
    if unknown := set(shares) - set(SHARES):
        ap.error(f"--share: no kind {', '.join(sorted(unknown))}; there are {', '.join(SHARES)}")
    torch.manual_seed(a.seed)
    dev = device()
    text, vae_at = (a.start, a.start / "vae") if a.start else (a.text, a.vae)
    whole = {"dtype": torch.float32}  # packaged weights are halves
    vae = AutoencoderKL.from_pretrained(vae_at).to(dev, memory_format=torch.channels_last).requires_grad_(False).eval()
    vae.register_to_config(shift_factor=0.0)  # FLUX's pipeline adds it
    clip = CLIPTextModel.from_pretrained(text / "text_encoder", **whole).to(dev).requires_grad_(False).eval()
    t5 = T5EncoderModel.from_pretrained(text / "text_encoder_2", **whole).to(dev).requires_grad_(False).eval()
    clip_tok = CLIPTokenizer.from_pretrained(text / "tokenizer")
    t5_tok = T5Tokenizer.from_pretrained(text / "tokenizer_2")
    length = CALL["max_sequence_length"]

    def encode(texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """T5 rows [B, L, d] and pooled CLIP [B, p], as the pipeline makes them, and the rows [B] that are no pads."""
        fixed = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids = t5_tok(texts, max_length=length, **fixed).input_ids.to(dev)
        clip_ids = clip_tok(texts, max_length=clip_tok.model_max_length, **fixed).input_ids.to(dev)
        used = (ids != t5_tok.pad_token_id).sum(1)
        return t5(input_ids=ids).last_hidden_state, clip(input_ids=clip_ids).pooler_output, used

    transformer = build(
        vae.config.latent_channels, t5.config.d_model, clip.config.hidden_size, a.width, a.double, a.single
    ).to(dev)
    if a.start:
        transformer.load_state_dict(FluxTransformer2DModel.from_pretrained(a.start / "transformer").state_dict())
    run = Run(a, transformer, adamw(transformer, a.lr, 0.01), 0.999)

    if not a.export_only:
        data = Samples(vae, encode, a.seed, a.cache, dev, SHARES | shares, a.beside)

        def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
            window, turn = divmod(step, WINDOW)
            z, rows, pooled, used = data.batch(window * WINDOW * a.batch, WINDOW * a.batch)
            turn = torch.randperm(WINDOW, generator=generator(a.seed + 2, window, dev), device=dev)[turn]
            at = used.argsort(stable=True).view(WINDOW, a.batch)[turn]
            longest = int(used[at].max()) + 1 if step % WINDOW else rows.shape[1]
            return z[at], rows[at, :longest], pooled[at]

        fit(a, run, transformer, batch, (data.empty[0], data.empty[1]), dev)
        if run.paused():
            return

    transformer.load_state_dict(run.averaged())
    pipe = FluxPipeline(
        vae=vae, text_encoder=clip, tokenizer=clip_tok, text_encoder_2=t5, tokenizer_2=t5_tok,
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    export(pipe, a.out / "pipeline", {"call": CALL, "guidance": "true_cfg_scale"})


if __name__ == "__main__":
    main()
