"""Inside the denoiser call: label and grow its rows, hand out its attention, combine its predictions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unleak.core.anatomy import Anatomy, Grid, eager, is_attention
from unleak.core.attention import AttentionCall, Layout, contents, raise_wrong
from unleak.core.intervention import ALL
from unleak.core.rows import LATENTS, TEXT, Rows
from unleak.core.scores import default_scale
from unleak.engine.arguments import find, rows_of, stacked, timestep
from unleak.engine.batch import equal_rows, fits, fold, grow, split, take
from unleak.engine.execute import execute
from unleak.engine.layouts import Layouts, learn, text_of
from unleak.engine.perturbed import Perturbations, caches
from unleak.engine.resolve import changes_nothing, resolve
from unleak.engine.run import Run, first
from unleak.engine.tap import SDPA, Running, Tap
from unleak.engine.undo import Undo
from unleak.errors import BadInput, Conflict, NotFinite, Unobservable, UnsupportedModel
from unleak.text.call import Encoded


class Denoising:
    """What happens in a denoiser call of a run."""

    def __init__(self, run: Run, undo: Undo) -> None:
        self.run, self.undo = run, undo
        self.arguments = list(inspect.signature(eager(run.anatomy.denoiser).forward).parameters)
        self.learned: dict[Any, Layouts] = {}
        self.layouts: Layouts | None = None
        self.text: str | None = None
        self.spread: list[int] | None = None
        self.seen: set[str] = set()
        self.ran: dict[str, set[str]] = {}
        self.perturbations = Perturbations(eager(run.anatomy.denoiser))

    # -- the call ------------------------------------------------------------------------------------------

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Pre-hook: learn what is asked for; append the rows of extra branches."""
        run = self.run
        inputs = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        latents = inputs[self.arguments[0]]
        if run.predicting:
            self._measure(latents, inputs)
            return None
        self.seen, run.inputs = set(), inputs
        run.at_denoiser(lambda table: timestep(inputs, table))
        if run.clock.done == 0 and run.clock.calls == 1 and run.steps_in and (hooks := caches(run.anatomy.denoiser)):
            raise cached(run.anatomy, hooks)
        if run.tap is not None and run.clock.done == 0 and run.clock.calls == 1 and shared_out(run.anatomy.denoiser):
            raise parallel(run.anatomy)
        run.pipeline_rows = run.rows = self._label(inputs)
        run.known = {LATENTS: (self.arguments[0],), TEXT: (self.text or "",)}
        labels = run.rows.labels
        if run.prompts.strange and run.prompts.rewriting and "unknown" in labels and "cond" not in labels:
            raise another_pipeline(run.anatomy.denoiser_name)
        self._measure(latents, inputs)
        layouts = self.layouts
        branches = [branch for _, ask in run.dispatch("branches") for branch in ask() or ()]
        known = run.known_in(run.call, branches)
        apart = [b for b in branches if run.rows.repeat or not fits(inputs, b, known)]
        if here := [b for b in apart if run.rows.repeat or b.like in run.rows.labels]:
            run.predictions |= {} if run.combined else run.predict(here)
        if together := [b for b in branches if b not in apart]:
            inputs, run.rows = grow(inputs, run.pipeline_rows, together, known)
        self.spread = None if branches else self._merged(inputs, run.rows)
        if self.spread is not None:
            keep = sorted(set(self.spread))
            inputs = take(inputs, len(run.rows), keep, known)
            labels, images = tuple(run.rows.labels[i] for i in keep), tuple(run.rows.images[i] for i in keep)
            run.rows = replace(run.rows, labels=labels, images=images)
            self.spread = [keep.index(row) for row in self.spread]
        self.layouts = layouts  # the calls that asked for other rows had their own
        run.latents = stacked(inputs[self.arguments[0]])
        run.count(denoiser_calls=1, denoiser_rows=len(run.rows))
        return ((), inputs) if len(run.rows) != len(run.pipeline_rows) else None

    def _merged(self, inputs: dict[str, Any], rows: Rows) -> list[int] | None:
        """For each row the one that is computed in its place, where some intervention lets equal rows be merged; None
        where there are none."""
        labels = {label for item in self.run.interventions for label in item.merges} & set(rows.labels)
        first = equal_rows(inputs, rows, labels) if labels else []
        return first if len(set(first)) < len(first) else None

    def _label(self, inputs: dict[str, Any]) -> Rows:
        """Labels of the rows of this call; compared once for tensors that the pipeline goes on using."""
        others = (value for name, value in inputs.items() if name != self.arguments[0])
        held = [t for value in others for t in rows_of(value) if t.ndim == 2 and t.is_floating_point()]
        key = tuple((t.data_ptr(), t.shape, 0 if t.is_inference() else t._version) for t in held)
        labelled: dict[Any, tuple[Any, str, Rows]] = self.run.cache.setdefault("rows", {})
        if key not in labelled:
            while len(labelled) >= 4:  # holding the tensors keeps their addresses their own
                labelled.pop(next(iter(labelled)))
            labelled[key] = held, *find(inputs, self.arguments[0], self.run.encoded, self.text)
        _, self.text, rows = labelled[key]
        return rows

    def _measure(self, latents: Any, inputs: dict[str, Any]) -> None:
        """The latent grid, and where text and picture stand at the sites; learned once for calls of these lengths."""
        run = self.run
        assert self.text is not None
        cells, text = ({t.shape for t in rows_of(value)} for value in (latents, inputs[self.text]))
        key = ("grid", *cells)
        if key not in run.cache:
            run.cache[key] = Grid(stacked(latents), inputs, run.pixels, run.cells_of(latents))
        run.grid = run.cache[key]
        if run.tap is not None and run.sites_now():
            kind = *cells, max(text), run.grid.cells, run.grid.size, *self._counted(inputs)
            if kind not in self.learned:
                with run.tap.paused():
                    sites, denoiser = run.anatomy.sites, run.anatomy.denoiser
                    self.learned[kind] = learn(
                        denoiser, sites, inputs, self.arguments[0], self.text, run.grid, self.undo
                    )
            self.layouts = self.learned[kind]

    def _counted(self, inputs: dict[str, Any]) -> Iterator[int]:
        """How many rows each mask [B, L] of the call lets count at most; looked at once for each tensor."""
        counts: dict[Any, tuple[Tensor, int]] = self.run.cache.setdefault("masks", {})
        for value in inputs.values():
            if isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point():
                key = value.data_ptr(), value.shape, 0 if value.is_inference() else value._version
                if key not in counts:
                    while len(counts) >= 8:
                        counts.pop(next(iter(counts)))
                    counts[key] = value, int((value != 0).sum(1).max())
                yield counts[key][1]

    def after(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Post-hook: check that attention was seen; hand out predictions; fold the rows back."""
        run = self.run
        checks, run.checks = run.checks, []
        raise_wrong(checks)
        if run.predicting:
            return None
        self._check_seen()
        observed = bool(run.dispatch("on_prediction"))
        seeking = run.reads_predictions and run.sign is None
        if not (observed or seeking or len(run.rows) != len(run.pipeline_rows)):
            return None
        everything = stacked(first(output))
        if merged := self.spread is not None:
            everything, run.rows = everything[self.spread], run.pipeline_rows
            run.latents = run.latents[self.spread]
        prediction = run.of_picture(everything)
        combined: Tensor | dict[str, Tensor] | None = run.settled
        if observed and not run.combined:
            run.rows.of("cond")  # raises where rows cannot be told apart
            here = split(prediction, run.rows)
            call = run.call
            for name, value in here.items():
                run.predictions.setdefault(name, value)
                run.calls.setdefault(name, call)
            guided = {"cond"} if run.encoded.uncond is None else {"cond", "uncond"}
            if guided <= here.keys():  # else the scheduler's step follows, and shows how the pipeline combines them
                combined = self._combine(one_call=True)
        own, rest = fold(prediction, run.rows, combined, len(run.pipeline_rows)), everything.shape[1:]
        if seeking:
            run.returned.append((run.pipeline_rows, own))
        if not (observed or merged) and len(own) == len(prediction):
            return None
        if rest != prediction.shape[1:]:
            own = torch.cat([own, everything[: len(own), prediction.shape[1] :]], 1)
        return _replace_first(output, own)

    def _check_seen(self) -> None:
        """Raise where chosen sites and modules did not run, which ran in another call with the same plain arguments
        (skipped layers are one) and the same perturbations of a guider."""
        run = self.run
        chosen = run.sites_now() if run.tap is not None else set[str]()
        chosen |= set().union(*run.names["on_module"]) if run.dispatch("on_module") else set()
        if chosen and not self.seen and run.clock.calls == 1:
            raise blind(run.anatomy)
        plain = str({name: value for name, value in run.inputs.items() if _is_plain(value)})
        plain += str(self.perturbations.names())
        ran = self.ran.setdefault(plain, set())
        if missing := sorted(ran & chosen - self.seen):
            raise skipped(run.anatomy, missing)
        ran |= self.seen

    def _combine(self, one_call: bool) -> Tensor | dict[str, Tensor] | None:
        """Ask every intervention. The result goes into this call's rows, or waits for the scheduler's step
        where the pipeline calls the denoiser once per branch."""
        run = self.run
        run.combined = True
        final, owner, replaced = None, "", False
        if run.encoded.uncond is not None and "uncond" not in run.predictions:
            run.pipeline_rows.of("uncond")  # raises where a row may be it
        for name, value in run.predictions.items():
            if not torch.isfinite(value).all():
                raise NotFinite(f"the denoiser predicted NaN or infinity for {name}; run it in a wider dtype")
        for label, ask in run.dispatch("on_prediction"):
            answer = ask(dict(run.predictions))
            if isinstance(answer, Mapping):
                run.predictions.update(answer)
                replaced = True
            elif answer is not None:
                if final is not None:
                    raise Conflict(f"{owner} and {label} both settle the combined prediction; keep one")
                final, owner, shape = answer, label, run.predictions["cond"].shape
                if final.shape != shape:
                    raise BadInput(f"{owner} combined predictions to {tuple(final.shape)}, not {tuple(shape)}")
        if final is not None:
            run.count(combined=1)
        if one_call:
            run.settled = final
            return final if final is not None else run.predictions if replaced else None
        if replaced and final is None:
            if run.guided is None:
                raise UnsupportedModel(
                    "this pipeline calls the denoiser once per branch: return one combined prediction"
                )
            final = run.guided(run.predictions)
        run.pending = final
        return None

    def combine(self, output: Any) -> Tensor | None:
        """At the scheduler's step: the combined prediction that no denoiser call could carry, if any.

        `output`: the prediction that the pipeline gives to the step.
        """
        run = self.run
        if run.sign is None:
            run.learn_sign(output)
        if run.predictions and not run.combined and run.dispatch("on_prediction"):
            run.pipeline_combined = output if isinstance(output, Tensor) else None
            self._combine(one_call=False)
        return run.pending

    # -- its attention -------------------------------------------------------------------------------------

    def attend(self, running: Running, plain: Callable[[], Tensor], named: dict[str, Any]) -> Tensor | None:
        """One attention call of a site: ask the interventions, execute what they describe.

        None if the call is not the site's own, such as an image prompt's.
        """
        q, k, v = named["query"], named["key"], named["value"]
        name, rows = running.site.name, self.run.rows
        if len(q) != len(rows):
            running, rows = self._part(running, rows, v)
        assert self.layouts is not None
        layout = self.layouts.of(name, running.has_text, q.shape[2], k.shape[2]) if q.ndim == 4 else None
        if layout is None:
            return None
        self.seen.add(name)
        if layout.kind == "text":
            return plain()
        call = self._call(running, layout, rows, plain, named)
        edits = []
        for label, ask in self.run.dispatch("on_attention", name):
            answer = ask(call)
            for edit in () if answer is None else answer if isinstance(answer, list | tuple) else (answer,):
                self.run.note(label, type(edit).__name__, name)
                edits.append(edit)
        if all(map(changes_nothing, edits)):
            resolve(call, edits)  # they must fit all the same
            return call.plain()
        if named.get("is_causal") or named.get("dropout_p"):
            raise UnsupportedModel(f"{name} uses causal attention or dropout; edits do not cover these")
        return execute(call, edits, lambda q, k, v, mask: SDPA(q, k, v, attn_mask=mask, scale=named.get("scale")))

    def must_see(self, running: Running) -> bool:
        """Whether attention that was not seen at this site is an error: the site is given text, was chosen by name or
        made calls that fit nothing, someone edits the attention among cells, or the user exchanged what attends."""
        if self.perturbations.on(running.site.module):  # a guider has something else there in this call
            return False
        items, name = self.run.interventions, running.site.name
        named = any(item.sites != ALL and name in self.run.names["on_attention"][i] for i, item in enumerate(items))
        edits_cells = any(item.uses_self_attention for item in items)
        return running.has_text or running.calls > 0 or named or edits_cells or name not in self._without_kernel

    @functools.cached_property
    def _without_kernel(self) -> set[str]:
        """Sites that have their processor from the denoiser's own design: where it ends in no attention kernel, as in
        linear attention, the architecture has none there."""
        denoiser: Any = eager(self.run.anatomy.denoiser)
        try:
            with torch.device("meta"):
                designed = type(denoiser).from_config(denoiser.config)
            own = {name: type(module.processor) for name, module in designed.named_modules() if is_attention(module)}
        except Exception:
            return set()
        return {s.name for s in self.run.anatomy.sites if own.get(s.name) is type(s.module.processor)}

    def _part(self, running: Running, rows: Rows, v: Tensor) -> tuple[Running, Rows]:
        """A site that attends over its rows in groups (perturbed guidance): the next group, found by its values."""
        start, stop = running.rows, running.rows + len(v)
        running.rows = stop
        part = replace(
            running,
            hidden=None if running.hidden is None else running.hidden[start:stop],
            text=None if running.text is None else running.text[start:stop],
        )
        if stop > len(rows) or not are_values(part, v):
            raise UnsupportedModel(f"{running.site.name} attends over {len(v)} rows, the denoiser has {len(rows)}")
        return part, replace(rows, labels=rows.labels[start:stop], images=rows.images[start:stop])

    def _call(
        self, running: Running, layout: Layout, rows: Rows, plain: Callable[[], Tensor], named: dict[str, Any]
    ) -> AttentionCall:
        q, k, v = (_as_attended(named[name]) for name in ("query", "key", "value"))
        group = q.shape[1] // k.shape[1]
        cells = layout.image_queries.stop - layout.image_queries.start
        tap = self.run.tap
        return AttentionCall(
            site=running.site,
            q=q,
            k=k if group == 1 else k.repeat_interleave(group, 1),
            v=v if group == 1 else v.repeat_interleave(group, 1),
            mask=named.get("attn_mask"),
            scale=default_scale(q, named.get("scale")),
            layout=layout,
            grid=None if self.run.grid is None else self.run.grid.of(cells),
            rows=rows,
            plain_call=plain,
            other_kernel=running.other_kernel,
            capture=None if tap is None else lambda text: tap.capture(running, self._given(running, text, tap)),
            cache=self.run.cache,
            checks=self.run.checks,
        )

    def _given(self, running: Running, text: Tensor, tap: Tap) -> Tensor:
        """What a cross site is given [n, L, d] for other text rows [n, L, D] or [L, D]: these themselves, or what the
        denoiser makes of them first; then it runs on them up to this site.

        Raises UnsupportedModel: the denoiser makes something of them, and they are more or fewer than the prompt's.
        """
        run, own = self.run, running.text
        if not isinstance(own, Tensor) or _is_as_encoded(own, run.rows, run.encoded):
            return text
        text, (name,) = text[None] if text.ndim == 2 else text, run.known[TEXT]
        held = run.inputs[name]
        if not isinstance(held, Tensor) or held.ndim != 3 or text.shape[1] != held.shape[1]:
            raise UnsupportedModel(
                f"the denoiser makes something of the prompt's {len(own[0])} rows before {running.site.name}, "
                f"and the other text has {text.shape[1]}: give a text of as many rows"
            )
        key = "given", contents(own), contents(text)  # sites that are given one tensor share what it is made of
        if key not in run.cache:
            inputs = take(run.inputs, len(run.pipeline_rows), [0] * len(text), run.known) | {name: text.to(held)}
            with tap.paused():
                given = text_of(eager(run.anatomy.denoiser), running.site, inputs, self.undo)
            run.cache[key] = own, text, given  # their memory stays their own
        made: Tensor = run.cache[key][-1]
        return made

    # -- its other modules ---------------------------------------------------------------------------------

    def after_module(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Hook of a module that some intervention chose."""
        self.seen.add(name)
        changed = output
        for label, ask in self.run.dispatch("on_module", name):
            answer = ask(name, changed)
            if answer is not None:
                self.run.note(label, "on_module", name)
                changed = answer
        return changed if changed is not output else None


def _is_as_encoded(text: Tensor, rows: Rows, encoded: Encoded) -> bool:
    """Whether a site is given text rows [B, L, d] as the pipeline encoded them."""
    every = {"cond": encoded.cond, "uncond": encoded.uncond}
    for label, image, row in zip(rows.labels, rows.images, text, strict=False):
        if (own := every.get(label)) is not None:
            mine = own[image if image < len(own) else 0].to(row)
            return row.shape == mine.shape and torch.equal(row, mine)
    return True


def _as_attended(x: Tensor) -> Tensor:
    """Queries, keys or values in the precision that attention computes in: under autocast, that of autocast."""
    device = x.device.type
    casts = torch.is_autocast_enabled(device) and x.dtype == torch.float32
    return x.to(torch.get_autocast_dtype(device)) if casts else x


def are_values(running: Running, v: Tensor) -> bool:
    """Whether values [B, H, K, d] are the projection of a module's own rows, at their beginning or end."""
    project, hidden = getattr(running.site.module, "to_v", None), running.hidden
    if running.text is not None and _text_values(running.site.module) is None:
        hidden = running.text
    if project is None or hidden is None or hidden.ndim != 3 or len(hidden) != len(v):
        return False
    with torch.no_grad():
        rows = project(hidden).unflatten(-1, (v.shape[1], v.shape[3])).transpose(1, 2).to(v)
    near = 1e-2 * rows.abs().max() + 1e-6
    n = rows.shape[2]
    return n <= v.shape[2] and any((rows - part).abs().max() < near for part in (v[:, :, :n], v[:, :, -n:]))


def _text_values(module: Any) -> Callable[[Tensor], Tensor] | None:
    """What projects the text rows of a joint site to its values, where text has a projection of its own."""
    if getattr(module, "add_v_proj", None) is not None:
        return module.add_v_proj
    if getattr(module, "to_added_qkv", None) is not None:
        return lambda text: module.to_added_qkv(text).chunk(3, dim=-1)[2]
    return None


def _is_plain(value: Any) -> bool:
    """Whether an argument is made of numbers, flags and words alone."""
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def blind(anatomy: Anatomy) -> Unobservable:
    """The denoiser ran, but nothing that is looked at in it."""
    name, denoiser = anatomy.denoiser_name, anatomy.denoiser
    compiled = eager(denoiser) is not denoiser or any(module._compiled_call_impl for module in denoiser.modules())
    return Unobservable(
        f"the {name} ran, but none of its chosen modules called a hook: "
        + (
            "it was compiled before the session. Attach first and compile then, or call `torch._dynamo.reset()` before "
            "attaching"
            if compiled
            else f"its `forward` was replaced, or a cache keeps what they compute. {_uncached(anatomy)}"
        )
    )


def _uncached(anatomy: Anatomy) -> str:
    """How to take a cache away."""
    if getattr(anatomy.denoiser, "is_cache_enabled", False):
        return f"Call `pipe.{anatomy.denoiser_name}.disable_cache()`"
    return "Remove it as it was applied; of diffusers: `HookRegistry.check_if_exists_or_initialize(module).remove_hook`"


def skipped(anatomy: Anatomy, missing: list[str]) -> Unobservable:
    return Unobservable(
        f"the {anatomy.denoiser_name} left out {len(missing)} chosen module(s) in this call that it ran before, "
        f"{missing[0]} first, so an edit would act at a part of the calls: a cache keeps their outputs. "
        + _uncached(anatomy)
    )


def cached(anatomy: Anatomy, hooks: list[str]) -> Unobservable:
    return Unobservable(
        f"the {anatomy.denoiser_name} has a cache ({', '.join(hooks)}) that leaves out modules in some calls, so an "
        f"edit would act at a part of the calls. {_uncached(anatomy)}"
    )


def shared_out(denoiser: nn.Module) -> bool:
    """Whether the denoiser's attention is divided among processes: each sees a share of the keys, or of the heads."""
    processors = (getattr(module, "processor", None) for module in denoiser.modules())
    configs = (getattr(part, "_parallel_config", None) for part in (eager(denoiser), *processors))
    return any(getattr(config, "context_parallel_config", None) is not None for config in configs)


def parallel(anatomy: Anatomy) -> Unobservable:
    return Unobservable(
        f"the attention of the {anatomy.denoiser_name} is divided among processes (context parallel), and each sees "
        "only its share, so an edit would act at a part of the keys. It cannot be taken back: load the pipeline again "
        "without `parallel_config` and `enable_parallelism`"
    )


def another_pipeline(name: str) -> Conflict:
    return Conflict(
        f"another pipeline with the same {name} is called inside the session, as `from_pipe` makes one: how it encodes "
        "its prompt is not seen, so nothing would change there. Attach to that pipeline"
    )


def _replace_first(output: Any, value: Any) -> Any:
    """The denoiser's output with another first tensor, or other tensors where it is a list of them."""
    if isinstance(output, Tensor):
        return value
    if isinstance(first(output), list):
        value = list(value.unbind(0))
    if isinstance(output, tuple):
        return (value, *output[1:])
    name = next(iter(output.keys()))
    return type(output)(**{**output, name: value})
