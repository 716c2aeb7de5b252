"""`unleak bench regions --suite ale-bench`: the published benchmark of ALE (arXiv 2412.04715) on a model of yours.

3,000 cases: 20 pictures x 3 counts of edits x 5 types x 10 prompts. The folder `data` is the authors' own layout:
`images/IMAGE.jpg`, `masks/IMAGE/OBJECT_mask.png`, `prompts/COUNT/TYPE/IMAGE_prompts.json`; what is drawn is written in
theirs, `METHOD/COUNT/TYPE/IMAGE/edit_I.png` with a `prompt.json`. The masks there are for measuring. What the methods
are given is said in the results.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unleak import models
from unleak.bench.regions.edit_each import EVERY_PRESET, EXACT, all_options, edit_each, settings
from unleak.bench.results import Results
from unleak.bench.rows import Row, mean
from unleak.bench.run import Run
from unleak.errors import BadInput, BrokenFile, choose
from unleak.files import pictures
from unleak.files.atomic import write_atomic
from unleak.metrics import background
from unleak.metrics.leakage import Score, leakage
from unleak.metrics.structure import Features, structure_distance
from unleak.regions.plan import Edit
from unleak.report.pictures import png
from unleak.saved import Saved, parse_json, read_document

SIDE = 1000  #: pixels at which results are measured
TOGETHER = 8  #: pictures that are drawn, and kept, together
TYPES = {
    "color": "colour", "material": "material", "object": "object", "color+object": "colour+object",
    "object+material": "object+material",
}  # fmt: skip
METRICS = ("tels_released", "tils", "structure_distance", "performance", "psnr", "lpips", "mse", "ssim")
#: table 7.1 of the paper, in the order of `METRICS`; its masks are those of Grounding DINO and SAM
PUBLISHED = {
    "P2P": (21.52, 17.26, 0.1514, 20.67, 11.15, 0.4495, 0.0879, 0.5589),
    "MasaCtrl": (20.18, 16.74, 0.0929, 20.01, 14.99, 0.2930, 0.0418, 0.7346),
    "FPE": (21.07, 17.38, 0.1164, 21.89, 12.82, 0.3903, 0.0656, 0.6052),
    "InfEdit": (19.59, 16.69, 0.0484, 21.78, 16.74, 0.2034, 0.0340, 0.7709),
    "ALE": (16.03, 15.28, 0.0167, 22.20, 30.04, 0.0361, 0.0014, 0.9228),
}


@dataclass(frozen=True)
class AleCase:
    """One prompt of the benchmark; `edits` are (source, target) phrases."""

    count: int
    type: str
    image: str
    index: int
    edits: tuple[tuple[str, str], ...]

    @property
    def folder(self) -> Path:
        """Where its results lie."""
        return Path(str(self.count), self.type, self.image)


@dataclass(frozen=True)
class Extractors:
    """What the metrics see through; those that are not given are not measured."""

    clip: Score | None = None
    dino: Features | None = None
    lpips: Callable[[np.ndarray, np.ndarray], float] | None = None


def cases(data: Path, limit: int | None = None) -> list[AleCase]:
    """All cases, or the first `limit` of every count and type. Raises BadInput: not that layout."""
    every: list[AleCase] = []
    for count in (1, 2, 3):
        for kind in TYPES:
            folder = data / "prompts" / str(count) / kind
            cell = [case for file in sorted(folder.glob("*_prompts.json")) for case in _read(file, count, kind)]
            every += cell[:limit]
    if not every:
        raise BadInput(f"{data} holds no prompts/COUNT/TYPE/IMAGE_prompts.json: give the folder of ALE-Bench")
    return every


def check(data: Path, methods: Sequence[str] | None) -> None:
    """Refuse a folder that is not ALE-Bench, or a method that does not exist. Raises BadInput."""
    cases(data, 1)
    for name in methods or ():
        choose("editing preset", name, EVERY_PRESET)


def _read(file: Path, count: int, kind: str) -> list[AleCase]:
    try:
        data = parse_json(read_document(file))
        prompts = [
            AleCase(count, kind, Path(data["image"]).name, int(p["index"]), tuple((s, t) for s, t in p["edits"]))
            for p in data["prompts"]
        ]
    except (BrokenFile, ValueError, KeyError, TypeError) as e:
        raise BadInput(f"{file} is no file of prompts of ALE-Bench: {type(e).__name__}: {e}") from e
    return prompts


def soft_masks(data: Path, case: AleCase) -> np.ndarray:
    """The shipped masks of the case's sources, [K, 1000, 1000] of 0..1. Raises BadInput: one is missing."""
    masks = []
    for source, _ in case.edits:
        file = data / "masks" / case.image / f"{source}_mask.png"
        if not file.is_file():
            raise BadInput(f"there is no mask {file}")
        plane = Image.fromarray(pictures.levels(file)).resize((SIDE, SIDE))
        masks.append(np.asarray(plane, np.float64) / 255.0)
    return np.stack(masks)


def drawn(
    run: Run, data: Path, some: Sequence[AleCase], method: str, masks: str
) -> Iterator[tuple[AleCase, np.ndarray | None]]:
    """Edited pictures [1000, 1000, 3] of cases of one folder, from their files if those were made alike.

    None where no mask was found. The others are drawn together, as many in a call as `unleak.edit` takes.
    """
    folder = run.out / method / some[0].folder
    about = folder / "prompt.json"
    name, chosen = all_options(run, EVERY_PRESET[method], TYPES[some[0].type])
    made_with = {
        "model": run.model, "weights": run.weights, "preset": name, "options": settings((name, chosen)),
        "masks": masks, "seed": run.seeds[0],
    }  # fmt: skip
    files = [folder / f"edit_{case.index}.png" for case in some]
    prompts = _written(run, about, made_with)
    todo = [i for i, case in enumerate(some) if str(case.index) not in prompts or _picture(run, files[i]) is None]
    for chunk in (todo[i : i + TOGETHER] for i in range(0, len(todo), TOGETHER)):
        few = [some[i] for i in chunk]
        edits = [_edits(data, case, masks) for case in few]
        images = [data / "images" / f"{case.image}.jpg" for case in few]
        nothing = [None] * len(few)
        results = edit_each(run.pipe, images, edits, nothing, masks, preset=name, seed=run.seeds[0],
                            call=models.settings(run.model), **chosen)  # fmt: skip
        for i, case, result in zip(chunk, few, results, strict=True):
            prompts.pop(str(case.index), None)
            if result is not None:
                large = Image.fromarray(result.image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                write_atomic(files[i], png(large))
                prompts[str(case.index)] = {"edits": case.edits}
        write_atomic(about, json.dumps({"made_with": made_with, "prompts": prompts}, indent=1) + "\n")
    for case, file in zip(some, files, strict=True):
        if str(case.index) not in prompts:
            yield case, None
            continue
        yield case, _picture(run, file)


def _picture(run: Run, file: Path) -> np.ndarray | None:
    """An edited picture [1000, 1000, 3]; None where there is none, or it is damaged, which is noted."""
    if not file.is_file():
        return None
    try:
        return np.asarray(pictures.photo(file))
    except BadInput as e:
        run.notes.append(f"the picture {file.name} was damaged and is drawn again ({e})")
        return None


def _edits(data: Path, case: AleCase, masks: str) -> list[Edit]:
    """What is to become of a case's objects, with their own masks or without."""
    planes = soft_masks(data, case) if masks == EXACT else [None] * case.count
    return [Edit(source, target, mask) for (source, target), mask in zip(case.edits, planes, strict=True)]


@dataclass(frozen=True)
class EditedFolder:
    """What `prompt.json` says of a folder: the settings of its pictures, and their edits by index."""

    made_with: dict[str, Any]
    prompts: dict[str, Any]


FILE = Saved("prompt.json of edited pictures", EditedFolder, "its pictures are drawn again")


def _written(run: Run, about: Path, made_with: dict[str, Any]) -> dict[str, Any]:
    """The prompts that this folder holds already, if they were drawn with the same settings."""
    if not about.exists():
        return {}
    try:
        saved = FILE.load(about)
    except BrokenFile as e:
        run.notes.append(str(e))
        return {}
    return saved.prompts if saved.made_with == json.loads(json.dumps(made_with)) else {}


def measured(
    image: np.ndarray, source: np.ndarray, masks: np.ndarray, case: AleCase, see: Extractors
) -> dict[str, float]:
    """Every metric of one edited picture; nan where it is not defined."""
    metrics = {name: getattr(background, name)(image, source, masks, "all") for name in ("psnr", "mse", "ssim")}
    if see.lpips is not None:
        metrics["lpips"] = background.lpips(image, source, masks, see.lpips)
    if see.clip is not None:
        metrics |= leakage(image, masks, [target for _, target in case.edits], see.clip)._asdict()
    if see.dino is not None:
        metrics["structure_distance"] = structure_distance(image, source, see.dino)
    return metrics


def run(
    pipe: Any,
    out: Path,
    *,
    data: Path,
    model: str,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    methods: Sequence[str] | None = None,
    call: dict[str, Any] | None = None,
    masks: str = "own",
    see: Extractors | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """Draw and measure the chosen methods (default: `ale`), beside the unedited source; what was drawn is reused."""
    see = see or Extractors()
    one = Run(pipe, out, model, "test", list(seeds), limit, dict(call or {}), progress)
    check(data, methods)
    chosen, todo = list(methods or ["ale"]), cases(data, limit)
    results = Results("ale-bench", model, one.seeds, "test", {"name": "none"}, notes=[f"masks: {masks}"])
    for method in ("source", *chosen):
        tick, values, lost = one.ticking(method, len(todo)), list[tuple[AleCase, dict[str, float]]](), 0
        for _, group in groupby(todo, lambda case: case.folder):
            some = list(group)
            source = _source(data, some[0])
            images: Iterable[tuple[AleCase, np.ndarray | None]]
            images = [(case, source) for case in some] if method == "source" else drawn(one, data, some, method, masks)
            for case, image in images:
                if image is None:
                    lost += 1
                else:
                    values.append((case, measured(image, source, soft_masks(data, case), case, see)))
                tick(1)
        if lost:
            results.notes.append(f"{method}: {lost} of {len(todo)} cases have no mask and are left out")
        results.rows += rows_of(method, values)
    results.notes.append(comparison(results.rows))
    results.save(out)
    return results


def _source(data: Path, case: AleCase) -> np.ndarray:
    file = data / "images" / f"{case.image}.jpg"
    return np.asarray(pictures.photo(file).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def rows_of(method: str, values: Sequence[tuple[AleCase, dict[str, float]]]) -> list[Row]:
    """Means over all cases, by count and by type, of what is defined and finite."""
    subsets: dict[str, Callable[[AleCase], bool]] = {
        "all": lambda case: True,
        **{f"{k} edited": lambda case, k=k: case.count == k for k in (1, 2, 3)},  # type: ignore[misc]
        **{kind: lambda case, kind=kind: case.type == kind for kind in TYPES},  # type: ignore[misc]
    }
    rows = []
    for subset, belongs in subsets.items():
        for name in ("tels", *METRICS):
            some = [v[name] for case, v in values if belongs(case) and math.isfinite(v.get(name, math.nan))]
            if some:
                rows.append(mean(some, method, subset, name))
    return rows


def comparison(rows: Sequence[Row]) -> str:
    """Ours beside the published table, as markdown."""
    ours: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.subset == "all":
            ours.setdefault(row.method, {})[row.metric] = row.value
    lines = [f"| method | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    for method, means in ours.items():
        cells = (f"{means[name]:.4g}" if name in means else "-" for name in METRICS)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    for method, figures in PUBLISHED.items():
        lines.append(f"| {method}, published (arXiv 2412.04715) | {' | '.join(f'{v:g}' for v in figures)} |")
    return "\n".join(lines)
