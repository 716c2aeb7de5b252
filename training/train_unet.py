"""Train the denoiser of `emoji-sd` on the frozen autoencoder and text encoder, and save the whole pipeline.

    python training/train_unet.py --vae runs/vae/vae --text runs/text --steps 6000 --out runs/unet

Velocity prediction on a zero-terminal-SNR schedule, logit-normal and uniform timesteps, cosine decay, EMA, 10 % empty
captions. Latents and text rows of the first `--cache` samples are kept in memory and reused in later epochs.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from common import Log, Run, adamw, arguments, autocast, cosine, device, generator, rng
from mixture import Mixture
from unleak import world
from unleak.world.render import Renderer

#: how the model is meant to be called; chosen on the development split
CALL = {"num_inference_steps": 20, "guidance_scale": 3.0}


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


def timesteps(n: int, g: torch.Generator, dev: torch.device) -> Tensor:
    """[n] in 0..1, half logit-normal and half uniform: what is placed where is settled near 1, which the first half
    alone seldom sees."""
    normal = torch.randn(n, generator=g, device=dev).sigmoid()
    uniform = torch.rand(n, generator=g, device=dev)
    return torch.where(torch.rand(n, generator=g, device=dev) < 0.5, uniform, normal)


class Samples:
    """Sample `i` of the mixture as (latents, text rows); deterministic from the seed, cached in half precision."""

    def __init__(
        self,
        vae: AutoencoderKL,
        encoder: CLIPTextModel,
        tok: CLIPTokenizer,
        seed: int,
        cache: int,
        dev: torch.device,
    ):
        self.vae, self.encoder, self.tok, self.seed, self.n, self.dev = vae, encoder, tok, seed, cache, dev
        self.mix = Mixture(world.load())
        self.render = Renderer(self.mix.world, dev)
        c, size = vae.config.latent_channels, self.mix.world.image // self.mix.world.cell
        self.latents = torch.empty(cache, c, size, size, dtype=torch.float16, device=dev)
        self.rows = torch.empty(
            cache, tok.model_max_length, encoder.config.hidden_size, dtype=torch.float16, device=dev
        )
        self.ready = torch.zeros(cache, dtype=torch.bool)
        self.empty = self._encode([""])[0]

    def _encode(self, texts: list[str]) -> Tensor:
        ids = self.tok(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(self.dev)
        return self.encoder(input_ids=ids).last_hidden_state

    @torch.no_grad()
    def batch(self, start: int, size: int) -> tuple[Tensor, Tensor]:
        at = torch.arange(start, start + size) % self.n
        todo = [int(i) for i in at if not self.ready[i]]
        if todo:
            samples = [self.mix.draw(rng(self.seed, i)) for i in todo]
            images = self.render([s.scene for s in samples]) * 2 - 1
            with autocast(self.dev):
                z = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean
                rows = self._encode([s.text for s in samples])
            self.latents[todo], self.rows[todo] = z.half(), rows.half()
            self.ready[todo] = True
        return self.latents[at].float(), self.rows[at].float()


def export(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Save in half precision, so that plain `from_pretrained(folder)` still runs in single precision."""
    pipe.to(dtype=torch.float16).save_pretrained(folder)
    config = folder / "text_encoder" / "config.json"
    stated = json.loads(config.read_text("utf-8")) | {"dtype": "float32"}  # transformers loads what is stated
    config.write_text(json.dumps(stated, indent=2) + "\n", "utf-8")
    bpe = json.loads((folder / "tokenizer" / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(bpe["vocab"], ensure_ascii=False), "utf-8")
    merges = ["#version: 0.2", *(" ".join(m) for m in bpe["merges"])]  # older transformers read these two
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(merges) + "\n", "utf-8")
    (folder / "unleak.json").write_text(json.dumps({"call": CALL}) + "\n", "utf-8")


def main() -> None:
    ap = arguments(__doc__ or "", steps=6500, batch=64, lr=8e-4, out="runs/unet")
    ap.add_argument("--vae", type=Path, default=Path("runs/vae/vae"))
    ap.add_argument("--text", type=Path, default=Path("runs/text"))
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
    w = world.load()
    unet = build(vae.config.latent_channels, encoder.config.hidden_size, tuple(a.channels), a.layers, w.image // w.cell)
    if a.init:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(a.init).state_dict())
    unet = unet.to(dev, memory_format=torch.channels_last)
    run = Run(a, unet, adamw(unet, a.lr, 0.01), 0.9995)
    noise_scheduler = scheduler()

    if not a.export_only:
        print(f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters", flush=True)
        data = Samples(vae, encoder, tok, a.seed, a.cache, dev)
        alphas = noise_scheduler.alphas_cumprod.to(dev)
        # plain attention: the fused kernel's backward is slow on CPU
        unet.set_attn_processor(AttnProcessor() if dev.type == "cpu" else AttnProcessor2_0())
        forward = torch.compile(unet) if a.compile else unet
        log = Log(a.steps, a.batch)
        while run.step < run.stop:
            g = generator(a.seed + 1, run.step, dev)
            z, rows = data.batch(run.step * a.batch, a.batch)
            drop = torch.rand(a.batch, generator=g, device=dev) < 0.1
            rows = torch.where(drop[:, None, None], data.empty, rows)
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
        if run.paused():
            return

    unet.load_state_dict(run.averaged())
    unet.set_attn_processor(AttnProcessor2_0())
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tok, unet=unet.eval(), scheduler=noise_scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    export(pipe, a.out / "pipeline")


if __name__ == "__main__":
    main()
