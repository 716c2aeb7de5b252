"""`attach(pipe, *interventions)`: carry out interventions on the user's own pipeline calls, then restore it.

Nothing is subclassed, copied or replaced. What is installed, and removed again on leaving the block whatever
happened, are forward hooks (denoiser, attention sites, text encoders) and four instance attributes that
shadow bound methods: `encode_prompt` and `check_inputs` of the pipeline, `set_timesteps` and `step` of its
scheduler. Without interventions nothing is installed at all.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unleak.core.anatomy import Anatomy, Site, eager
from unleak.core.context import Context
from unleak.core.intervention import Intervention, SiteFilter
from unleak.engine.clock import Clock
from unleak.engine.denoising import Denoising, blind, tells_text_order
from unleak.engine.features import swap_features
from unleak.engine.tap import Tap
from unleak.errors import BadInput, Conflict, NoSite, NotFinite
from unleak.text.call import TextCall, replace_output
from unleak.text.encoders import Encoder
from unleak.text.prompts import Prompts

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def attach(pipe: Any, *interventions: Intervention) -> Session:
    """A session, to be used as `with unleak.attach(pipe, ...) as run: pipe(...)`.

    Interventions apply in the given order. Sessions do not nest: give all interventions to one call.

    Raises:
        UnsupportedModel: the pipeline has no denoiser that unleak can observe.
        NoSite: an intervention's `sites` match no attention site.
    """
    return Session(pipe, interventions)


class Session:
    """Interventions at work on one pipeline. `log` has one JSON-serialisable entry per generation; `results`
    is filled by interventions."""

    def __init__(self, pipe: Any, interventions: Sequence[Intervention]) -> None:
        for item in interventions:
            if not isinstance(item, Intervention):
                raise BadInput(f"{item!r} is not an Intervention")
        self.pipe = pipe
        self.interventions = tuple(interventions)
        self.anatomy = Anatomy.of(pipe)
        self.labels = [f"{i}.{type(item).__name__}" for i, item in enumerate(self.interventions)]
        self.chosen = [self._choose(item) for item in self.interventions]
        self.blocks = [self._blocks(item) for item in self.interventions]
        self.contexts = [Context(self) for _ in self.interventions]
        self.results: dict[str, Any] = {}
        self.log: list[dict[str, Any]] = []
        self.clock = Clock()
        self.pixels: tuple[int | None, int | None] = (None, None)
        self.denoising = Denoising(self)
        self.prompts = Prompts(
            pipe,
            self.anatomy.encoders,
            strict=any(item.uses_text or item.has("on_text") for item in self.interventions),
            rewriting=any(item.has("on_text") for item in self.interventions),
            on_call=self._on_text,
        )
        self.tap: Tap | None = None
        self._watched: Any = None
        self._undo = contextlib.ExitStack()

    def _choose(self, item: Intervention) -> set[str]:
        picked = SiteFilter.of(item.sites).select(self.anatomy.sites) if item.has("on_attention") else []
        return {site.name for site in picked}

    def _blocks(self, item: Intervention) -> set[str]:
        names = set(item.blocks(self.anatomy)) if item.has("on_block") else set()
        unknown = names - {name for name, _ in eager(self.anatomy.denoiser).named_modules()}
        if unknown or (item.has("on_block") and not names):
            raise NoSite(f"{type(item).__name__} finds no block {sorted(unknown)} in the {self.anatomy.denoiser_name}")
        return names

    # -- install and restore -------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        if self.anatomy.denoiser in _attached:
            raise Conflict("this pipeline is attached already: give all interventions to one attach()")
        with contextlib.ExitStack() as undo:
            if self.interventions:
                self._install(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()
        self.tap = None
        self.denoising.begin_generation()  # lets go of the last call's tensors

    def _install(self, undo: contextlib.ExitStack) -> None:
        self._undo = undo
        denoiser = self.anatomy.denoiser
        _attached.add(denoiser)
        undo.callback(_attached.discard, denoiser)
        self._shadow(self.pipe, "encode_prompt", self._encode_prompt)
        if hasattr(self.pipe, "check_inputs"):
            self._shadow(self.pipe, "check_inputs", self._check_inputs)
        self._watch_scheduler()
        for encoder in self.anatomy.encoders:
            hook = functools.partial(self._after_encoder, encoder)
            undo.callback(encoder.module.register_forward_hook(hook, with_kwargs=True).remove)
        undo.callback(denoiser.register_forward_pre_hook(self.denoising.before, with_kwargs=True).remove)
        undo.callback(denoiser.register_forward_hook(self.denoising.after, with_kwargs=True).remove)
        for name in set().union(*self.blocks):
            hook = functools.partial(self._after_block, name)
            undo.callback(eager(denoiser).get_submodule(name).register_forward_hook(hook).remove)
        names = set().union(*self.chosen)
        if names:
            guide = next((site.name for site in self.anatomy.sites if tells_text_order(site)), None)
            sites = [site for site in self.anatomy.sites if site.name in names or site.name == guide]
            self.tap = undo.enter_context(Tap(sites, self._wanted, self.denoising.attend))

    def _shadow(self, owner: Any, name: str, method: Callable[[Callable[..., Any], tuple, dict], Any]) -> None:
        """Let `owner.name(...)` call `method(original, args, kwargs)` until the session ends."""
        original, space = getattr(owner, name), vars(owner)
        before = space.get(name)

        @functools.wraps(original)
        def shadow(*args: Any, **kwargs: Any) -> Any:
            return method(original, args, kwargs)

        def restore() -> None:
            if before is None:
                space.pop(name, None)
            else:
                space[name] = before

        space[name] = shadow
        self._undo.callback(restore)

    def _watch_scheduler(self) -> None:
        """Follow the scheduler that the pipeline has now; users exchange it at will."""
        if self.pipe.scheduler is not self._watched:
            self._watched = self.pipe.scheduler
            self._shadow(self._watched, "set_timesteps", self._set_timesteps)
            self._shadow(self._watched, "step", self._scheduler_step)

    # -- one generation ------------------------------------------------------------------------------------

    def _begin_generation(self, called: bool = False) -> None:
        self._watch_scheduler()
        self.prompts.begin_generation(called)
        self.denoising.begin_generation()
        self.clock.restart([])
        if self.tap is not None:
            self.tap.reset()
        for context in self.contexts:
            context.state.clear()
        self.log.append({"prompts": [], "text": [], "edits": {}, "denoiser_calls": 0, "denoiser_rows": 0, "steps": 0})

    def _check_inputs(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """The pipeline is called."""
        self._begin_generation(called=True)
        given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        self.pixels = given.get("height"), given.get("width")
        return original(*args, **kwargs)

    def _encode_prompt(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        unannounced = not hasattr(self.pipe, "check_inputs") and self.clock.done > 0
        if not self.log or unannounced:
            self._begin_generation(called=unannounced)
        returned = self.prompts.encode_prompt(original, args, kwargs)
        self.log[-1]["prompts"] = list(self.prompts.encoded.prompts)
        return returned

    def _after_encoder(self, encoder: Encoder, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        return self.prompts.after_encoder(encoder, args, kwargs, output)

    def _on_text(self, call: TextCall) -> None:
        for i, item in enumerate(self.interventions):
            new = item.on_text(self.contexts[i], call) if item.has("on_text") else None
            if new is not None:
                rows = replace_output(call, new)
                self.log[-1]["text"].append({"by": self.labels[i], "encoder": call.name, "rows": rows})

    def _set_timesteps(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        returned = original(*args, **kwargs)
        self.clock.restart(self._watched.timesteps)
        return returned

    def at_denoiser(self, timestep: Any) -> None:
        """The denoiser is called at this timestep."""
        if not self.log:
            self._begin_generation()
        self.prompts.begin_denoising()
        self.clock.at_denoiser(self.pipe.scheduler, timestep)
        if self.clock.done == 0 and self.clock.calls == 1:
            for item in self.interventions:
                if any(item.has(seam) for seam in (*_DENOISER_SEAMS, "on_latents")):
                    item.window.need(self.clock.steps, type(item).__name__)

    def _after_block(self, name: str, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        swaps = []
        for i, item in self.active("on_block"):
            if name in self.blocks[i]:
                got = item.on_block(self.contexts[i], name)
                got = [] if got is None else list(got) if isinstance(got, list | tuple) else [got]
                self.note_edits(i, name, got)
                swaps += got
        return swap_features(output, self.denoising.rows, swaps) if swaps else None

    def _scheduler_step(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        if not self.clock.calls and any(item.has(s) for item in self.interventions for s in _DENOISER_SEAMS):
            raise blind(self.anatomy.denoiser_name)
        if not self.log:
            self._begin_generation()
        settled = self.denoising.settle()
        if settled is not None:
            given = inspect.signature(original).bind(*args, **kwargs)
            given.arguments["model_output"] = settled.to(given.arguments["model_output"].dtype)
            args, kwargs = given.args, given.kwargs
        returned = original(*args, **kwargs)
        latents, watching = returned[0], self.active("on_latents")
        if watching and not torch.isfinite(latents).all():
            raise NotFinite(f"the latents hold NaN or infinity after step {self.clock.step}; use a wider dtype")
        for i, item in watching:
            new = item.on_latents(self.contexts[i], latents)
            if new is not None:
                latents = _checked_latents(self.labels[i], new, latents)
        self.log[-1]["steps"] = self.clock.step + 1
        self.denoising.begin_step()
        self.clock.after_step()
        if latents is returned[0]:
            return returned
        if isinstance(returned, tuple):
            return (latents, *returned[1:])
        returned.prev_sample = latents
        return returned

    # -- for the parts -------------------------------------------------------------------------------------

    def active(self, seam: str) -> list[tuple[int, Intervention]]:
        """Interventions that override `seam` and whose window holds the current step."""
        now = self.clock.fraction
        return [(i, item) for i, item in enumerate(self.interventions) if item.has(seam) and now in item.window]

    def wanted_sites(self) -> set[str]:
        return set().union(*(self.chosen[i] for i, _ in self.active("on_attention")))

    def _wanted(self, site: Site) -> bool:
        active = self.active("on_attention")
        if any(site.name in self.chosen[i] for i, _ in active):
            return True
        return bool(active) and self.denoising.text_first is None and tells_text_order(site)

    def count(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self.log[-1][name] = self.log[-1].get(name, 0) + amount

    def note_edits(self, i: int, site: str, edits: Sequence[Any]) -> None:
        for edit in edits:
            mine = self.log[-1]["edits"].setdefault(self.labels[i], {}).setdefault(type(edit).__name__, {})
            mine[site] = mine.get(site, 0) + 1


_DENOISER_SEAMS = ("branches", "on_attention", "on_block", "on_prediction")


def _checked_latents(label: str, new: Tensor, old: Tensor) -> Tensor:
    if new.shape != old.shape:
        raise BadInput(f"{label} returned latents {tuple(new.shape)}, not {tuple(old.shape)}")
    if not torch.isfinite(new).all():
        raise NotFinite(f"{label} returned latents with NaN or infinity")
    return new.to(old.dtype)
