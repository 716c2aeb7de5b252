"""Train `emoji-dit`: FLUX's layout with 8 x 8 image tokens, on text rows that know no context.

    python training/train_autoencoder.py --world 2 --channels 16 32 64 --latents 4 --steps 1200 --out runs/vae16
    python training/train_dit.py --encoder MINILM --vae runs/vae16/vae --steps 24000 --out runs/dit

The rows are the embeddings of words and positions, and the pooled vector is the same for every caption: whatever goes
wrong between objects is the denoiser's doing. Most captions have one or two objects (`unplanted.FEW`), so that binding
and neglect among three and four are its own errors. Flow matching, as `train_flux.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor

import encoders
from common import Run, adamw, arguments, device
from export import export
from pool import Pool
from train_flux import build, fit
from unleak import world
from unplanted import FEW, Unplanted

#: how the model is meant to be called; a negative prompt and a scale above 1 turn guidance on
CALL = {
    "num_inference_steps": 16, "true_cfg_scale": 4.0, "height": 64, "width": 64,
    "max_sequence_length": encoders.ROWS, "negative_prompt": "",
}  # fmt: skip


def main() -> None:
    ap = arguments(__doc__ or "", steps=24000, batch=32, lr=1e-3, out="runs/dit")
    ap.add_argument("--vae", type=Path, default=Path("runs/vae16/vae"))
    ap.add_argument("--encoder", type=Path, required=True, help="folder of all-MiniLM-L6-v2; see encoders.py")
    ap.add_argument("--width", type=int, default=192)
    ap.add_argument("--double", type=int, default=3, help="double-stream blocks")
    ap.add_argument("--single", type=int, default=3, help="single-stream blocks")
    ap.add_argument("--samples", type=int, default=96_000, help="different captions and pictures")
    ap.add_argument("--pool", type=Path, default=Path("runs/pool-dit"))
    ap.add_argument("--export-only", action="store_true", help="save the pipeline of the last checkpoint and stop")
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    dev = device()
    vae = AutoencoderKL.from_pretrained(a.vae).to(dev, memory_format=torch.channels_last).requires_grad_(False).eval()
    vae.register_to_config(shift_factor=0.0)  # FLUX's pipeline adds it
    encoder, tok = encoders.load(a.encoder, False, dev)
    rows = encoders.rows(encoder, tok)
    width = encoder.config.hidden_size
    transformer = build(vae.config.latent_channels, width, width, a.width, a.double, a.single).to(dev)
    run = Run(a, transformer, adamw(transformer, a.lr, 0.01), 0.999)
    if not a.export_only:
        pool = Pool(vae, rows, Unplanted(world.load(2), FEW), a.pool, "static", a.samples, order=a.seed)
        with torch.no_grad():  # of the first row, which is [CLS] in every caption
            pooled = encoder(input_ids=torch.tensor([[tok.cls_token_id]], device=dev)).pooler_output

        def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
            return *pool.batch(step, a.batch), pooled.expand(a.batch, -1)

        fit(a, run, transformer, batch, (pool.empty, pooled[0]), dev)
        if run.paused():
            return
    transformer.load_state_dict(run.averaged())
    pipe = FluxPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tok, text_encoder_2=encoder, tokenizer_2=tok,
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    said = encoders.settings(CALL, "text_encoder", "text_encoder_2", guidance="true_cfg_scale")
    export(pipe, a.out / "pipeline", said)


if __name__ == "__main__":
    main()
