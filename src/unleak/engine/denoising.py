"""Inside the denoiser call: label and grow its rows, hand out its attention, combine its predictions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unleak.core.anatomy import Grid, Site, eager
from unleak.core.attention import AttentionCall, Layout, text_comes_first
from unleak.core.rows import Branch, Rows, fold, grow, label_rows, split, take
from unleak.core.scores import default_scale
from unleak.engine.execute import execute
from unleak.engine.tap import Running
from unleak.errors import BadInput, Conflict, NotFinite, Unobservable, UnsupportedModel

if TYPE_CHECKING:
    from unleak.engine.session import Session


class Denoising:
    """The state of the denoiser call that runs, and of the predictions of its step."""

    def __init__(self, run: Session) -> None:
        self.run = run
        self.names = list(inspect.signature(eager(run.anatomy.denoiser).forward).parameters)
        self.layouts: dict[Any, Layout | None] = {}
        self.text_first: bool | None = None
        self.begin_generation()

    def begin_generation(self) -> None:
        self.cache: dict[Any, Any] = {}
        self.inputs: dict[str, Any] = {}
        self.rows = self.asked = Rows((), ())
        self.grid: Grid | None = None
        self._labelled: dict[Any, tuple[Tensor, Rows]] = {}
        self._inner = False
        self.begin_step()

    def begin_step(self) -> None:
        self.preds: dict[str, Tensor] = {}
        self.settled = False
        self.pending: Tensor | None = None

    # -- the call ------------------------------------------------------------------------------------------

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Pre-hook: learn what is asked for; append the rows of extra branches."""
        self.seen_sites = 0
        if self._inner:
            return None
        run = self.run
        inputs = {**dict(zip(self.names, args, strict=False)), **kwargs}
        self.text = _first(inputs["encoder_hidden_states"])
        self.inputs = inputs
        latents = inputs[self.names[0]]
        run.at_denoiser(inputs["timestep"])
        key = ("grid", latents.shape)
        if key not in self.cache:
            self.cache[key] = Grid(latents, inputs, run.pixels)
        self.grid = self.cache[key]
        self.asked = self.rows = self._label(self.text)
        branches = [branch for i, iv in run.active("branches") for branch in iv.branches(run.contexts[i]) or ()]
        if branches:
            inputs, self.rows = grow(inputs, self.asked, branches)
        self.latents: Tensor = inputs[self.names[0]]
        run.count(denoiser_calls=1, denoiser_rows=len(self.rows))
        return ((), inputs) if len(self.rows) > len(self.asked) else None

    def _label(self, text: Tensor) -> Rows:
        """Labels of these text rows; compared once for each tensor that the pipeline goes on using."""
        key = (text.data_ptr(), text.shape, 0 if text.is_inference() else text._version)
        if key not in self._labelled:
            encoded = self.run.prompts.encoded
            while len(self._labelled) >= 4:  # holding the tensors keeps their addresses their own
                self._labelled.pop(next(iter(self._labelled)))
            self._labelled[key] = text, label_rows(text, encoded.cond, encoded.uncond, encoded.images_per_prompt)
        return self._labelled[key][1]

    def after(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Post-hook: check that attention was seen; hand out predictions; fold the rows back."""
        run = self.run
        if run.tap is not None and not self.seen_sites and run.clock.calls == 1 and run.wanted_sites():
            raise blind(run.anatomy.denoiser_name)
        observed = run.active("on_prediction")
        if self._inner or not (observed or len(self.rows) > len(self.asked)):
            return None
        prediction = _first(output)
        changed = None
        if observed and not self.settled:
            self.rows.of("cond")  # raises where rows cannot be told apart
            here = split(prediction, self.rows)
            for name, value in here.items():
                self.preds.setdefault(name, value)
            guided = {"cond"} if run.prompts.encoded.uncond is None else {"cond", "uncond"}
            if guided <= self.preds.keys():
                changed = self._combine(observed, one_call=guided <= here.keys())
        return _replace_first(output, fold(prediction, self.rows, changed, len(self.asked)))

    def _combine(self, observed: Sequence[tuple[int, Any]], one_call: bool) -> Any:
        """Ask every intervention. The result goes into this call's rows, or waits for the scheduler's step
        where the pipeline calls the denoiser once per branch."""
        self.settled = True
        final, owner, changed = None, "", False
        for name, value in self.preds.items():
            if not torch.isfinite(value).all():
                raise NotFinite(f"the denoiser predicted NaN or infinity for {name}; run it in a wider dtype")
        for i, iv in observed:
            got = iv.on_prediction(self.run.contexts[i], dict(self.preds))
            if isinstance(got, Mapping):
                self.preds.update(got)
                changed = True
            elif got is not None:
                if final is not None:
                    raise Conflict(f"{owner} and {self.run.labels[i]} both settle the combined prediction; keep one")
                final, owner = got, self.run.labels[i]
                wanted = self.preds["cond"].shape
                if got.shape != wanted:
                    raise BadInput(f"{owner} combined predictions to {tuple(got.shape)}, not {tuple(wanted)}")
        if final is not None:
            self.run.count(combined=1)
        if one_call:
            return final if final is not None else self.preds if changed else None
        if changed and final is None:
            raise UnsupportedModel("this pipeline calls the denoiser once per branch: return one combined prediction")
        self.pending = final
        return None

    def settle(self) -> Tensor | None:
        """At the scheduler's step: the combined prediction that no denoiser call could carry, if any."""
        observed = self.run.active("on_prediction")
        if observed and self.preds and not self.settled:
            self._combine(observed, one_call=False)
        return self.pending

    def predict(self, branches: Sequence[Branch], posing: bool = False) -> dict[str, Tensor]:
        """One more denoiser call on the rows of `branches` alone, with attention interventions active.

        `posing`: to these, the rows pass for those that their branches are like.
        """
        inputs, rows = grow(self.inputs, self.asked, branches)
        keep = range(len(self.asked), len(rows))
        mine = replace(rows, labels=rows.labels[keep.start :], images=rows.images[keep.start :])
        likes = {branch.name: branch.like for branch in branches}
        labels = tuple(likes[label] for label in mine.labels) if posing else mine.labels
        outer, self.rows = self.rows, replace(mine, labels=labels)
        self._inner = True
        try:
            output = self.run.anatomy.denoiser(**take(inputs, len(rows), keep))
            self.run.count(denoiser_calls=1, denoiser_rows=len(self.rows))
            return split(_first(output), mine)
        finally:
            self._inner, self.rows = False, outer

    # -- its attention -------------------------------------------------------------------------------------

    def attend(self, running: Running, kernel: Any, named: dict[str, Any]) -> Tensor | None:
        """One attention call of a site: ask the interventions, execute what they describe.

        None if the call is not the site's own, such as an image prompt's.
        """
        q, k, v = named["query"], named["key"], named["value"]
        layout = self._layout(running, q, k, v)
        if layout is None:
            return None
        if len(q) != len(self.rows):
            raise UnsupportedModel(f"{running.site.name} attends over {len(q)} rows, the denoiser has {len(self.rows)}")
        self.seen_sites += 1
        call = self._call(running, layout, kernel, named)
        edits = []
        for i, iv in self.run.active("on_attention"):
            if running.site.name in self.run.chosen[i]:
                got = iv.on_attention(self.run.contexts[i], call)
                got = [] if got is None else list(got) if isinstance(got, list | tuple) else [got]
                self.run.note_edits(i, running.site.name, got)
                edits += got
        if not edits:
            return call.plain()
        if named.get("is_causal") or named.get("dropout_p"):
            raise UnsupportedModel(f"{running.site.name} uses causal attention or dropout; edits do not cover these")
        return execute(call, edits, lambda q, k, v, mask: kernel(q, k, v, attn_mask=mask, scale=named.get("scale")))

    def _call(self, running: Running, layout: Layout, kernel: Any, named: dict[str, Any]) -> AttentionCall:
        q, k, v = named["query"], named["key"], named["value"]
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
            grid=None if self.grid is None else self.grid.of(cells),
            rows=self.rows,
            plain_call=lambda: kernel(**named),
            capture=None if tap is None else lambda text: tap.capture(running, text),
            cache=self.cache,
        )

    def _layout(self, running: Running, q: Tensor, k: Tensor, v: Tensor) -> Layout | None:
        """What the queries and keys are, from shapes and content; None if they fit no kind of site."""
        length = None if running.text is None else running.text.shape[1]
        key = (running.site.name, q.shape[2], k.shape[2], length)
        if q.ndim != 4:
            return None
        if key not in self.layouts:
            self.layouts[key] = self._classify(running, q.shape[2], k.shape[2], length, v)
        return self.layouts[key]

    def _classify(self, running: Running, queries: int, keys: int, length: int | None, v: Tensor) -> Layout | None:
        assert self.grid is not None
        if length is not None and keys == length:
            return Layout.cross(queries, length)
        if length is not None and keys == queries > length:
            assert running.text is not None
            first = text_comes_first(running.site.module, running.text, v)
            if first is None:
                raise UnsupportedModel(f"the text rows were not found among the values of {running.site.name}")
            self.text_first = first
            return Layout.joint(keys, length, first)
        if length is None and keys == queries:
            rest = keys - self.text.shape[1]
            if self.grid.of(keys) is not None or rest <= 0 or self.grid.of(rest) is None:
                return Layout.self_(keys)
            if self.text_first is None:
                raise UnsupportedModel(f"{running.site.name} joins text and image, and no site tells which comes first")
            return Layout.joint(keys, self.text.shape[1], self.text_first)
        return None


def tells_text_order(site: Site) -> bool:
    """Whether the site projects text rows by themselves, so that they can be found among its values."""
    return hasattr(site.module, "add_v_proj") or hasattr(site.module, "to_added_qkv")


def blind(name: str) -> Unobservable:
    return Unobservable(
        f"the {name} ran, but none of its attention modules called a hook: it was compiled before the "
        "session. Attach first and compile then, or call `torch._dynamo.reset()` before attaching"
    )


def _first(value: Any) -> Tensor:
    """The tensor of an output or argument that may be a tensor, a tuple or a model output."""
    if isinstance(value, Tensor):
        return value
    found: Tensor = value[0]
    return found


def _replace_first(output: Any, value: Tensor) -> Any:
    if isinstance(output, Tensor):
        return value
    if isinstance(output, tuple):
        return (value, *output[1:])
    name = next(iter(output.keys()))
    return type(output)(**{**output, name: value})
