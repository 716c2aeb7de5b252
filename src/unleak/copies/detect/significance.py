"""Which tokens make a prompt memorized: the gradient of the text-conditional noise's norm (Wen et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unleak.copies.detect.detectors import prompts_of_images, with_and_without
from unleak.core.context import Context
from unleak.core.intervention import Intervention
from unleak.core.rows import Branch
from unleak.drawing.first_steps import first_steps
from unleak.text.positions import first_encoder, prompt_tokens


@dataclass(frozen=True)
class Significance(Intervention):
    """Leaves ``||dL/de_k||_2`` [P, K] of every step in `run.results["significance"]`, for P prompts of any images.

    ``L = ||e(z, c) - e(z, c_u)||_2`` over all images of a prompt; e_k is row k of its text, one leaf for all of them.
    Costs one more forward and one backward pass of N rows a step.
    """

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> None:
        rows, pair = ctx.encoded.cond, with_and_without(ctx, preds, "significance")
        assert rows is not None
        images = prompts_of_images(ctx, len(pair.cond))
        first = {prompt: i for i, prompt in reversed(list(enumerate(images)))}
        prompts = list(dict.fromkeys(images))
        with torch.enable_grad():
            e = torch.stack([rows[first[prompt]] for prompt in prompts]).detach().requires_grad_()
            text = e[[prompts.index(prompt) for prompt in images]]
            v = (pair.of(ctx.predict([Branch("significance", text=text)])["significance"]) - pair.uncond).float()
            norms = [v[[i for i, other in enumerate(images) if other == prompt]].norm() for prompt in prompts]
            (gradient,) = torch.autograd.grad(torch.stack(norms).sum(), e)
        noted = ctx.results["significance"] = ctx.state.setdefault("noted", {})
        noted.setdefault(ctx.step, gradient.float().norm(dim=-1))


def token_significance(
    pipe: Any, prompt: str, seeds: Sequence[int] = range(4), steps: int = 1, **call: Any
) -> list[tuple[str, float]]:
    """(token, significance) for every token of the prompt up to EOS; BOS is left out. Higher: more memorized by it.

    The mean over the first `steps` steps. Tokens are those of
    `unleak.text.positions.first_encoder`.

    Raises:
        UnsupportedModel: the run has no classifier-free guidance.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    run = first_steps(pipe, steps, Significance(), prompt=[prompt] * len(generators), generator=generators, **call)
    significance = torch.stack(list(run.results["significance"].values())).mean(0)[0]
    tokens = prompt_tokens(run.encoded)[0]
    names = first_encoder(run.encoded).tokenizer.convert_ids_to_tokens(list(tokens.ids))
    return [(names[k], float(significance[k])) for k in range(tokens.body[0], tokens.end + 1)]
