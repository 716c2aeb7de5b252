"""Generate images for many prompts and seeds through the user's own pipeline.

Image `j` of a prompt always comes from a CPU generator seeded with `seeds[j]`, whatever the batch, so that an
image with and without an intervention starts from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from unleak.errors import BadInput, NotFinite


def parse_seeds(text: str) -> list[int]:
    """`"3"` -> [3]; `"0:4"` -> [0, 1, 2, 3]; `"1,5,7"` -> [1, 5, 7]. Raises BadInput."""
    try:
        if ":" in text:
            a, b = (int(x) for x in text.split(":"))
            seeds = list(range(a, b))
        else:
            seeds = [int(x) for x in text.split(",")]
    except ValueError:
        raise BadInput(f"cannot read seeds {text!r}: write 7, 0:4 or 1,5,9") from None
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63 or len(seeds) > 10_000:
        raise BadInput(f"seeds {text!r} give {len(seeds)} seeds; give 1 to 10000 non-negative ones")
    return seeds


def check_prompt(prompt: str, limit: int = 10_000) -> str:
    """The prompt, if it is usable text. Raises BadInput for empty, absurdly long or undecodable text."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadInput("the prompt is empty: give a sentence to draw")
    if len(prompt) > limit:
        raise BadInput(f"the prompt has {len(prompt)} characters; no encoder reads more than {limit}")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("the prompt is not valid UTF-8 text") from None
    return prompt


def generate(
    pipe: Any,
    prompts: str | Sequence[str],
    seeds: Iterable[int] = range(4),
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
    **call: Any,
) -> np.ndarray:
    """Images [P, S, H, W, 3] uint8 for P prompts and S seeds.

    Prompts share a batch; `call` goes to the pipeline unchanged (steps, guidance, size ...). `progress` is told
    how many images each call made. Raises NotFinite if the pipeline returns NaN.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    seeds = list(seeds)
    if not texts or not seeds:
        raise BadInput("nothing to generate: give at least one prompt and one seed")
    for t in texts:
        check_prompt(t)
    jobs = [(t, s) for t in texts for s in seeds]
    out: list[np.ndarray] = []
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        generators = [torch.Generator("cpu").manual_seed(s) for _, s in part]
        images = pipe(prompt=[t for t, _ in part], generator=generators, output_type="np", **call).images
        if not np.isfinite(images).all():
            raise NotFinite("the pipeline returned NaN pixels; load it in float32 or bfloat16")
        out.append((np.asarray(images) * 255).round().astype(np.uint8))
        if progress:
            progress(len(part))
    stacked = np.concatenate(out)
    return stacked.reshape(len(texts), len(seeds), *stacked.shape[1:])
