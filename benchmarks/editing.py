"""Cost of an edit, as ratios to plain generation of as many steps in the same run.

One process, random weights of the size of Stable Diffusion 1.5, 64 x 64 latents, guidance on, one picture with 1 to 8
edited objects. Time and peak memory are of the whole call, decoding included; rows are counted in a call of
their own. Variants are interleaved and repeated; figures are medians. `--small` checks the script in seconds.

    python benchmarks/editing.py [--dtype bf16] [--steps 2] [--repeats 3] [--json FILE] [--small]
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from overhead import about, build, measure, options_of, summarise
from unleak.bench.words.repairs import counting
from unleak.regions.edit import edit
from unleak.regions.plan import Edit

NOUNS = ("cup", "dog", "key", "cat", "mouse", "laptop", "bear", "clock")
COUNTS = (1, 2, 4, 8)
PLAIN = "plain generation"


def variants(pipe: Any, steps: int) -> dict[str, Callable[[], Any]]:
    """What is compared: a plain call, and edits of more and more objects."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    picture = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    found: dict[str, Callable[[], Any]] = {
        PLAIN: lambda: pipe(
            "a cup", num_inference_steps=steps, height=side, width=side, generator=torch.Generator().manual_seed(0)
        )
    }
    for preset, counts in (("ale", COUNTS), ("ale-official", COUNTS[-1:])):
        for n in counts:
            masks = np.zeros((n, side, side), bool)
            for i, mask in enumerate(masks):  # 4 x 2 fields that do not touch
                y, x = side // 4 * (i // 2), side // 2 * (i % 2)
                mask[y : y + side // 5, x : x + side // 3] = True
            todo = [Edit(f"a {noun}", f"a red {noun}", mask) for noun, mask in zip(NOUNS, masks, strict=False)]
            found[f"{preset}, {n} object{'s' * (n > 1)}"] = lambda preset=preset, todo=todo: edit(  # type: ignore[misc]
                pipe, picture, todo, preset=preset, steps=steps
            )
    return found


def counted(pipe: Any, run: Callable[[], Any]) -> dict[str, int]:
    """Rows of the denoiser and of the text encoder in one call, and how often the encoder was called."""
    calls: list[None] = []
    hook = pipe.text_encoder.register_forward_hook(lambda *_: calls.append(None))
    try:
        with counting(pipe) as rows:
            run()
    finally:
        hook.remove()
    return {**rows, "encoder_calls": len(calls)}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| variant | denoiser rows | encoder calls (rows) | s | ratio | peak MiB | ratio |", "|---" * 7 + "|"]
    for r in rows:
        counts = f"{r['denoiser_rows']} | {r['encoder_calls']} ({r['encoder_rows']})"
        cost = f"{r['seconds']:.2f} | {r['seconds_ratio']:.2f} | {r['memory']:.0f} | {r['memory_ratio']:.3f}"
        lines.append(f"| {r['variant']} | {counts} | {cost} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = options_of(parser, repeats=3)
    torch.manual_seed(0)
    pipe = build(options.small, getattr(torch, options.torch_dtype), options.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        runs = variants(pipe, options.steps)
        ratios = summarise(measure(runs, options.repeats, options.device), PLAIN)
        rows = [{"variant": name, **counted(pipe, run), **ratios[name]} for name, run in runs.items()]
    print(table(rows))
    if options.json:
        made = {"schema": "unleak/editing-cost/1", **about(options), "rows": rows}
        Path(options.json).write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
