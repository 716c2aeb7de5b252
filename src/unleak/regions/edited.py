"""What an edit gives back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from unleak.core.result import Result
from unleak.regions.masks import masks as masking
from unleak.regions.plan import Edit, EditPlan


@dataclass(frozen=True)
class Check:
    """One edit, as the judge sees the whole image."""

    source_before: bool
    source_after: bool
    target_after: bool


@dataclass(eq=False, repr=False)
class Edited(Result):
    """One edited image, and everything that led to it.

    `image` (after), `before` (the photo) and `rebuilt` (the photo through the autoencoder, which is what an edit can
    keep at best) are [H, W, 3] uint8 at the working size; `masks` bool [K, H, W] as they were used (widened), one for
    each edit; `given` says which of them the user gave, and `masker` who found the others; `latents` and `clean` are
    the final latents of the target and those of the source, [1, C, h, w]; `notes` is what a person should know
    (overlaps, full masks); `log` is that of the call which drew it, with `together` images; `checks` is what `judge`
    saw of each edit, None where nobody looked. Where pixels were kept, `image` is laid into `before`, and `full` is the
    same at the photo's own size, [H', W', 3] uint8; else `full` is None.
    """

    verb: ClassVar[str] = "edit"
    image: np.ndarray
    before: np.ndarray
    rebuilt: np.ndarray
    edits: tuple[Edit, ...]
    plan: EditPlan | None
    masks: Tensor
    given: tuple[bool, ...]
    preset: str
    settings: dict[str, Any]
    seed: int
    notes: list[str] = field(default_factory=list)
    masker: str = "own"
    latents: Tensor | None = field(default=None, repr=False)
    clean: Tensor | None = field(default=None, repr=False)
    log: Any = field(default=None, repr=False)
    together: int = 1
    model: str = ""
    judge: str | None = None
    checks: list[Check] | None = None
    full: np.ndarray | None = field(default=None, repr=False)

    @property
    def regions(self) -> Tensor:
        """The masks made disjoint, bool [K + 1, H, W], the background last."""
        return masking.partition(self.masks, self.settings["overlap"])

    @property
    def leak(self) -> np.ndarray:
        """How much each pixel outside the masks differs from the rebuilt photo, [H, W] in 0..1; 0 inside them.

        Where pixels were kept, from the photo itself.
        """
        reference = self.rebuilt if self.full is None else self.before
        change = np.abs(self.image.astype(np.float64) - reference).mean(-1) / 255
        return np.where(self.masks.any(0).numpy(), 0.0, change)

    def background_psnr(self, reference: np.ndarray) -> float | None:
        """PSNR in dB of the pixels outside all masks against a reference [H, W, 3] uint8; None without any such pixel.

        `rebuilt` as reference leaves out the autoencoder's own loss, `before` includes it. Equal pixels give infinity.
        """
        from skimage.metrics import peak_signal_noise_ratio

        outside = ~self.masks.any(0).numpy()
        if not outside.any():
            return None
        if np.array_equal(self.image[outside], reference[outside]):
            return math.inf
        return float(peak_signal_noise_ratio(reference[outside], self.image[outside], data_range=255))

    @property
    def psnr(self) -> dict[str, float | None]:
        """Background PSNR against the rebuilt photo and against the photo itself."""
        return {"rebuilt": self.background_psnr(self.rebuilt), "photo": self.background_psnr(self.before)}

    def next_steps(self) -> list[str]:
        """What to try where the judge saw that an edit failed; nothing where none did, or nobody looked.

        Each has helped edits of the embedded world that had failed: other noise and more guidance where the target was
        not drawn, another mask where the given one did not fit the object.
        """
        both = list(zip(self.edits, self.given, self.checks or (), strict=self.checks is not None))
        failed = [
            (one, given)
            for one, given, check in both
            if not check.target_after or (check.source_before and check.source_after and one.source != one.target)
        ]
        if not failed:
            return []
        steps = [f"other noise: --seed {self.seed + 1}, --seed {self.seed + 2}, --seed {self.seed + 3}"]
        if "target_guidance" in self.settings:
            steps.append(f"more guidance: --guidance {2 * self.settings['target_guidance']:g}")
        for one, given in failed:
            edit = f'--edit "{one.source}={one.target}'
            if given:
                steps.append(
                    f'another mask: closer around {one.source!r}, or none ({edit}"), so that the model finds it'
                )
            else:
                steps.append(f'a mask of your own that covers {one.source!r}: {edit}@mask.png"')
        return steps

    def lines(self) -> list[str]:
        title = ", ".join(f"{one.source} -> {one.target}" for one in self.edits) or "nothing is edited"
        lines = [title, f"  {self.preset}; {f'judge {self.judge}' if self.judge else 'no judge'}; seed {self.seed}"]
        for i, one in enumerate(self.edits):
            area = f"{100 * float(self.masks[i].float().mean()):.0f} % of the image"
            verdict = "not judged"
            if self.checks is not None:
                verdict = "is there" if self.checks[i].target_after else "is not there"
            lines.append(
                f"  {one.target}: {verdict} ({area}, mask {'given' if self.given[i] else f'by {self.masker}'})"
            )
        reference = "rebuilt photo" if self.full is None else "photo"
        kept = self.psnr[reference.split()[0]]
        background = "no background" if kept is None else "exact" if math.isinf(kept) else f"{kept:.1f} dB"
        lines += [f"  background against the {reference}: {background}", *(f"  note: {n}" for n in self.notes)]
        return lines + [f"  try: {step}" for step in self.next_steps()]

    def file_names(self) -> dict[str, Any]:
        masks = [f"mask-{i + 1}.png" for i in range(len(self.masks))]
        full = {} if self.full is None else {"full": "full.png"}
        return {"before": "before.png", "after": "after.png", **full, "masks": masks}

    def data(self) -> dict[str, Any]:
        height, width = self.image.shape[:2]
        return {
            "model": self.model,
            "preset": self.preset,
            "settings": self.settings,
            "seed": self.seed,
            "keep_pixels": self.full is not None,
            "size": [height, width],
            "source_prompt": self.plan.source if self.plan else None,
            "target_prompt": self.plan.target if self.plan else None,
            "edits": [
                {
                    "source": one.source, "target": one.target, "mask": "given" if given else self.masker,
                    "area": float(mask.float().mean()),
                    "check": None if self.checks is None else vars(self.checks[i]),
                }
                for i, (one, given, mask) in enumerate(zip(self.edits, self.given, self.masks, strict=True))
            ],
            "background_psnr": {name: "inf" if x is not None and math.isinf(x) else x for name, x in self.psnr.items()},
            "notes": self.notes,
            "images": self.file_names(),
            "denoiser_rows": self.log[-1]["denoiser_rows"] // self.together if self.log else 0,
        }  # fmt: skip
