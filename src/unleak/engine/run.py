"""The state of one generation, and who is asked at a seam of it now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unleak.core.anatomy import Anatomy, Grid, eager
from unleak.core.attention import Checks
from unleak.core.context import Context
from unleak.core.intervention import SEAMS, Intervention, SiteFilter
from unleak.core.predictions import combination_of, sign_of
from unleak.core.rows import TEXT, Branch, Rows
from unleak.engine.arguments import beside, stacked
from unleak.engine.batch import Arguments, fits, grow, split, take, whole, with_text
from unleak.engine.clock import Clock
from unleak.engine.tap import Tap
from unleak.errors import BadInput, NoSite, UnsupportedModel
from unleak.text.call import Encoded, TextCall, replace_output
from unleak.text.prompts import Prompts

STEPPING = tuple(seam for seam in SEAMS if seam != "on_text")
"""Seams that are asked at the steps of the denoiser."""


@dataclass(frozen=True, eq=False)
class DenoiserCall:
    """A call of the pipeline: its arguments by name and rows, and the latents and rows with the extra branches'."""

    inputs: dict[str, Any]
    own: Rows
    latents: Tensor
    rows: Rows


class Run:
    """Interventions at work on one pipeline.

    Attributes:
        results: what the interventions leave for the user, over all generations.
        log: one JSON-serialisable entry for each generation.
        clock, prompts: where the generation stands, and what its prompts became.
        drawing: whether one is under way.
        steps_in: whether some intervention acts in the denoiser's calls.
        cache: what is kept during a generation.
        checks: what the sites of this denoiser call must not find, asked at its end.
        rows, pipeline_rows: of the current denoiser call: all, and those without the extra branches.
        inputs, latents: the arguments of that call by name, and the latents [rows, ...] among them.
        predictions: of the current step by label. combined: the interventions were asked about them.
        settled: the combined prediction that stands in the rows of this step's calls.
        pending: the combined prediction that waits for the scheduler's step.
        shared: what interventions keep for one another during a step.
        known: what the denoiser calls its latents and its text.
        drawn: what the pipeline prepared as latents, before the first step.
        calls: by label, the denoiser call that gave its prediction of this step.
        pipeline_combined: what the pipeline makes of them, where it calls the denoiser once per branch.
        returned: rows and predictions of this step's calls as the pipeline got them, until the sign is known.
        sign: see `Context.sign`. sign_sought: a step of this generation did not show it. sign_trusted: it was taken as
            1 before that.
        guided: what its guider makes of other predictions of this step, by label; None without a guider.
    """

    def __init__(self, pipe: Any, interventions: Sequence[Intervention]) -> None:
        for item in interventions:
            if not isinstance(item, Intervention):
                raise BadInput(f"{item!r} is not an Intervention")
        self.pipe = pipe
        self.interventions = tuple(interventions)
        self.anatomy = Anatomy.of(pipe)
        self.contexts = [Context(self, f"{i}.{type(item).__name__}") for i, item in enumerate(self.interventions)]
        self.names = {
            "on_attention": [self._sites(item) for item in self.interventions],
            "on_module": [self._modules(item) for item in self.interventions],
        }
        inside = [seam for seam in STEPPING if seam != "on_latents"]
        self.steps_in = any(item.has(seam) for item in self.interventions for seam in inside)
        self.reads_predictions = any(item.has("on_prediction") for item in self.interventions)
        self.sign: int | None = None
        self.results: dict[str, Any] = {}
        self.log: list[dict[str, Any]] = []
        self.clock = Clock()
        self.prompts = Prompts(
            pipe,
            self.anatomy.encoders,
            strict=any(item.uses_text or item.has("on_text") for item in self.interventions),
            rewriting=any(item.has("on_text") for item in self.interventions),
            on_call=self._on_text,
        )
        self.drawing = False
        self.tap: Tap | None = None
        self.pixels: tuple[int | None, int | None]
        self.release()

    def _sites(self, item: Intervention) -> set[str]:
        chosen = SiteFilter.of(item.sites).select(self.anatomy.sites) if item.has("on_attention") else []
        return {site.name for site in chosen}

    def _modules(self, item: Intervention) -> set[str]:
        names = set(item.modules(self.anatomy)) if item.has("on_module") else set()
        unknown = names - {name for name, _ in eager(self.anatomy.denoiser).named_modules()}
        if unknown or (item.has("on_module") and not names):
            raise NoSite(f"{type(item).__name__} finds no module {sorted(unknown)} in the {self.anatomy.denoiser_name}")
        return names

    @property
    def encoded(self) -> Encoded:
        """Prompts, encoder calls and encoded rows of the current generation."""
        return self.prompts.encoded

    # -- the course of a generation ------------------------------------------------------------------------

    def begin(self, called: bool = False, pixels: tuple[int | None, int | None] = (None, None)) -> None:
        """A generation begins. `called`: the pipeline itself says so, and how large the image is."""
        self.prompts.begin_generation(called)
        self.clock.restart([])
        self.release()
        self.drawing = True
        self.pixels = pixels
        if self.tap is not None:
            self.tap.reset()
        for context in self.contexts:
            context.state.clear()
        self.log.append({"prompts": [], "text": [], "edits": {}, "denoiser_calls": 0, "denoiser_rows": 0, "steps": 0})

    def release(self) -> None:
        """Let go of the tensors of the last generation."""
        self.cache: dict[Any, Any] = {}
        self.checks: Checks = []
        self.inputs: dict[str, Any] = {}
        self.rows = self.pipeline_rows = Rows((), ())
        self.grid: Grid | None = None
        self.known: Arguments = {}
        self.drawn: list[Tensor] = []
        self.latents = torch.empty(0)
        self.pixels = None, None
        self.predicting = False
        self.sign_sought = self.sign_trusted = False
        self._beside: dict[tuple[str, ...], Arguments] = {}  # by the labels of a call
        self.begin_step()

    def begin_step(self) -> None:
        self.predictions: dict[str, Tensor] = {}
        self.calls: dict[str, DenoiserCall] = {}
        self.shared: dict[Any, Any] = {}
        self.pipeline_combined: Tensor | None = None
        self.returned: list[tuple[Rows, Tensor]] = []
        self.guided: Callable[[dict[str, Tensor]], Tensor] | None = None
        self.combined = False
        self.settled: Tensor | None = None
        self.pending: Tensor | None = None

    def cells_of(self, latents: Any) -> int | None:
        """How many of the packed tokens [B, N, C] that the denoiser is given are the picture's; None: all.

        They are those that the pipeline prepared as latents. Tokens of reference images follow them.
        """
        if not isinstance(latents, Tensor) or latents.ndim != 3:
            return None
        key = "cells", latents.shape[1]
        for prepared in self.drawn if key not in self.cache else ():
            n = prepared.shape[1] if prepared.ndim == 3 else latents.shape[1]
            if n < latents.shape[1] and torch.equal(latents[: len(prepared), :n], prepared.to(latents)):
                self.cache[key] = n
        return self.cache.setdefault(key, None)

    def of_picture(self, tokens: Tensor, like: Tensor | None = None) -> Tensor:
        """Of what a denoiser is given or predicts, [rows, ...], what is the picture's: without the tokens of reference
        images behind its cells and, where it is compared with `like`, a condition's channels behind its own."""
        if self.grid is not None and self.grid.packed and tokens.ndim == 3 and tokens.shape[1] == self.grid.tokens:
            tokens = tokens[:, : self.grid.cells]
        axis = -1 if tokens.ndim == 3 else 1
        if like is not None and like.ndim == tokens.ndim and like.shape[axis] < tokens.shape[axis]:
            tokens = tokens.narrow(axis, 0, like.shape[axis])
        return tokens

    def at_denoiser(self, timestep: Callable[[Sequence[float]], float | None]) -> None:
        """The pipeline calls the denoiser. `timestep` finds its timestep among those of a table."""
        if not self.log:
            self.begin()
        self.drawing = True
        self.prompts.begin_denoising()
        self.clock.at_denoiser(self.pipe.scheduler, timestep)
        if self.steps_in and self.clock.passed_over:
            raise UnsupportedModel(
                f"the {self.anatomy.denoiser_name} runs at another timestep, but the pipeline's scheduler "
                f"({type(self.pipe.scheduler).__name__}) made no step: another one is at work, as in a copy of the "
                "pipeline or a sampler of its own. Attach to the pipeline that you call, with the scheduler that steps"
            )
        if self.clock.done == 0 and self.clock.calls == 1:
            for item in self.interventions:
                if any(item.has(seam) for seam in STEPPING):
                    item.window.need(self.clock.steps, type(item).__name__)

    # -- asking the interventions --------------------------------------------------------------------------

    def dispatch(self, seam: str, name: str | None = None) -> list[tuple[str, Callable[..., Any]]]:
        """Who overrides `seam`, with a window that holds now, and chose the site or module `name`.

        Returns:
            Label and seam of each, in the order given to `attach`; the seam has its context already.
        """
        now, names = self.clock.fraction, self.names.get(seam)
        return [
            (context.label, partial(getattr(item, seam), context))
            for i, (item, context) in enumerate(zip(self.interventions, self.contexts, strict=True))
            if item.has(seam) and now in item.window and (name is None or names is None or name in names[i])
        ]

    def sites_now(self) -> set[str]:
        """Sites at which some intervention is asked in this step."""
        now, chosen = self.clock.fraction, self.names["on_attention"]
        return set().union(*(chosen[i] for i, item in enumerate(self.interventions) if now in item.window))

    def _on_text(self, call: TextCall) -> None:
        for item, context in zip(self.interventions, self.contexts, strict=True):
            output = item.on_text(context, call) if item.has("on_text") else None
            if output is not None:
                rows = replace_output(call, output)
                self.log[-1]["text"].append({"by": context.label, "encoder": call.name, "rows": rows})

    def predict(self, branches: Sequence[Branch], as_source: bool = False) -> dict[str, Tensor]:
        """See `Context.predict`. Attention interventions are active in this call."""
        like = {branch.name: branch.like for branch in branches}
        predictions: dict[str, Tensor] = {}
        outer, self.predicting = self.rows, True
        try:
            for inputs, own in self._extra_calls(branches):
                source = replace(own, labels=tuple(like.get(label, label) for label in own.labels))
                self.rows = source if as_source else own
                output = self.anatomy.denoiser(**inputs)
                self.count(denoiser_calls=1, denoiser_rows=len(own))
                each = split(self.of_picture(stacked(first(output))), own)
                predictions |= {name: value for name, value in each.items() if name in like}
                self._check_form(predictions)
            return predictions
        finally:
            self.predicting, self.rows = False, outer

    def _check_form(self, predictions: Mapping[str, Tensor]) -> None:
        """Raises UnsupportedModel: the pipeline's own predictions have another form than these."""
        own = {value.shape[1:] for value in self.predictions.values()}
        for value in predictions.values():
            if own and value.shape[1:] not in own:
                raise UnsupportedModel(
                    f"the denoiser returns {list(value.shape[1:])} for a text of another length and {list(own.pop())} "
                    "for the prompt: give a text of as many tokens"
                )

    def _extra_calls(self, branches: Sequence[Branch]) -> Iterator[tuple[dict[str, Any], Rows]]:
        """Arguments and rows of the calls that predict these branches: one for those of one call of the pipeline, or
        one for each where that call repeats rows."""
        now = self.call
        calls = [now if b.like in now.own.labels else self.calls.get(b.like, now) for b in branches]
        for call in dict.fromkeys(calls):
            here = [branch for branch, other in zip(branches, calls, strict=True) if other is call]
            known = self.known_in(call, here)
            if call.own.repeat:
                yield from (whole(call.inputs, call.own, branch, known) for branch in here)
                continue
            if together := [branch for branch in here if fits(call.inputs, branch, known)]:
                yield _added(call, together, known)
            for branch in here:
                if branch not in together:
                    inputs, own = _added(call, [replace(branch, text=None, mask=None)], known)
                    yield with_text(inputs, branch, known), own

    @property
    def call(self) -> DenoiserCall:
        """The pipeline's current call."""
        return DenoiserCall(self.inputs, self.pipeline_rows, self.latents, self.rows)

    def known_in(self, call: DenoiserCall, branches: Sequence[Branch]) -> Arguments:
        """`known`, with what goes with the text in this call where a branch has another."""
        if all(branch.text is None and branch.pooled is None and branch.mask is None for branch in branches):
            return self.known
        if call.own.labels not in self._beside:
            self._beside[call.own.labels] = beside(call.inputs, self.known[TEXT][0], self.encoded, call.own)
        return {**self.known, **self._beside[call.own.labels]}

    def learn_sign(self, given: Any) -> None:
        """At the scheduler's step, from what it is given. Raises UnsupportedModel: predictions that the pipeline
        negates were read already as if it did not."""
        self.sign_sought = True
        if not self.returned or not isinstance(given, Tensor):
            return
        each: dict[int, list[Tensor]] = {}
        for rows, prediction in self.returned:
            for image, row in zip(rows.images, prediction, strict=True):
                each.setdefault(image, []).append(row)
        images = [torch.stack(each[image]) for image in sorted(each)]
        self.sign = sign_of(given, images, self.latents.shape[1])
        uncond, cond = self.predictions.get("uncond"), self.predictions.get("cond")
        if self.sign is None and cond is not None:  # rescaled, each vector by another factor
            how = combination_of(given, cond if uncond is None else uncond, cond)
            self.sign = None if how is None else how.sign
        if self.sign_trusted and self.sign != 1:
            raise UnsupportedModel(
                f"{type(self.pipe).__name__} negates or changes what its denoiser predicts before the scheduler steps, "
                "which its first step has shown only now, after clean latents were read from its predictions: let a "
                "gate read another detector (magnitude), or calibrate one that does not read clean latents"
            )
        self.sign_trusted = False

    # -- the log -------------------------------------------------------------------------------------------

    def count(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self.log[-1][name] = self.log[-1].get(name, 0) + amount

    def note(self, label: str, what: str, where: str) -> None:
        """One more `what` of an intervention at a site or module."""
        counts = self.log[-1]["edits"].setdefault(label, {}).setdefault(what, {})
        counts[where] = counts.get(where, 0) + 1


def _added(call: DenoiserCall, branches: Sequence[Branch], known: Arguments) -> tuple[dict[str, Any], Rows]:
    """Arguments and rows of a call on the rows of these branches alone."""
    inputs, rows = grow(call.inputs, call.own, branches, known)
    added = range(len(call.own), len(rows))
    own = replace(rows, labels=rows.labels[added.start :], images=rows.images[added.start :])
    return take(inputs, len(rows), added, known), own


def first(value: Any) -> Any:
    """The tensor, or the list of tensors, of an output that may be a tensor, a tuple or a model output."""
    return value if isinstance(value, Tensor) else value[0]
