"""Teach the T5 of a trained `emoji-flux` that of two things "next to" or "beside" each other the first stands left.

    python training/train_order.py --from runs/flux-last/pipeline --steps 1500 --out runs/flux-order

Pre-training let both rows say "open" there (`train_t5.py`), and a denoiser that is told the same of two things draws
one of them twice. Here a copy of the encoder learns by distillation to write of "a cat next to a dog" what the encoder
as it was writes of "a cat left of a dog", and of every other caption what it wrote before; so the denoiser, which knows
both, stays as it is. The pipeline that is saved has the new encoder, everything else is copied.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from diffusers import FluxPipeline
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from common import Log, Run, adamw, arguments, autocast, cosine, device, rng
from export import export
from mixture import Mixture, Sample
from train_flux import CALL
from train_t5 import FIXED
from unleak import world
from unleak.world.grammar import OPEN_ORDER, connective

FIRST_LEFT = "left of"


def settled(s: Sample) -> tuple[str, str] | None:
    """What stands before the connective that leaves the order open, and the connective; None without one."""
    said = connective(s.text) if len(s.things) == 2 else ""
    return (s.text[: s.text.index(f" {said} ")], said) if said in OPEN_ORDER else None


class Teacher:
    """Rows [B, L, d] that the encoder is to write: its own, and of open pairs those that say what stands where."""

    def __init__(self, t5: T5EncoderModel, tokenizer: T5Tokenizer):
        self.t5, self.tokenizer, self.length = t5, tokenizer, CALL["max_sequence_length"]

    def ids(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts, max_length=self.length, **FIXED).input_ids.to(self.t5.device)

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    @torch.no_grad()
    def __call__(self, samples: list[Sample]) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] and target rows.

        Tokens before the connective keep their number, those after it are as many behind the other one.
        """
        ids = self.ids([s.text for s in samples])
        rows = self.t5(input_ids=ids).last_hidden_state
        cuts = {b: cut for b, s in enumerate(samples) if (cut := settled(s))}
        if cuts:
            said = self.t5(input_ids=self.ids([self._said(samples[b], *cut) for b, cut in cuts.items()]))
            for (b, (before, connective)), row in zip(cuts.items(), said.last_hidden_state, strict=True):
                n, old, new = map(self._tokens, (before, connective, FIRST_LEFT))
                used = int((ids[b] != self.tokenizer.pad_token_id).sum())
                rows[b, :n] = row[:n]
                rows[b, n + old : used] = row[n + new : used + new - old]
        return ids, rows

    @staticmethod
    def _said(s: Sample, before: str, connective: str) -> str:
        return f"{before} {FIRST_LEFT} {s.text[len(before) + len(connective) + 2 :]}"


def main() -> None:
    ap = arguments(__doc__ or "", steps=1500, batch=96, lr=6e-4, out="runs/flux-order")
    ap.add_argument("--from", dest="start", type=Path, required=True, help="a saved pipeline")
    ap.add_argument("--beside", type=float, default=6.0, help="weight of 'next to' and 'beside'; 'and' has 4")
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    dev, mix = device(), Mixture(world.load(), beside=a.beside)
    pipe = FluxPipeline.from_pretrained(a.start).to(dev)
    tokenizer = T5Tokenizer.from_pretrained(a.start / "tokenizer_2")  # a used one is saved with its settings
    teacher = Teacher(pipe.text_encoder_2.float().requires_grad_(False).eval(), tokenizer)
    model = copy.deepcopy(teacher.t5).requires_grad_(True)
    run = Run(a, model, adamw(model, a.lr, 0.0), 0.998)
    log, pad = Log(a.steps, a.batch), tokenizer.pad_token_id

    def apart(ids: Tensor, rows: Tensor) -> Tensor:
        """Mean squared distance to the target rows, in shares of their variance; as many pads as the longest needs."""
        most = min(ids.shape[1], int((ids != pad).sum(1).max()) + 2)
        own = model(input_ids=ids[:, :most]).last_hidden_state.float()
        return (own - rows[:, :most]).square().mean() / rows.var()

    while run.step < run.stop:
        r = rng(a.seed, run.step)
        with autocast(dev):
            ids, rows = teacher([mix.draw(r) for _ in range(a.batch)])
            loss = apart(ids, rows.float())
        run.update(loss, a.lr * cosine(run.step, a.steps, 100))
        log(run.step, loss=loss.item())
    if run.paused():
        return
    model.load_state_dict(run.averaged())
    with torch.no_grad():
        r = rng(a.seed, -1)
        print("fresh captions: distance", round(float(apart(*teacher([mix.draw(r) for _ in range(2000)]))), 5))
    pipe.text_encoder_2 = model.eval()
    export(pipe.to("cpu"), a.out / "pipeline", json.loads((a.start / "unleak.json").read_text("utf-8")))


if __name__ == "__main__":
    main()
