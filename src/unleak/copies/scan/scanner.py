"""The scanner: batches of prompts in, the same batches with their scores out. It knows no file and no engine.

What a prompt scores follows from the prompt, the settings and the size of a batch, never from the other prompts of its
batch: one that is not full is filled up with numbers, and a repeated prompt is measured once. So however a file is cut
among workers of one kind, each prompt gets the score that one process gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import count, islice
from typing import Any

from unleak import models
from unleak.copies.scan.calibrate import Calibration, fingerprint_of
from unleak.copies.scan.scan import ScanPlan, fits, measure
from unleak.copies.scan.scan import plan as make_plan
from unleak.errors import BadInput
from unleak.text.prompt import check_prompt


class Scanner:
    """``Scanner("emoji-sd", seeds=4)(batch)``: memorization scores of batches of prompts on one model.

    As it stands it is a class for ``ray.data.Dataset.map_batches``, which makes one in each worker.

    Args:
        model: a diffusers pipeline, or what `unleak.models.load` opens; then its own call settings hold.
        settings: arguments of `unleak.copies.scan.scan.plan`: seeds, first_steps, detectors_, calibration, batch, call.
        plan: instead of them, what was planned already.
        name: of the model, for the record. column: which column of a batch holds the prompts.
        load: arguments of `unleak.models.load`: device, dtype, offload.
        own_calibration: use the one that comes with a named model, where it holds; `note` says where it does not.

    Raises:
        BadInput, UnsupportedModel: see `plan`; and whatever opening a model raises.
    """

    def __init__(
        self,
        model: Any,
        *,
        plan: ScanPlan | None = None,
        name: str = "",
        column: str = "prompt",
        load: Mapping[str, Any] | None = None,
        own_calibration: bool = False,
        **settings: Any,
    ) -> None:
        self.note = ""
        own = models.calibration(model) if own_calibration and isinstance(model, str) else None
        if isinstance(model, str):
            name, settings["call"] = name or model, {**models.settings(model), **(settings.get("call") or {})}
            model = models.load(model, **(load or {}))
        self.pipe, self.name, self.column = model, name, column
        if own is not None:
            try:
                plan = make_plan(model, **{**settings, "calibration": Calibration.load(own)})
            except BadInput as e:
                self.note = f"the model's own calibration is not used: {e}"
        self.plan = plan if plan is not None else make_plan(model, **settings)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a batch and, of P rows each: score (NaN where a prompt cannot be used), memorized (None
        without a calibration), scores and images (by detector), error (None, or why the prompt cannot be used).

        Raises BadInput: the batch has no such column. NotFinite: predictions are NaN.
        """
        if self.column not in batch:
            raise BadInput(f"the batch has no column {self.column!r} among {sorted(batch)}: name it with column=")
        prompts = list(batch[self.column])
        errors = self.unfit(prompts)
        records = iter(self.records([p for p, error in zip(prompts, errors, strict=True) if error is None]))
        nothing = {"score": float("nan"), "memorized": None, "scores": None, "images": None}
        rows = [next(records) if error is None else nothing for error in errors]
        return {**batch, **{name: [row[name] for row in rows] for name in nothing}, "error": errors}

    def noted(self, _: None = None) -> str:
        """What a user should know; "" for nothing."""
        return self.note

    def about(self, _: None = None) -> dict[str, Any]:
        """Everything but the prompt that decides a record."""
        known, what = self.plan.calibration, self.plan
        return {
            "model": self.name, "fingerprint": fingerprint_of(self.pipe, what.call), "detectors": list(what.names),
            "score": what.score_name, "steps": what.steps, "seeds": list(what.seeds), "batch": what.batch,
            "call": dict(what.call), "calibrated": known is not None, "threshold": known.threshold if known else None,
            "weights": dict(known.weights) if known else {}, "bias": known.bias if known else 0.0,
        }  # fmt: skip

    def unfit(self, prompts: Sequence[Any]) -> list[str | None]:
        """Why a prompt cannot be scanned; None where it can."""
        return [self._unfit(prompt) for prompt in prompts]

    def _unfit(self, prompt: Any) -> str | None:
        try:
            self._check(check_prompt(prompt))
        except BadInput as e:  # PromptTruncated is one
            return str(e)
        return None

    @cached_property
    def _check(self) -> Callable[[str], None]:
        return fits(self.pipe, self.plan)

    def records(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """One record for each prompt that fits: prompt, score, memorized, scores and images, rounded."""
        each, size = list(dict.fromkeys(prompts)), self.plan.batch
        done = [record for i in range(0, len(each), size) for record in self._full(each[i : i + size])]
        by_prompt = {record["prompt"]: record for record in done}
        return [by_prompt[prompt] for prompt in prompts]

    def _full(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """Of one batch, which is filled up."""
        numbers = (str(n) for n in count(1) if str(n) not in prompts)
        filled = [*prompts, *islice(numbers, self.plan.batch - len(prompts))]
        images = measure(self.pipe, filled, self.plan)
        records = []
        for i, prompt in enumerate(prompts):
            scores = {name: float(x[i].mean()) for name, x in images.items()}
            score, known = rounded(self.plan.score(scores)), self.plan.calibration
            records.append({
                "prompt": prompt, "score": score,
                "memorized": score >= known.threshold if known else None,
                "scores": {name: rounded(x) for name, x in scores.items()},
                "images": {name: [rounded(v) for v in x[i].tolist()] for name, x in images.items()},
            })  # fmt: skip
        return records


def rounded(x: float) -> float:
    """Six digits: what is beyond is noise of the processor."""
    return float(f"{x:.6g}")
