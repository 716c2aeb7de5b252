"""Detectors as interventions: each reads its numbers from a run and changes nothing.

    with unleak.attach(pipe, Magnitude()) as run:
        pipe("a prompt", num_images_per_prompt=4)
    run.results["magnitude"]          # step -> one value per image

`window` and `sites` choose the steps and sites that are looked at, as everywhere. A new detector is one class and a
line in `presets.DETECTORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from unleak.copies.detect.detect import (
    agreement,
    entropy,
    late_entropy,
    late_steps,
    localised_magnitude,
    magnitude,
)
from unleak.copies.detect.guided import Guided, guidance_pair
from unleak.core.attention import AttentionCall
from unleak.core.context import Context
from unleak.core.intervention import Intervention
from unleak.engine.run import Run
from unleak.errors import BadInput, NotFinite, UnsupportedModel, choose
from unleak.text.positions import summary_rows


@dataclass(frozen=True)
class Detector(Intervention):
    """Leaves one value per image and step in `run.results[name]`, a mapping from the step's number; of the last call.

    name      as in results and on the command line
    guided    reads the prediction without the prompt, so it needs guidance (see `guided.guidance_pair`)
    compares  compares the images of a prompt, so it needs two seeds or more
    whole     needs the whole trajectory, not its first steps
    """

    name: ClassVar[str]
    guided: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    _named: ClassVar[dict[str, type[Detector]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):
            Detector._named[cls.name] = cls

    @staticmethod
    def named(name: str) -> Detector:
        """The detector of this name, with its defaults. Raises BadInput."""
        return Detector._named[choose("detector", name, Detector._named)]()

    def note(self, ctx: Context, value: Tensor, step: int | None = None) -> None:
        """Keep the value [images] of a step (default: this one); a sampler that predicts it twice is noted once."""
        noted = ctx.results[self.name] = ctx.state.setdefault("noted", {})
        noted.setdefault(ctx.step if step is None else step, value.detach())

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> None:
        self.note(ctx, self.measure(ctx, preds))

    def measure(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        """One value per image from the predictions of the current step."""
        raise NotImplementedError

    def scores(self, run: Run) -> Tensor:
        """One score per image [N], the mean over the steps; higher means memorized.

        Raises:
            NotFinite: a prediction was NaN or infinite.
            UnsupportedModel: nothing was noted: the run never came to the detector's window or sites.
        """
        noted = run.results.get(self.name)
        if not noted:
            raise UnsupportedModel(f"{self.name} saw no step: its window or its sites lie outside of this run")
        means = torch.stack(list(noted.values())).float().mean(0).cpu()
        if not torch.isfinite(means).all():
            raise NotFinite(f"{self.name} is NaN or infinite: run the model in a wider dtype")
        return means


def with_and_without(ctx: Context, preds: Mapping[str, Tensor], name: str) -> Guided:
    """The predictions with and without the prompt. Raises UnsupportedModel where the pipeline does not guide."""
    if (pair := guidance_pair(ctx, preds)) is None:
        free = ", ".join(n for n, d in Detector._named.items() if not d.guided)
        raise UnsupportedModel(
            f"{name} needs classifier-free guidance and this run has none: raise guidance_scale above 1 if the model "
            f"has it, or use a detector that works without: {free}"
        )
    return pair


@dataclass(frozen=True)
class Magnitude(Detector):
    """Norm of the text-conditional noise (`detect.magnitude`), Wen et al."""

    name = "magnitude"
    guided = True

    def measure(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        pair = with_and_without(ctx, preds, self.name)
        return magnitude(pair.cond, pair.uncond)


@dataclass(frozen=True)
class Agreement(Detector):
    """How far all seeds are pushed the same way by the text (`detect.agreement` of the text direction); ours."""

    name = "agreement"
    guided = True
    compares = True

    def measure(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        pair = with_and_without(ctx, preds, self.name)
        return by_prompt(ctx, pair.cond - pair.uncond)


@dataclass(frozen=True)
class Collapse(Detector):
    """How far all seeds head for the same clean image (`detect.agreement` of `clean_latents`); ours.

    Diversity over seeds that is lost at the first step. Needs no guidance, so it works on distilled models.
    """

    name = "collapse"
    compares = True

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> None:
        ctx.state["preds"] = preds

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        """The step has shown what the scheduler makes of a prediction."""
        if (preds := ctx.state.pop("preds", None)) is not None:
            self.note(ctx, self.measure(ctx, preds))

    def measure(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        return by_prompt(ctx, ctx.clean_latents(preds["cond"]))


def prompts_of_images(ctx: Context, images: int) -> list[str]:
    """The prompt of each image. Raises UnsupportedModel where the call did not name them."""
    prompts = ctx.encoded.image_prompts
    if len(prompts) != images:
        raise UnsupportedModel(f"{images} images of {len(prompts)} known prompts: call the pipeline with `prompt`")
    return prompts


def by_prompt(ctx: Context, x: Tensor, of: Callable[[Tensor], Tensor] = agreement) -> Tensor:
    """What `of` makes of the images of each prompt, [N] of [N, ...]; by default `detect.agreement` among them."""
    prompts = prompts_of_images(ctx, len(x))
    out = x.new_empty(len(x), dtype=torch.float32)
    for prompt in dict.fromkeys(prompts):
        rows = [i for i, other in enumerate(prompts) if other == prompt]
        out[rows] = of(x[rows])
    return out


@dataclass(frozen=True)
class TextAttention(Detector):
    """Base of the entropies: attention of the average image cell to each text row, heads and sites averaged."""

    def on_attention(self, ctx: Context, site: AttentionCall) -> None:
        if site.kind == "self" or not site.rows.of("cond"):
            return
        by_site = ctx.state.setdefault("attention", {})
        by_site.setdefault(site.name, site.text_shares(site.rows.first("cond")).mean(1))

    def shares(self, ctx: Context) -> list[Tensor]:
        """[N, K] for each site in the order in which they run; forgets them."""
        by_site = ctx.state.pop("attention", {})
        if not by_site:
            raise UnsupportedModel(f"{self.name}: none of the chosen sites attends to the text")
        return list(by_site.values())


@dataclass(frozen=True)
class Entropy(TextAttention):
    """Entropy of attention to the text over all chosen sites (`detect.entropy`), Ren et al."""

    name = "entropy"

    def measure(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        return entropy(torch.stack(self.shares(ctx)).mean(0))


@dataclass(frozen=True)
class SiteEntropy(TextAttention):
    """Ren's metric E: the entropy at one site, counted from 0 in the order in which sites read the text."""

    name = "site-entropy"
    site: int = 3

    def measure(self, ctx: Context, preds: Mapping[str, Tensor]) -> Tensor:
        shares = self.shares(ctx)
        if not 0 <= self.site < len(shares):
            raise BadInput(f"site {self.site} of {len(shares)} that read the text: choose 0 to {len(shares) - 1}")
        return entropy(shares[self.site])


@dataclass(frozen=True)
class LateEntropy(TextAttention):
    """Ren's metric D over the whole trajectory (`detect.late_entropy`)."""

    name = "late-entropy"
    whole = True
    late: float = 0.2  #: the share of the steps at the end that counts as late

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> None:
        steps, here = ctx.state.setdefault("steps", []), torch.stack(self.shares(ctx)).mean(0)
        if len(steps) == ctx.step:
            steps.append(here)
        if len(steps) == ctx.steps:
            p = torch.stack(steps)
            summary = _as_long(summary_rows(ctx.encoded), p.shape[-1]).to(p.device)
            self.note(ctx, late_entropy(p, summary, late_steps(len(p), self.late)))


def _as_long(summary: Tensor, length: int) -> Tensor:
    """Which of the text rows that a site reads are summary rows: a denoiser may pad the text further, or cut pads off.

    Raises UnsupportedModel: it cuts off others than pads, so that the site's rows are not known.
    """
    missing = length - summary.shape[1]
    if missing < 0 and not summary[:, length:].all():
        raise UnsupportedModel(f"the sites read {length} text rows of {summary.shape[1]}, which are not known")
    return torch.nn.functional.pad(summary, (0, missing), value=True)


@dataclass(frozen=True)
class BrightEnding(Detector):
    """Magnitude where the end token looks at the last step (`detect.localised_magnitude`), Chen et al.

    The mask is the mean attention to EOS over the heads of all sites at the resolution of the latents, and stays in
    `run.results["bright-ending/mask"]` [N, h, w]. `looked_at` are the steps whose magnitude counts (default: all).
    """

    name = "bright-ending"
    guided = True
    whole = True
    looked_at: tuple[int, ...] | None = field(default=None, kw_only=True)

    def on_attention(self, ctx: Context, site: AttentionCall) -> None:
        last = ctx.step == ctx.steps - 1
        reads_text = site.kind != "self" and site.rows.of("cond")
        if not last or not reads_text or ctx.grid is None or site.grid != ctx.grid.size:
            return
        ends = summary_rows(ctx.encoded).int().argmax(1).tolist()
        tokens = sorted(set(ends))
        columns = site.columns(tokens, site.rows.first("cond"))  # [N, h, w, T]
        mask = torch.stack([columns[i, :, :, tokens.index(end)] for i, end in enumerate(ends)])
        ctx.state.setdefault("masks", {})[site.name] = mask

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> None:
        pairs = ctx.state.setdefault("pairs", {})
        if self.looked_at is None or ctx.step in self.looked_at:
            pairs.setdefault(ctx.step, with_and_without(ctx, preds, self.name))
        if ctx.step == ctx.steps - 1:
            if not ctx.state.get("masks"):
                raise UnsupportedModel("bright-ending: no site attends to the text at the resolution of the latents")
            mask = torch.stack(list(ctx.state["masks"].values())).mean(0)
            ctx.results[f"{self.name}/mask"] = mask
            for step, pair in pairs.items():
                self.note(ctx, localised_magnitude(pair.cond, pair.uncond, mask), step)
