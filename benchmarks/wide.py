"""Scans of very many prompts: what the text side costs of a million, what a cascade finds, and throughput of a worker.

`--lines N` prompts go through reading, checking for repetition and length, and writing, with the denoiser left out and
its scores drawn at random (the output says so). On the embedded model: prompts a minute of the cheap and of the full
look, and the recall of each stage: the share of the captions that the model knows by heart which it lets pass, where it
lets a given share of ordinary captions pass. Intervals (95 %) are of verbatim captions; of templates, eight share a
scene. `--plan` only counts the operations of a denoiser's row, on no device, for SD 1.5 and SDXL, and what follows.

    python benchmarks/wide.py [--lines 1000000] [--plan] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unleak import models
from unleak.copies.scan.cascade import cascade, first_look, normal
from unleak.copies.scan.scanner import Scanner
from unleak.files.provenance import made_by
from unleak.files.workers import Here
from unleak.stats.rate import Rate
from unleak.world import load as load_world

PEAK, USED, SHARE = 989e12, 0.3, 0.05  #: dense bf16 of an H100 SXM by its data sheet; assumed
KINDS = ("verbatim", "template")
PASS = (0.02, 0.05, 0.1, 0.2, 0.5)


class Simulated(Scanner):
    """The text side is real; scores are drawn at random."""

    def _full(self, prompts: Any) -> list[dict[str, Any]]:
        drawn = [random.Random(prompt).random() for prompt in prompts]
        return [{"prompt": p, "score": x, "memorized": None, "scores": {"simulated": x}, "images": {"simulated": [x]}}
                for p, x in zip(prompts, drawn, strict=True)]  # fmt: skip


def wide(pipe: Any, lines: int, call: dict[str, Any]) -> dict[str, Any]:
    """Seconds and peak memory of a cascade over so many prompts, a tenth of them repeated, with simulated scores."""
    scanner = Simulated(pipe, seeds=2, batch=256, call=call, name="simulated")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.txt"
        with path.open("w") as file:
            file.writelines(f"a cat and {i if i % 10 else 'a dog'}\n" for i in range(lines))
        start = time.perf_counter()
        here = lambda: nullcontext(Here(scanner))  # noqa: E731
        found = cascade(here, here, path, Path(folder) / "scan.jsonl", 0.05)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"lines": lines, "looked_at": found.looked_at, "passed": found.passed, "seconds": seconds, "peak_mib": peak}


def recall(pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Scores of memorized and ordinary captions by stage, and what each stage lets pass."""
    world = load_world()
    texts = {kind: [c.text for c in world.memorized if c.kind == kind] for kind in KINDS}
    texts["ordinary"] = [c.text for c in world.ordinary]
    every = [text for some in texts.values() for text in some]
    looks = {
        "cheap": first_look(range(4), call), "half the sides": first_look(range(4), call, halved=(64, 64)),
        "full": {"seeds": list(range(4)), "call": call},
    }  # fmt: skip
    out: dict[str, Any] = {"near": {"captions": len(every), "kept": len({normal(text) for text in every})}}
    for name, look in looks.items():
        scanner = Scanner(pipe, **look)
        scanner.records(every[:1])
        start = time.perf_counter()
        scores = {kind: np.array([r["score"] for r in scanner.records(some)]) for kind, some in texts.items()}
        seconds = time.perf_counter() - start
        rates = {
            kind: {share: Rate.of(scores[kind] >= np.quantile(scores["ordinary"], 1 - share)) for share in PASS}
            for kind in KINDS
        }
        out[name] = {"prompts_a_minute": 60 * len(every) / seconds, "recall": rates}
    return out


def operations(kind: str, pixels: int) -> float:
    """Floating-point operations of one row of a denoiser at this size, counted on the meta device."""
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    side = pixels // 8
    with torch.device("meta"):
        if kind == "SD 1.5":
            unet, text, more = UNet2DConditionModel(cross_attention_dim=768), torch.empty(1, 77, 768), {}
        else:
            unet = UNet2DConditionModel(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(320, 640, 1280), transformer_layers_per_block=[1, 2, 10],
                attention_head_dim=[5, 10, 20], cross_attention_dim=2048, use_linear_projection=True,
                addition_embed_type="text_time", addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            )  # fmt: skip
            text = torch.empty(1, 77, 2048)
            more = {"added_cond_kwargs": {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(torch.empty(1, 4, side, side), torch.empty(1), text, **more)
    return float(counter.get_total_flops())


def plan() -> None:
    """What 100 million prompts take: rows and operations are counted, hours follow from the assumptions named."""
    print(f"assumed: {PEAK / 1e12:.0f} TFLOP/s at its peak, of which {USED:.0%} is used; {SHARE:.0%} pass; one step\n")
    heads = ("denoiser", "look", "rows", "TFLOP a row", "GPU hours, all in full", "cascade", "cascade, half the sides")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for kind, pixels in (("SD 1.5", 512), ("SDXL", 1024)):
        full, cheap = operations(kind, pixels), operations(kind, pixels // 2)
        works = (8 * full, 4 * full + SHARE * 8 * full, 4 * cheap + SHARE * 8 * full)
        hours = " | ".join(f"{1e8 * work / (PEAK * USED) / 3600:.0f}" for work in works)
        print(f"| {kind} {pixels} px | full | 8 | {full / 1e12:.2f} | {hours} |")
        print(f"| {kind} {pixels // 2} px | half the sides | 4 | {cheap / 1e12:.2f} | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    parser.add_argument("--plan", action="store_true", help="only the plan of 100 million prompts")
    options = parser.parse_args()
    if options.plan:
        return plan()
    pipe, call = models.load("emoji-sd"), models.settings("emoji-sd")
    stages = recall(pipe, call)
    near = stages["near"]
    print(f"nearly equal prompts: {near['kept']} of {near['captions']} captions are kept\n")
    print("| stage | prompts a minute | " + " | ".join(f"recall where {100 * s:g} % pass" for s in PASS) + " |")
    print("|---|---|" + "---|" * len(PASS))
    for name in (one for one in stages if one != "near"):
        for kind, rates in stages[name]["recall"].items():
            sure = kind == "verbatim"
            cells = [str(r) + (f" ({r.low:.2f} to {r.high:.2f})" if sure else "") for r in rates.values()]
            print(f"| {name}, {kind} | {stages[name]['prompts_a_minute']:.0f} | " + " | ".join(cells) + " |")
    big = wide(pipe, options.lines, call)
    print(f"\n{big['lines']} lines, scores simulated: {big['seconds']:.0f} s, {big['peak_mib']:.0f} MiB at most; "
          f"{big['looked_at']} prompts looked at, {big['passed']} passed")  # fmt: skip
    if options.json:
        about = {"schema": "unleak/wide/1", **made_by(), "stages": stages, "simulated": big}
        options.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
