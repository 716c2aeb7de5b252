"""`unleak.doctor`: what a pipeline is, and which verbs work on it. Each is run for a moment and must be seen to act.

A verb works if it does what it is for: maps of two items differ, a repair changes the picture, and at strength 0 the
picture is bitwise that of the bare pipeline. A verb that refuses says why, in its own typed error; anything else that
is raised, and a verb that runs and does nothing, is a fault.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from unleak.copies.audit import audit
from unleak.copies.detect.detectors import Detector
from unleak.copies.methods.attenuate import Attenuate
from unleak.copies.methods.detour import Detour
from unleak.copies.methods.guard import Guard
from unleak.copies.presets import DETECTORS
from unleak.copies.scan.scan import scan
from unleak.core.anatomy import Anatomy
from unleak.core.intervention import Intervention
from unleak.drawing.doctor import PROMPT, Outcome, Report, examine, short_call
from unleak.drawing.generate import global_noise
from unleak.drawing.images import generate
from unleak.engine.session import attach
from unleak.errors import NoSite, UnleakError, UnsupportedModel
from unleak.judges.copies import PixelJudge
from unleak.regions.edit import edit
from unleak.regions.methods.rgbcam import RGBCAM
from unleak.regions.plan import Edit
from unleak.regions.presets import EDITORS
from unleak.regions.regional import RegionPrompt, regions
from unleak.text.subsets import Subset
from unleak.words.diagnosis.diagnose import diagnose
from unleak.words.lint.lint_file import lint
from unleak.words.methods.boost import Boost
from unleak.words.methods.deleaker import DeLeaker
from unleak.words.methods.maps import Maps
from unleak.words.methods.patch import Patch
from unleak.words.methods.probe import Keep
from unleak.words.methods.prune import Prune
from unleak.words.repair.repair import repair
from unleak.words.tokens.redundancy import tokens

ITEMS = ("red cup", "dog")  #: of `PROMPT`
OF_EDITS = ("num_inference_steps", "height", "width", "guidance_scale", "negative_prompt")
"""Arguments of a call that an edit sets itself."""


class _NothingShownError(Exception):
    """A verb ran, and what it should do could not be seen."""


def _see(shown: bool | np.bool_ | Tensor, otherwise: str) -> None:
    if not bool(shown):
        raise _NothingShownError(otherwise)


@dataclass
class Trial:
    """A pipeline and the arguments of a short call of it."""

    pipe: Any
    call: dict[str, Any]

    def draw(self, *methods: Intervention, prompt: str = PROMPT) -> tuple[Tensor, Any]:
        """Final latents under some methods, and the session."""
        with attach(self.pipe, *methods) as run:
            return self._latents(prompt), run

    @cached_property
    def bare(self) -> Tensor:
        """Final latents of the pipeline alone."""
        return self._latents(PROMPT)

    def _latents(self, prompt: str) -> Tensor:
        settings = {**self.call, "output_type": "latent", "return_dict": False}
        with torch.no_grad(), global_noise():
            latents = self.pipe(prompt=prompt, generator=torch.Generator("cpu").manual_seed(0), **settings)[0]
        return torch.as_tensor(latents)

    @cached_property
    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8 of the pipeline alone."""
        return generate(self.pipe, PROMPT, seeds=1, call=self.call).images[0, 0]

    def acts(self, method: Intervention, idle: Intervention | None = None) -> None:
        """The method changes the picture; the same at strength 0 does not, by a single bit."""
        drawn, _ = self.draw(method)
        _see(torch.isfinite(drawn).all(), f"{type(method).__name__} makes the picture NaN or infinite")
        _see(not torch.equal(drawn, self.bare), f"{type(method).__name__} runs and changes nothing")
        if idle is not None:
            still, _ = self.draw(idle)
            _see(torch.equal(still, self.bare), f"{type(method).__name__} at strength 0 changes the picture")


def _maps(trial: Trial) -> None:
    latents, run = trial.draw(Maps(ITEMS))
    _see(torch.equal(latents, trial.bare), "looking at attention changes the picture")
    (seen,) = run.results["maps"]
    first, second = (seen.map(item) for item in ITEMS)
    _see(first.any() and second.any(), "a map is zero everywhere")
    _see(not torch.allclose(first, second), "the maps of two items are the same")
    _see(bool((first + second).max() <= 1 + 1e-4), "attention to two rows is more than all attention")


def _prune(trial: Trial) -> None:
    """By the first encoder one of whose tokens of the item is a row that the denoiser reads."""
    refusal: Exception | None = None
    for encoder in Anatomy.of(trial.pipe).encoders:
        try:
            return trial.acts(Prune(Subset.token(ITEMS[0], 0, encoder.name)))
        except (UnleakError, _NothingShownError) as error:
            refusal = refusal or error
    raise refusal or UnsupportedModel("the pipeline has no text encoder")


def _repair(trial: Trial) -> None:
    result = repair(trial.pipe, PROMPT, ITEMS, with_="patch", seeds=1, call=trial.call)
    _see(not np.array_equal(result.before, result.after), "the repaired picture is the first one")


def _diagnose(trial: Trial) -> None:
    result = diagnose(trial.pipe, PROMPT, ITEMS, seeds=1, evidence="all", after=False, call=trial.call)
    _see(len(result.findings) == len(ITEMS), "an item has no finding")


def _tokens(trial: Trial) -> None:
    result = tokens(trial.pipe, PROMPT, ITEMS, seeds=1, call=trial.call)
    views = list(result.images.values())
    _see(any(not np.array_equal(views[0], view) for view in views[1:]), "every token draws the same picture")


def _lint(trial: Trial) -> None:
    result = lint(trial.pipe, PROMPT, ITEMS, call=trial.call)[0]
    if result.error:
        raise UnsupportedModel(str(result.error))


def _half(trial: Trial) -> np.ndarray:
    """[H, W] bool: the left half."""
    height, width = trial.picture.shape[:2]
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask


def _edit(trial: Trial) -> None:
    """By the first editor that takes this pipeline; the reason is the last one's."""
    task, refusal = Edit("dog", "cup", _half(trial)), None
    settings = {n: v for n, v in trial.call.items() if n not in OF_EDITS}
    for name in EDITORS:
        try:
            result = edit(
                trial.pipe, trial.picture, [task], preset=name, steps=2, size=trial.picture.shape[:2], call=settings
            )
        except (UnsupportedModel, NoSite) as error:
            refusal = refusal or error
            continue
        _see(not np.array_equal(result.image, result.rebuilt), "the edit is the photo")
        return
    raise refusal or UnsupportedModel("no editor takes this pipeline")


def _regions(trial: Trial) -> None:
    where = [RegionPrompt("red cup", (0, 0, 0.5, 1)), RegionPrompt("dog", (0.5, 0, 1, 1))]
    drawn = regions(trial.pipe, PROMPT, where, seeds=1, call=trial.call).images[0]
    _see(not np.array_equal(drawn, trial.picture), "the regions change nothing")


def _scan(*detectors: Detector) -> Callable[[Trial], None]:
    def run(trial: Trial) -> None:
        result = scan(trial.pipe, PROMPT, 2, None, detectors or None, call=trial.call)
        _see(np.isfinite(result.scores).all(), "a score is NaN or infinite")

    return run


def _audit(trial: Trial) -> None:
    judge = PixelJudge(trial.picture[None])
    result = audit(trial.pipe, trial.picture, {"bare": None}, judge, seeds=1, rounds=1, batch=1, call=trial.call)
    _see(all(math.isfinite(loss) for one in result for loss in one.losses), "a loss is NaN or infinite")


def _made(detector: str) -> Detector:
    """A detector by its name; one that reads a single site reads the first, which every denoiser has."""
    preset = DETECTORS[detector]
    one = {"site": 0} if any(parameter.name == "site" for parameter in preset.parameters) else {}
    return cast(Detector, preset.make(**one))


@dataclass(frozen=True)
class Verb:
    """A verb or a method: its name, whose room it is, and what shows that it works; that raises where it does not.

    `layouts`: where text may reach the picture for it to work.
    """

    name: str
    room: str
    show: Callable[[Trial], None]
    layouts: tuple[str, ...] = Intervention.layouts


NEVER = math.inf  #: a gate that no score reaches

VERBS: tuple[Verb, ...] = (
    Verb("Maps", "words", _maps),
    Verb("Patch", "words", lambda t: t.acts(Patch(*ITEMS))),
    Verb("Keep", "words", lambda t: t.acts(Keep(Subset.of(ITEMS[0])))),
    Verb("Prune", "words", _prune),
    Verb(
        "Boost", "words", lambda t: t.acts(Boost(ITEMS, gain=3.0, region="all"), Boost(ITEMS, gain=1.0, region="all"))
    ),
    Verb(
        "DeLeaker",
        "words",
        lambda t: t.acts(DeLeaker(ITEMS, morphology=False), DeLeaker(ITEMS, gain=1.0, weaken=False, image_image=False)),
        DeLeaker.layouts,
    ),
    Verb("diagnose", "words", _diagnose),
    Verb("repair", "words", _repair),
    Verb("tokens", "words", _tokens),
    Verb("lint", "words", _lint),
    Verb("edit", "regions", _edit),
    Verb("regions", "regions", _regions, RGBCAM.layouts),
    Verb("Attenuate", "copies", lambda t: t.acts(Attenuate(), Attenuate(alpha=1.0))),
    Verb("Guard", "copies", lambda t: t.acts(Guard(), Guard(gate=NEVER))),
    Verb("Detour", "copies", lambda t: t.acts(Detour(near=-1.0), Detour(gate=NEVER))),
    *(Verb(name, "copies", _scan(_made(name))) for name in DETECTORS),
    Verb("scan", "copies", _scan()),
    Verb("audit", "copies", _audit),
)
"""Every verb that a pipeline may refuse, room by room, in the order of the documentation."""


def doctor(
    pipe: Any,
    steps: int = 2,
    *,
    call: Mapping[str, Any] | None = None,
    verbs: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Run the pipeline briefly at its smallest size; say what it is, whether the laws hold, and which verbs work.

    Args:
        pipe: a loaded diffusers pipeline; it stays what it is. One without weights (`unleak.models.skeleton`) is not
            run: shapes tell its sites and layout, and verbs that no layout speaks against are "open".
        steps: denoising steps of each short run, at least 2.
        call: further arguments of the pipeline, such as a size that it takes, or a guidance.
        verbs: try every verb, too: about a hundred short runs.
        progress: is told of every verb before it is tried.

    Returns:
        A `Report`; attention that cannot be observed, and a verb that refuses, are reported, not raised.

    Raises:
        UnsupportedModel: the pipeline has no text-conditioned denoiser with attention.
    """
    report = examine(pipe, steps, call)
    if not report.weights:
        return replace(report, verbs=tuple(_open(verb, report.layout) for verb in VERBS)) if verbs else report
    return replace(report, verbs=tuple(try_verbs(pipe, short_call(pipe, steps, call), progress))) if verbs else report


def _open(verb: Verb, layout: str) -> Outcome:
    """What a layout that was told by shapes says of a verb."""
    if layout in verb.layouts or layout not in Intervention.layouts:
        return Outcome(verb.name, verb.room, "open", "the weights decide")
    return Outcome(verb.name, verb.room, "no", f"works on {' or '.join(verb.layouts)}, and this is {layout}")


def try_verbs(pipe: Any, call: Mapping[str, Any], progress: Callable[[str], None] | None = None) -> Iterator[Outcome]:
    """Run every verb for a moment.

    Args:
        pipe: a loaded diffusers pipeline; it stays what it is.
        call: arguments of the pipeline that make a call short: two steps, a small size.
        progress: is told of every verb before it is tried.

    Yields:
        One outcome a verb, in the order of `VERBS`.
    """
    trial = Trial(pipe, dict(call))
    for verb in VERBS:
        if progress is not None:
            progress(verb.name)
        state, reason = "yes", None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                verb.show(trial)
            except UnleakError as error:
                state, reason = "no", str(error)
            except _NothingShownError as error:
                state, reason = "fault", str(error)
            except Exception as error:  # what a verb does not foresee is what this is here to find
                state, reason = "fault", f"{type(error).__name__}: {error}".split("\n")[0]
        yield Outcome(verb.name, verb.room, state, reason)
