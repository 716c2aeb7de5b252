"""Generate images for many prompts and seeds through the user's own pipeline.

Image `j` of a prompt always comes from a CPU generator seeded with `seeds[j]`, whatever the batch, so that an
image with and without an intervention starts from the same noise.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import torch

from unleak.core.intervention import Intervention
from unleak.drawing.first_steps import first_steps
from unleak.engine.run import Run
from unleak.errors import BadInput, NotFinite, PromptTruncated, UnleakError, UnsupportedModel
from unleak.text.blocks import call_arguments
from unleak.text.prompt import check_prompt, each_prompt

MOST_SEEDS = 10_000
MOST_SEED = 2**63  #: every seed is below it


Seeds: TypeAlias = int | str | Iterable[int]
"""Seeds as every verb takes them: a number n for 0 to n-1, any numbers, or text as `parse_seeds` reads it."""


def parse_seeds(seeds: Seeds) -> list[int]:
    """The seeds one by one.

    >>> parse_seeds(3), parse_seeds([7, 9]), parse_seeds("7"), parse_seeds("0:4"), parse_seeds("1,5,7")
    ([0, 1, 2], [7, 9], [7], [0, 1, 2, 3], [1, 5, 7])

    Raises BadInput: unreadable text, no seed or more than `MOST_SEEDS`, a negative one, or one twice.
    """
    try:
        if isinstance(seeds, str):
            first, colon, end = seeds.partition(":")
            given: Any = range(int(first), int(end)) if colon else map(int, seeds.split(","))
        else:
            given = range(seeds) if type(seeds) is int else seeds
        numbers = [operator.index(x) for x in islice(given, MOST_SEEDS + 1)]
    except (ValueError, TypeError):
        raise BadInput(f"cannot read seeds {_shown(seeds)}: give 0:4 or 1,5,9 as text, a list, or how many") from None
    if not 1 <= len(numbers) <= MOST_SEEDS or min(numbers) < 0 or max(numbers) >= MOST_SEED:
        count = len(numbers) if len(numbers) <= MOST_SEEDS else f"more than {MOST_SEEDS}"
        raise BadInput(f"seeds {_shown(seeds)} give {count} seeds; give 1 to {MOST_SEEDS} of 0 or more, below 2**63")
    if len(set(numbers)) < len(numbers):
        raise BadInput(f"seeds {_shown(seeds)} name a seed twice, which draws the same image again")
    return numbers


def check_seed(seed: int, below: int = MOST_SEED) -> int:
    """One seed. Raises BadInput: it is no whole number, or not one of 0 or more and below 2**63, or `below`."""
    if isinstance(seed, bool) or not isinstance(seed, SupportsIndex) or not 0 <= seed.__index__() < below:
        raise BadInput(f"seed {_shown(seed)}: give a whole number of 0 or more, below 2**{below.bit_length() - 1}")
    return seed.__index__()


def _shown(seeds: object) -> str:
    try:
        text = repr(seeds)
    except ValueError:  # Python writes no number of more than 4,300 digits
        text = "of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def written_seeds(seeds: Sequence[int]) -> str:
    """Seeds as the text that `parse_seeds` reads.

    >>> written_seeds([0, 1, 2, 3]), written_seeds([1, 5, 7]), written_seeds([7])
    ('0:4', '1,5,7', '7')
    """
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 1 and list(seeds) == list(range(first, last + 1)):
        return f"{first}:{last + 1}"
    return ",".join(map(str, seeds))


def check_call(call: Mapping[str, Any]) -> None:
    """Refuse pipeline arguments that no pipeline can follow. Raises BadInput."""
    for name, value in call.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{name} is {value}: give a finite number")
    if (call.get("height") is None) != (call.get("width") is None):
        raise BadInput("only one of height and width is given, and some pipelines then ignore it: give both")


def image_size(pipe: Any, call: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in pixels of what the call draws; None where the pipeline does not tell its default."""
    if call.get("height") is not None:
        return call["height"], call["width"]
    parts = (getattr(pipe, name, None) for name in ("unet", "transformer"))
    cells = getattr(pipe, "default_sample_size", None) or next(
        (part.config.get("sample_size") for part in parts if part is not None), None
    )
    height, width = cells if isinstance(cells, list | tuple) else (cells, cells)
    scale = getattr(pipe, "vae_scale_factor", None)
    return (height * scale, width * scale) if height and width and scale else None


def images_at_once(pipe: Any, call: Mapping[str, Any]) -> int:
    """How many images share a batch by default: about one megapixel, at most 32."""
    return min(32, max(1, 2**20 // math.prod(image_size(pipe, call) or (1024, 1024))))


def for_each(call: Mapping[str, Any], prompts: int) -> dict[str, Any]:
    """The call with one negative prompt for every prompt: some pipelines do not repeat it themselves."""
    return {k: [v] * prompts if k == "negative_prompt" and isinstance(v, str) else v for k, v in call.items()}


@contextmanager
def memory_errors(images: int) -> Iterator[None]:
    """Say what to do where the memory does not suffice for so many images at once. Raises UnleakError."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:  # torch raises RuntimeErrors
        if not (isinstance(e, MemoryError) or "out of memory" in str(e) or "allocate memory" in str(e)):
            raise
        raise UnleakError(f"out of memory for {images} images at once: draw smaller or fewer ones") from e


def rehearse(pipe: Any, prompts: str | Sequence[str], *interventions: Intervention, **call: Any) -> Run:
    """All of a generation that comes before the denoiser, so that nothing is drawn in vain.

    Returns:
        The session, with what the interventions left in its `results`.

    Raises:
        BadInput: the pipeline refuses the arguments, or would draw another size.
        UnsupportedModel: it draws no prompts, or unleak cannot attach to it.
        PromptTruncated: an encoder would drop the end of a prompt or of the negative one; and what the interventions
        raise.
    """
    check_call(call)
    accepts = call_arguments(pipe)
    if not {"prompt", "generator", "output_type"} <= accepts.keys():
        raise UnsupportedModel(f"{type(pipe).__name__} does not draw prompts: give a text-to-image pipeline")
    if unknown := call.keys() - accepts.keys():
        raise BadInput(f"{type(pipe).__name__} takes no {', '.join(sorted(unknown))}: leave it out")
    processor = getattr(pipe, "image_processor", None)
    step = processor.config.get("vae_scale_factor", 1) if processor is not None else 1
    if call.get("height") is not None and (call["height"] % step or call["width"] % step):
        raise BadInput(f"{call['height']}x{call['width']} pixels: this pipeline draws multiples of {step}")
    texts = list(each_prompt(prompts))
    negative = call.get("negative_prompt")
    try:
        generator = torch.Generator("cpu").manual_seed(0)
        if negative:  # a pipeline cuts it without a word
            alone = {name: value for name, value in call.items() if name != "negative_prompt"}
            unwanted = list(each_prompt(negative))
            try:
                first_steps(pipe, 0, prompt=unwanted, generator=generator, **for_each(alone, len(unwanted)))
            except PromptTruncated as e:
                raise PromptTruncated(f"the negative prompt: {e}") from None
            generator.manual_seed(0)
        return first_steps(pipe, 0, *interventions, prompt=texts, generator=generator, **for_each(call, len(texts)))
    except UnleakError:
        raise
    except (ValueError, TypeError) as e:
        raise BadInput(f"{type(pipe).__name__} refuses this call: {e}") from e


def generate(
    pipe: Any,
    prompts: str | Sequence[str],
    seeds: Iterable[int] = range(4),
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
    **call: Any,
) -> np.ndarray:
    """Images [P, S, H, W, 3] uint8 for P prompts and S seeds.

    Prompts share a batch of `batch` images (default: about one megapixel, at most 32 images); `call` goes to
    the pipeline unchanged (steps, guidance, size ...). `progress` is told how many images each call made.
    Raises NotFinite if the pipeline returns NaN, BadInput for arguments that no pipeline can follow.
    """
    texts = list(each_prompt(prompts))
    seeds = list(seeds)
    if not texts or not seeds:
        raise BadInput("nothing to generate: give at least one prompt and one seed")
    for t in texts:
        check_prompt(t)
    check_call(call)
    jobs = [(t, s) for t in texts for s in seeds]
    batch = batch or images_at_once(pipe, call)
    out: list[np.ndarray] = []
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        out.append(draw(pipe, [t for t, _ in part], [s for _, s in part], **call))
        if progress:
            progress(len(part))
    stacked = np.concatenate(out)
    return stacked.reshape(len(texts), len(seeds), *stacked.shape[1:])


def draw(pipe: Any, prompts: list[str], seeds: Sequence[int], **call: Any) -> np.ndarray:
    """One call of the pipeline: an image [N, H, W, 3] uint8 for each prompt, from the noise of its own seed.

    Raises NotFinite for NaN pixels, UnsupportedModel where the pipeline makes no images, UnleakError when memory runs
    out.
    """
    generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
    with memory_errors(len(prompts)), global_noise():
        return images_of(
            pipe, pipe(prompt=prompts, generator=generators, output_type="np", **for_each(call, len(prompts)))
        )


def images_of(pipe: Any, made: Any) -> np.ndarray:
    """The images [N, H, W, 3] uint8 of what a pipeline returned with `output_type="np"`; a video of one frame is one.

    Raises UnsupportedModel: it returned something else, as pipelines of videos do. NotFinite: as `pixels`.
    """
    images = getattr(made, "images", None)
    drawn = np.asarray(made[0] if images is None else images)
    if drawn.ndim == 5 and drawn.shape[1] == 1:
        drawn = drawn[:, 0]
    if drawn.ndim != 4:
        raise UnsupportedModel(
            f"{type(pipe).__name__} returns {', '.join(made.keys())}, not images, and this looks at images: have it "
            "draw one frame, if it can. What attaches to the pipeline (`unleak.attach`) works without it"
        )
    return pixels(drawn)


@contextmanager
def global_noise(seed: int = 0) -> Iterator[None]:
    """Seed torch's global generators, and put them back: some pipelines encode a reference image with them."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def pixels(images: np.ndarray) -> np.ndarray:
    """What a pipeline returns, 0..1, as uint8. Raises NotFinite."""
    if not np.isfinite(images).all():
        raise NotFinite("the pipeline returned NaN pixels; load it in float32 or bfloat16")
    return (np.asarray(images) * 255).round().astype(np.uint8)
