"""Cost of the mechanism, as ratios to the bare pipeline in the same run.

One process, random weights of the size of Stable Diffusion 1.5, 64 x 64 latents, guidance on. Variants are
interleaved and repeated; times are medians. `--small` checks the script in seconds, on numbers that mean nothing.

    python benchmarks/overhead.py [--dtype bf16] [--steps 2] [--repeats 5] [--json FILE] [--small]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from unleak.core.edits import KeyScale, Partition, Region
from unleak.core.intervention import Intervention
from unleak.core.rows import Branch
from unleak.core.scores import RunningMean
from unleak.engine.session import attach
from unleak.words.methods.maps import Maps

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny import clip_tokenizer

EARLY = ("down_blocks.*.attn2", "mid_block.*.attn2")
PROMPT = "a red mouse and a blue cup and a furry dog and a golden key"
ITEMS = "red,mouse,blue,cup,furry,dog,golden,key"


@dataclass(frozen=True)
class Columns(Intervention):
    """Running mean of eight text columns at every cross-attention site."""

    def on_attention(self, ctx: Any, site: Any) -> None:
        if site.kind == "cross":
            ctx.results.setdefault("maps", RunningMean()).add(site.name, site.columns(range(1, 9)))


@dataclass(frozen=True)
class Scale(Intervention):
    """Three tokens amplified."""

    def on_attention(self, ctx: Any, site: Any) -> KeyScale | None:
        return KeyScale((2, 3, 4), 1.2) if site.kind == "cross" else None


@dataclass(frozen=True)
class Regions(Intervention):
    """Three regions that read their own text, and the rest of the image, at every cross-attention site."""

    def on_text(self, ctx: Any, call: Any) -> None:
        ctx.state["texts"] = list(call.rerun(["a red mouse", "a blue cup", "a furry dog"])[0])

    def on_attention(self, ctx: Any, site: Any) -> Partition | None:
        if site.kind != "cross":
            return None
        if "regions" not in ctx.state:
            height, width = ctx.grid.size
            masks = torch.zeros(3, height, width, dtype=torch.bool)
            masks[0, : height // 2, : width // 2] = True
            masks[1, : height // 2, width // 2 :] = True
            masks[2, height // 2 :, : width // 3] = True
            pairs = zip(masks, ctx.state["texts"], strict=True)
            ctx.state["regions"] = [Region(mask, text=text, keep_keys=True) for mask, text in pairs]
        return Partition(ctx.state["regions"])


@dataclass(frozen=True)
class OneBranch(Intervention):
    """A third row in every denoiser call."""

    def branches(self, ctx: Any) -> list[Branch]:
        return [Branch("extra")]


@dataclass(frozen=True)
class Variant:
    name: str
    open: Callable[[Any], contextlib.AbstractContextManager]
    budget: float | None = None  # largest ratio of time
    memory: float | None = None  # largest ratio of memory


VARIANTS = (
    Variant("bare", lambda pipe: contextlib.nullcontext()),
    Variant("attach, nothing requested", lambda pipe: attach(pipe), 1.01),
    Variant("columns for 8 items, all cross sites", lambda pipe: attach(pipe, Columns()), 1.10, 1.05),
    Variant("maps of 8 items (unleak.Maps)", lambda pipe: attach(pipe, Maps(ITEMS)), 1.10, 1.05),
    Variant("key scaling, 7 sites", lambda pipe: attach(pipe, Scale(sites=EARLY))),
    Variant("partitioned edit, 3 regions, all cross sites", lambda pipe: attach(pipe, Regions()), 1.15),
    Variant("one extra branch (3 rows instead of 2)", lambda pipe: attach(pipe, OneBranch())),
)


def build(small: bool, dtype: torch.dtype, device: str) -> Any:
    """A pipeline with random weights; the denoiser has the size of Stable Diffusion 1.5 unless `small`."""
    width = 64 if small else 768
    tokenizer = clip_tokenizer()
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    sizes = {"block_out_channels": (32, 64, 64, 64)} if small else {"block_out_channels": (320, 640, 1280, 1280)}
    unet = diffusers.UNet2DConditionModel(
        sample_size=16 if small else 64, cross_attention_dim=width, attention_head_dim=8, **sizes
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


class PeakMemory:
    """Peak memory in MiB since `start`: of the accelerator, or of the whole process on Linux; nan elsewhere."""

    reset = Path("/proc/self/clear_refs")

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def start(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif self.reset.exists():
            self.reset.write_text("5")  # resets the high-water mark

    def stop(self) -> float:
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        if not self.reset.exists():
            return math.nan
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 2**10


def measure(runs: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, dict[str, list[float]]]:
    """Seconds and peak MiB of every repeat, by variant: of the clock on an accelerator, of the process on a CPU, so
    that a busy machine does not count. One warm-up round is thrown away."""
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "memory": []} for name in runs}
    memory = PeakMemory(device)
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            memory.start()
            start = clock()
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            elapsed = clock() - start
            if repeat:
                found[name]["seconds"].append(elapsed)
                found[name]["memory"].append(memory.stop())
    return found


def summarise(found: dict[str, dict[str, list[float]]], bare: str) -> dict[str, dict[str, float]]:
    """Medians by variant, and medians of the ratios to the bare run of the same round."""
    rows: dict[str, dict[str, float]] = {}
    for name, mine in found.items():
        row = rows.setdefault(name, {})
        for key in ("seconds", "memory"):
            row[key] = statistics.median(mine[key])
            row[f"{key}_ratio"] = statistics.median(a / b for a, b in zip(mine[key], found[bare][key], strict=True))
    return rows


def calls(pipe: Any, steps: int) -> dict[str, Callable[[], Any]]:
    """One call of the pipeline under every variant."""

    def run(variant: Variant) -> None:
        with variant.open(pipe):
            pipe(PROMPT, num_inference_steps=steps, output_type="latent", generator=torch.Generator().manual_seed(0))

    return {variant.name: partial(run, variant) for variant in VARIANTS}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| variant | s / step | ratio | budget | peak MiB | ratio | budget |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        budgets = ["" if row[key] is None else f"{row[key]:.2f}" for key in ("budget", "memory_budget")]
        time_cells = f"{row['seconds']:.3f} | {row['seconds_ratio']:.3f} | {budgets[0]}"
        lines.append(
            f"| {row['variant']} | {time_cells} | {row['memory']:.0f} | {row['memory_ratio']:.3f} | {budgets[1]} |"
        )
    return "\n".join(lines)


def options_of(parser: argparse.ArgumentParser, repeats: int) -> argparse.Namespace:
    """The options of a benchmark of one size of model; `torch_dtype` is the name that torch knows."""
    parser.add_argument("--small", action="store_true", help="a small denoiser, to check the script")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    options = parser.parse_args()
    options.torch_dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[options.dtype]
    return options


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    chosen = {name: getattr(options, name) for name in ("small", "dtype", "device", "steps", "repeats")}
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    return {**chosen, "threads": torch.get_num_threads(), **versions, "machine": platform.machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = options_of(parser, repeats=5)
    torch.manual_seed(0)
    pipe = build(options.small, getattr(torch, options.torch_dtype), options.device)
    found = measure(calls(pipe, options.steps), options.repeats, options.device)
    for variant in found.values():
        variant["seconds"] = [seconds / options.steps for seconds in variant["seconds"]]
    summary = summarise(found, VARIANTS[0].name)
    rows = [{"variant": v.name, "budget": v.budget, "memory_budget": v.memory, **summary[v.name]} for v in VARIANTS]
    print(table(rows))
    if options.json:
        made = {"schema": "unleak/overhead/1", **about(options), "rows": rows, "measured": found}
        options.json.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
