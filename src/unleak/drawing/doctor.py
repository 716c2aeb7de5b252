"""What is this pipeline, can its attention be seen, and do the laws hold on it? `examine` runs and tells."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unleak.core.anatomy import Anatomy
from unleak.core.attention import AttentionCall
from unleak.core.context import Context
from unleak.core.intervention import CROSS, JOINT, Intervention
from unleak.core.result import Result, cut
from unleak.drawing.weightless import has_weights, site_kinds
from unleak.engine.session import attach
from unleak.errors import UnleakError, UnsupportedModel

PROMPT = "a red cup and a dog"


@dataclass(frozen=True)
class Outcome:
    """What became of one verb or method on a pipeline.

    Attributes:
        state: "yes": it works. "no": it refuses this pipeline, for `reason`. "fault": it failed without a typed error,
            or ran and did nothing; that is an error of unleak or of the pipeline. "open": nothing that a pipeline
            without weights tells is against it.
        reason: one sentence or more; None where it works.
    """

    verb: str
    room: str
    state: str
    reason: str | None = None

    @property
    def short(self) -> str:
        """The reason's first sentence, or so much of it that a person knows what is meant."""
        found = re.match(r".{40,}?(?=[.:;] |$)", self.reason or "", re.DOTALL)
        return cut((found[0] if found else self.reason or "").rstrip("."))


@dataclass(frozen=True, repr=False)
class Report(Result):
    """Result of `doctor`. `layout` names how text reaches the image: "cross-attention", "joint, text first",
    "joint, text last", or "unknown" where attention cannot be observed.

    `observable`, `identity` (looking changes no bit) and `restored` (nothing is left behind, also after an
    error) are the laws; `reason` says what is wrong and how to mend it. A site's `kind` is "cross", "joint",
    "self", or None where it was not seen. `verbs` says what works on this pipeline, verb by verb, where that was tried.
    Without `weights` nothing is drawn: sites and layout are known by shapes alone, and the laws are not.
    """

    verb: ClassVar[str] = "doctor"
    pipeline: str
    encoders: tuple[dict[str, Any], ...]
    denoiser: dict[str, Any]
    layout: str
    sites: tuple[dict[str, Any], ...]
    observable: bool
    identity: bool
    restored: bool
    reason: str | None = None
    steps: int = 0
    verbs: tuple[Outcome, ...] = ()
    weights: bool = True

    @property
    def ok(self) -> bool:
        return self.observable and self.identity and self.restored

    def data(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        kinds = Counter(site["kind"] or "unseen" for site in self.sites)
        lines = [
            f"{self.pipeline}: {self.denoiser['name']} ({self.denoiser['class']}), {self.layout}",
            "encoders: " + ", ".join(f"{e['name']} ({e['class']})" for e in self.encoders),
            f"{len(self.sites)} attention sites: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())),
        ]
        if self.weights:
            laws = ("observable", "identity", "restored")
            lines.append(", ".join(f"{name} {'yes' if getattr(self, name) else 'NO'}" for name in laws))
        return [*lines, *([self.reason] if self.reason else []), *self._verbs()]

    def _verbs(self) -> list[str]:
        """What works, and the others by their reasons."""
        works = ", ".join(one.verb for one in self.verbs if one.state == "yes")
        lines = textwrap.wrap(f"works: {works}", 110, subsequent_indent="  ") if works else []
        reasons: dict[tuple[str, str], list[str]] = {}
        for one in self.verbs:
            if one.state != "yes":
                reasons.setdefault((one.state, one.short), []).append(one.verb)
        marks = {"no": "refused", "fault": "FAULT", "open": "open"}
        return lines + [cut(f"{marks[s]}: {', '.join(verbs)}: {why}") for (s, why), verbs in reasons.items()]


@dataclass(frozen=True)
class _Look(Intervention):
    """Opens every seam, changes nothing; raises at the last step where told to."""

    fail: bool = False

    def on_text(self, ctx: Context, call: Any) -> None:
        ctx.results.setdefault("lengths", {})[call.name] = call.length

    def on_attention(self, ctx: Context, site: AttentionCall) -> None:
        sites = ctx.results.setdefault("sites", {})
        sites[site.name] = {"kind": site.kind, "heads": site.q.shape[1], "grid": site.grid}
        text = site.layout.text_keys
        if site.kind == "joint" and text is not None:
            ctx.results["text_first"] = text.start == 0

    def on_prediction(self, ctx: Context, preds: Any) -> None:
        if self.fail and ctx.fraction == 1.0:
            raise _OnPurposeError

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        return None


class _OnPurposeError(Exception):
    pass


def short_call(pipe: Any, steps: int, call: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a short call: `steps` of 8 x 8 latent cells, unless `call` says otherwise."""
    side = 8 * getattr(pipe, "vae_scale_factor", 8)
    return {"height": side, "width": side, "num_inference_steps": steps, **(call or {})}


def examine(pipe: Any, steps: int = 2, call: Mapping[str, Any] | None = None) -> Report:
    """Run the pipeline briefly at its smallest size and check it.

    Args:
        pipe: a loaded diffusers pipeline.
        steps: denoising steps of each of the four short runs, at least 2.
        call: further arguments of the pipeline, such as a size that it takes.

    Returns:
        A `Report`; attention that cannot be observed is reported, not raised.

    Raises:
        UnsupportedModel: the pipeline has no text-conditioned denoiser with attention.
    """
    anatomy, short = Anatomy.of(pipe), short_call(pipe, steps, call)
    if not has_weights(pipe):
        return _declared(anatomy, short)
    bare, before = _draw(pipe, short), _marks(anatomy)
    reason, identity, observations = None, False, {}
    try:
        with attach(pipe, _Look()) as run:
            identity = torch.equal(_draw(pipe, short), bare)
        observations = run.results
        reason = None if identity else "looking changed the image: is the pipeline deterministic on this device?"
    except UnsupportedModel as error:
        reason = str(error)
    observable = bool(observations)
    restored = (
        _marks(anatomy) == before
        and _restores(pipe, anatomy, short, observable)
        and torch.equal(_draw(pipe, short), bare)
    )
    kinds = observations.get("sites", {})
    return Report(
        pipeline=type(pipe).__name__,
        **_parts(anatomy, observations.get("lengths", {})),
        layout=_layout(observations),
        sites=tuple({"name": s.name, "kind": None, **kinds.get(s.name, {})} for s in anatomy.sites),
        observable=observable,
        identity=identity,
        restored=restored,
        reason=reason if reason or restored else "something is left on the pipeline after a session",
        steps=steps,
    )


def _parts(anatomy: Anatomy, lengths: Mapping[str, int]) -> dict[str, Any]:
    encoders = (
        {"name": e.name, "class": type(e.module).__name__, "length": lengths.get(e.name)} for e in anatomy.encoders
    )
    denoiser = {
        "name": anatomy.denoiser_name,
        "class": type(anatomy.denoiser).__name__,
        "parameters": sum(p.numel() for p in anatomy.denoiser.parameters()),
    }
    return {"encoders": tuple(encoders), "denoiser": denoiser}


def _declared(anatomy: Anatomy, call: Mapping[str, Any]) -> Report:
    """What shapes alone tell of a pipeline without weights."""
    reason = "no weights are loaded, so nothing was drawn: sites and layout are told by shapes"
    kinds: dict[str, str] = {}
    try:
        kinds = site_kinds(anatomy, call)
    except Exception as error:  # a pipeline that decides by values, in its own words
        said = f"{type(error).__name__}: {error}".split("\n")[0]
        reason = f"no weights are loaded, and this pipeline decides by values before its attention ({said})"
    layout = next((name for kind, name in (("joint", JOINT), ("cross", CROSS)) if kind in kinds.values()), "unknown")
    return Report(
        pipeline=type(anatomy.pipe).__name__,
        **_parts(anatomy, {}),
        layout=layout,
        sites=tuple({"name": s.name, "kind": kinds.get(s.name)} for s in anatomy.sites),
        observable=False,
        identity=False,
        restored=False,
        reason=reason,
        weights=False,
    )


def _draw(pipe: Any, call: Mapping[str, Any]) -> Tensor:
    """Latents of a short run."""
    with torch.no_grad():
        latents: Tensor = pipe(
            prompt=PROMPT,
            **call,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="latent",
            return_dict=False,
        )[0]
    return latents


def _marks(anatomy: Anatomy) -> tuple[int, list[str]]:
    """Hooks on all modules and attributes set on the pipeline and its scheduler."""
    parts = [part for part in anatomy.pipe.components.values() if isinstance(part, nn.Module)]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for part in parts for m in part.modules())
    return hooks, sorted(
        name for owner in (anatomy.pipe, anatomy.pipe.scheduler) for name in vars(owner) if callable(vars(owner)[name])
    )


def _restores(pipe: Any, anatomy: Anatomy, call: Mapping[str, Any], observable: bool) -> bool:
    """Whether an error in the middle of a run leaves the pipeline as it was."""
    if not observable:
        return True
    before = _marks(anatomy)
    try:
        with attach(pipe, _Look(fail=True)):
            _draw(pipe, call)
    except _OnPurposeError:
        return _marks(anatomy) == before
    except UnleakError:
        return False
    return False


def _layout(observations: dict[str, Any]) -> str:
    kinds = {site["kind"] for site in observations.get("sites", {}).values()}
    if "joint" in kinds:
        return "joint, text first" if observations["text_first"] else "joint, text last"
    return "cross-attention" if "cross" in kinds else "unknown"
