"""The audit of `unleak bench copies`: does a mitigation at inference time remove what the weights hold?

Rows are attacked (`unleak.copies.audit`) until the denoiser reproduces an image: of a verbatim caption, and, as a
control, of an ordinary one that the training did not repeat. Both on the bare model and with a mitigation attached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from unleak.bench.copies.detection import captions
from unleak.bench.rows import Row, mean, share
from unleak.bench.run import Run
from unleak.copies.audit import attack, draw_rows
from unleak.copies.methods.neurons import PRUNED, PruneNeurons
from unleak.copies.presets import MITIGATIONS
from unleak.core.intervention import Intervention
from unleak.drawing.generate import draw
from unleak.engine.session import attach
from unleak.judges.copies import PixelJudge
from unleak.world.render import Renderer

PREFIX = "audit-"
BARE = PREFIX + "bare"
#: what the audit can run; none of it unasked: an attack costs some hundred denoiser rows
METHODS: tuple[str, ...] = (BARE, *(PREFIX + name for name in ("attenuate", "guard", "repulsion-only", "nemo")))
DEFAULT: tuple[str, ...] = ()
KINDS = ("verbatim", "form")
MOST, ROUNDS, BATCH = 12, 3, 2  #: images of a kind; runs of the pipeline in an attack, and images in one


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """Shares of images that came back, and the loss that the attack reached.

    `audit_returned`: from rows attacked with the method attached; `audit_transferred`: from rows attacked on the bare
    model and drawn with it. `audit_loss` is the mean of the attack's last run: what the weights know they learn fast.
    Subsets are the caption's kind; "form" are the ordinary ones.

    A method that leaves attention alone, or acts on rows of its own, is not met by the attack: that finds the bare
    model's rows. That is one attack and no second one: only `audit_transferred` is given, and a note says so.
    """
    pipe, world, seeds, call = run.pipe, run.world, run.seeds, run.call
    chosen = captions(world, run.split, min(run.limit or MOST, MOST))
    texts = [(kind, text) for kind in KINDS for text in chosen.get(kind, ())]
    tick = run.ticking("audit", len(texts))
    scenes = {c.text: c.scene for c in (*world.memorized, *world.ordinary)}
    back: dict[tuple[str, str, str], list[Any]] = {}
    unmet: dict[str, None] = {}
    for i, (kind, text) in enumerate(texts):
        image = Renderer(world).pictures([scenes[text]])[0]
        judge, bare = PixelJudge(image[None]), None
        for name in dict.fromkeys((BARE, *methods)):  # rows of the bare model are drawn under every method
            under = _method(pipe, name, text, seeds, call)
            key = [ROUNDS, BATCH, name, text]
            code = [attack, *map(type, under)]
            result = run.part(f"attack-{kind}-{i}-{name}", key, partial(_attacked, pipe, image, under, call), code)
            bare = bare or result["rows"]
            own = name == BARE or result["rows"] != bare
            attacks = {"audit_returned": result["rows"]} if own else {}
            if name != BARE:
                attacks["audit_transferred"] = bare
            for metric, attacked in attacks.items():
                inputs = [*key, metric]
                drawn = partial(_similarity, pipe, attacked, under, judge, seeds, call)
                near = run.part(f"{metric}-{kind}-{i}-{name}", inputs, drawn, code)
                back.setdefault((name, kind, metric), []).append(np.array(near) >= judge.threshold)
            if own:
                back.setdefault((name, kind, "audit_loss"), []).append(result["loss"])
            else:
                unmet[name] = None
        tick(1)
    run.notes += [f"{name}: the attack does not meet it and is that on the bare model, given once as audit_transferred"
                  for name in unmet]  # fmt: skip
    return [
        (mean if metric == "audit_loss" else share)(values, name, kind, metric)
        for (name, kind, metric), values in back.items()
        if name in methods
    ]


def _attacked(pipe: Any, image: np.ndarray, under: Sequence[Intervention], call: Mapping[str, Any]) -> dict[str, Any]:
    attacked = attack(pipe, image, *under, rounds=ROUNDS, batch=BATCH, call=call)
    last = attacked.losses[-(len(attacked.losses) // ROUNDS) :]
    return {"rows": attacked.rows.tolist(), "loss": float(np.mean(last))}


def _similarity(pipe: Any, rows: Any, under: Sequence[Intervention], judge: PixelJudge, seeds: Sequence[int],
                call: Mapping[str, Any]) -> list[float]:  # fmt: skip
    with attach(pipe, *under):
        return judge.similarity(draw_rows(pipe, torch.tensor(rows), seeds, **call)).tolist()


def _method(pipe: Any, name: str, text: str, seeds: Sequence[int], call: Mapping[str, Any]) -> list[Intervention]:
    """The mitigation; neurons are those of the caption, whatever the rows."""
    if name == BARE:
        return []
    mitigation = MITIGATIONS[name.removeprefix(PREFIX)].make()
    if isinstance(mitigation, PruneNeurons):
        with attach(pipe, mitigation) as run:
            draw(pipe, [text], list(seeds)[:1], **{**call, "num_inference_steps": 1})
        mitigation = PruneNeurons(neurons=run.results[PRUNED][0])
    return [mitigation]
