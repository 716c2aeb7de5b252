"""Train the denoiser of `emoji-natural` or `emoji-static` on a frozen encoder that someone else trained.

    python training/train_natural.py --encoder MINILM --vae runs/vae2/vae --seed 0 --out runs/natural-0
    python training/train_natural.py --encoder MINILM --vae runs/vae2/vae --rows static --out runs/static

The same UNet, samples and steps for both: `static` reads words and positions without context, so that no leak can come
from the encoder. Captions plant no leak (`unplanted.py`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0

import encoders
from common import Run, adamw, arguments, device
from export import export
from pool import Pool
from train_unet import build, fit, scheduler
from unleak import world
from unplanted import Unplanted

#: how the model is meant to be called
CALL = {"num_inference_steps": 20, "guidance_scale": 3.0}


def main() -> None:
    ap = arguments(__doc__ or "", steps=3200, batch=64, lr=8e-4, out="runs/natural")
    ap.add_argument("--vae", type=Path, default=Path("runs/vae2/vae"))
    ap.add_argument("--encoder", type=Path, required=True, help="folder of all-MiniLM-L6-v2; see encoders.py")
    ap.add_argument("--rows", choices=("contextual", "static"), default="contextual")
    ap.add_argument("--channels", type=int, nargs="+", default=(96, 192))
    ap.add_argument("--layers", type=int, default=1)
    ap.add_argument("--samples", type=int, default=48_000, help="different captions and pictures")
    ap.add_argument("--pool", type=Path, default=Path("runs/pool"), help="where they are kept, for all trainings")
    ap.add_argument("--export-only", action="store_true", help="save the pipeline of the last checkpoint and stop")
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    dev = device()
    vae = AutoencoderKL.from_pretrained(a.vae).to(dev, memory_format=torch.channels_last).requires_grad_(False).eval()
    encoder, tok = encoders.load(a.encoder, a.rows == "contextual", dev)
    w = world.load(2)
    unet = build(vae.config.latent_channels, encoder.config.hidden_size, tuple(a.channels), a.layers, w.image // w.cell)
    unet = unet.to(dev, memory_format=torch.channels_last)
    run = Run(a, unet, adamw(unet, a.lr, 0.01), 0.9995)
    if not a.export_only:
        pool = Pool(vae, encoders.rows(encoder, tok), Unplanted(w), a.pool, a.rows, a.samples, order=a.seed)
        fit(a, run, unet, lambda step: pool.batch(step, a.batch), pool.empty, dev)
        if run.paused():
            return
    unet.load_state_dict(run.averaged())
    unet.set_attn_processor(AttnProcessor2_0())
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tok, unet=unet.eval(), scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    export(pipe, a.out / "pipeline", encoders.settings(CALL, "text_encoder"))


if __name__ == "__main__":
    main()
