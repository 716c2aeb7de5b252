"""`unleak.audit`: does a training image come back from rows that no text encoder made?

In the spirit of "Finding DoRI" (ICML 2026), which showed that pruning hides memories instead of erasing them. For the
latents z0 of an image, over the denoiser eps with a mitigation attached, rows y of the prompt are found by

    min_y  E_{t, e} || eps(z_t, t, y) - e ||^2,    z_t = sqrt(abar_t) z0 + sqrt(1 - abar_t) e

from a random or an ordinary start, and then drawn from new noise. Steps and rate are parameters; the paper's are not
known. With enough of them rows bring back images that were never repeated in training, too: attack some as a control.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unleak.core.intervention import Intervention
from unleak.core.result import Result
from unleak.core.rows import Branch
from unleak.drawing.first_steps import first_steps
from unleak.drawing.generate import Seeds, check_seed, global_noise, images_of, memory_errors, parse_seeds
from unleak.drawing.photo import to_latents
from unleak.engine.session import attach
from unleak.errors import BadInput, NotFinite, UnsupportedModel
from unleak.judges.copies import CopyJudge

if TYPE_CHECKING:
    from unleak.core.context import Context

ATTACK = "attack"


@dataclass(frozen=True, eq=False)
class Attacked:
    """Rows [L, D] that an attack found, and its loss at every step of the optimiser."""

    rows: Tensor
    losses: list[float]


@dataclass(frozen=True, eq=False)
class AttackOutcome:
    """Images [S,H,W,3] drawn from attacked rows under one mitigation, and their similarity [S] to the attacked image.

    `adaptive`: the mitigation was attached during the attack, too; else the rows were found on the bare model.
    """

    method: str
    adaptive: bool
    images: np.ndarray
    similarity: np.ndarray
    losses: list[float]

    @property
    def title(self) -> str:
        return f"{self.method}, attacked" if self.adaptive else self.method


@dataclass(repr=False, eq=False)
class Audit(Result):
    """What came back under every mitigation; a sequence of `AttackOutcome`.

    An image whose similarity is at least `copy_from` counts as a copy.
    """

    verb: ClassVar[str] = "audit"
    outcomes: list[AttackOutcome]
    seeds: list[int]
    judge: str
    copy_from: float
    call: dict[str, Any]

    def __iter__(self) -> Iterator[AttackOutcome]:
        return iter(self.outcomes)

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, i: int) -> AttackOutcome:
        return self.outcomes[i]

    def lines(self) -> list[str]:
        lines = ["Does the image come back from rows that no text encoder made?"]
        for o in self:
            copies = f"{int((o.similarity >= self.copy_from).sum())} of {len(o.similarity)} images are copies"
            lines.append(f"  {o.title:<32} {copies}, nearest {o.similarity.max():.3g} ({self.judge})")
        return lines

    def views(self) -> dict[str, np.ndarray]:
        return {o.title: o.images for o in self}

    def data(self) -> dict[str, Any]:
        return {
            "judge": self.judge, "copy_from": self.copy_from, "seeds": self.seeds, "settings": {"call": self.call},
            "outcomes": [
                {"method": o.method, "adaptive": o.adaptive, "similarity": [float(x) for x in o.similarity],
                 "losses": o.losses}
                for o in self
            ],
            "images": self.file_names(),
        }  # fmt: skip


def attack(
    pipe: Any,
    image: np.ndarray,
    *methods: Intervention,
    start: str | None = None,
    rounds: int = 10,
    lr: float = 0.1,
    batch: int = 4,
    seed: int = 0,
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Attacked:
    """Rows from which the denoiser, with `methods` attached, reproduces an image.

    The pipeline runs `rounds` times; every denoising step of a run is one step of Adam at its timestep, on `batch`
    draws of noise. What methods do to attention is done to the attacked rows as to the prompt's; what they do to
    the combined prediction is not differentiated through.

    Args:
        image: [H, W, 3] uint8 of the size that the pipeline draws.
        start: the prompt whose rows are the start; None: normal noise of the mean and deviation of the empty prompt's.
        progress: is told of every run.

    Raises:
        UnsupportedModel: the denoiser reads more of a prompt than rows, or predicts what no loss is known for.
        BadInput: the image or a number is of no use. NotFinite: the rows became NaN.
    """
    if min(rounds, batch) < 1 or not lr > 0:
        raise BadInput(f"an attack needs rounds and batch of 1 or more and a rate above 0, not {rounds}, {batch}, {lr}")
    check_seed(seed)
    check(pipe)
    random = torch.Generator().manual_seed(seed)
    learner = _Learner(latents_of(pipe, image), start is None, lr, random)
    arguments = {"prompt": start or "", "num_images_per_prompt": batch, **(call or {})}
    for _ in range(rounds):
        with memory_errors(batch):
            noise = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=random)))
            first_steps(pipe, None, *methods, _Learn(learner), generator=noise, **arguments)
        if progress:
            progress(1)
    assert learner.rows is not None
    return Attacked(learner.rows.detach(), learner.losses)


def audit(
    pipe: Any,
    image: np.ndarray,
    methods: Mapping[str, Intervention | None],
    judge: CopyJudge,
    *,
    seeds: Seeds = 4,
    call: Mapping[str, Any] | None = None,
    **attacking: Any,
) -> Audit:
    """Attack an image on the bare model and under every mitigation, and draw from what was found.

    Args:
        methods: by name; None is the bare model.
        judge: how near images come to `image` (see `unleak.judges.copies.PixelJudge`).
        attacking: see `attack`.

    Returns:
        Per method the outcome of the rows found on the bare model, then that of rows found with it attached.
    """
    seeds, call = parse_seeds(seeds), dict(call or {})
    attacked = attack(pipe, image, call=call, **attacking)
    outcomes = []
    for name, method in methods.items():
        attached = [] if method is None else [method]
        outcomes.append(_outcome(pipe, name, attached, attacked, judge, seeds, call, adaptive=False))
        if attached:
            adapted = attack(pipe, image, *attached, call=call, **attacking)
            outcomes.append(_outcome(pipe, name, attached, adapted, judge, seeds, call, adaptive=True))
    return Audit(outcomes, seeds, judge.name, judge.threshold, call)


def _outcome(pipe: Any, name: str, methods: Sequence[Intervention], attacked: Attacked, judge: CopyJudge,
             seeds: Sequence[int], call: Mapping[str, Any] | None, adaptive: bool) -> AttackOutcome:  # fmt: skip
    with attach(pipe, *methods):
        images = draw_rows(pipe, attacked.rows, seeds, **(call or {}))
    return AttackOutcome(name, adaptive, images, judge.similarity(images), attacked.losses)


def draw_rows(pipe: Any, rows: Tensor, seeds: Sequence[int], **call: Any) -> np.ndarray:
    """Images [S, H, W, 3] uint8 from rows [L, D] in place of a prompt's. Raises NotFinite."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with memory_errors(len(generators)), global_noise():
        given = rows.expand(len(generators), -1, -1)
        return images_of(pipe, pipe(prompt_embeds=given, generator=generators, output_type="np", **call))


def check(pipe: Any) -> None:
    """Refuse a pipeline whose rows are not all that it reads of a prompt. Raises UnsupportedModel."""
    accepts = inspect.signature(pipe.__call__).parameters
    if "prompt_embeds" not in accepts or "pooled_prompt_embeds" in accepts:
        raise UnsupportedModel(
            f"the attack is on text rows alone, and {type(pipe).__name__} "
            + ("takes none" if "prompt_embeds" not in accepts else "reads a pooled vector as well")
        )
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction") or not hasattr(pipe.scheduler, "add_noise"):
        raise UnsupportedModel(f"the attack knows the loss of noise and velocity, not of {kind!r}")


def latents_of(pipe: Any, image: np.ndarray) -> Tensor:
    """`unleak.drawing.photo.to_latents` of an image [H, W, 3] uint8. Raises BadInput: it is none."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        kind = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
        raise BadInput(f"an image to attack is RGB, [H, W, 3] uint8, not {kind}; `files.pictures.photo` reads files")
    return to_latents(pipe, image)


@dataclass(eq=False)
class _Learner:
    """The rows that are found, their optimiser, and what it has done."""

    z0: Tensor
    anywhere: bool
    lr: float
    random: torch.Generator
    rows: Tensor | None = None
    losses: list[float] = field(default_factory=list)

    def begin(self, start: Tensor) -> None:
        """From these rows [L, D], or from noise like them."""
        if self.rows is None:
            start = start.detach().float()
            if self.anywhere:
                noise = torch.randn(start.shape, generator=self.random).to(start)
                start = start.mean(0) + start.std(0) * noise
            self.rows = start.clone().requires_grad_()
            self.optimiser = torch.optim.Adam([self.rows], lr=self.lr)

    def step(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise NotFinite("the loss of the attack is NaN or infinite; lower lr, or run the model in a wider dtype")
        assert self.rows is not None
        (gradient,) = torch.autograd.grad(loss, [self.rows], allow_unused=True)
        if gradient is None:
            raise BadInput("a method puts rows of its own in place of the attacked: there is nothing to attack")
        self.rows.grad = gradient
        self.optimiser.step()
        self.losses.append(float(loss.detach()))


@dataclass(frozen=True)
class _Learn(Intervention):
    """One step of the attack at every denoising step, on rows that pass for the prompt's."""

    learner: Any

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> None:
        pipe: Any = ctx.pipe
        learner, scheduler, plain = self.learner, pipe.scheduler, preds["cond"]
        assert ctx.encoded.cond is not None
        learner.begin(ctx.encoded.cond[0])
        if learner.z0.shape[1:] != plain.shape[1:]:
            raise BadInput(f"the image gives latents {tuple(learner.z0.shape[1:])}, the call {tuple(plain.shape[1:])}")
        e = torch.randn(plain.shape, generator=learner.random).to(learner.z0)
        z0, t = learner.z0.expand_as(e), torch.tensor([ctx.timestep]).to(scheduler.timesteps)
        z = scheduler.scale_model_input(scheduler.add_noise(z0, e, t.expand(len(e))), t[0])
        noise = scheduler.config.get("prediction_type", "epsilon") == "epsilon"
        target = e if noise else scheduler.get_velocity(z0, e, t.expand(len(e)))
        with torch.enable_grad():
            branch = Branch(ATTACK, text=learner.rows, latents=z)
            prediction = ctx.predict([branch], as_source=True)[ATTACK]
            learner.step((prediction - target).float().pow(2).mean())
