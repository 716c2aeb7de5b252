"""The judge of the embedded world: reads an image back into glyphs, colours, places and background.

A small convolutional detector. It scores every place where a sprite's corner can lie on the latent grid, for
every glyph and for "nothing"; halves, blends and smears of glyphs are trained to be nothing, so that a chimera
does not count as present. Its own error on renders and on autoencoder reconstructions is measured by
`unleak bench world` and printed with every table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor, nn

from unleak.errors import BadInput
from unleak.models.shipped import REMEDY, shipped
from unleak.text.items import Item
from unleak.text.match import Chars, occurrences
from unleak.world import World
from unleak.world import load as load_world
from unleak.world.grammar import Thing, thing


@dataclass(frozen=True)
class Found:
    """One glyph in an image; `x`, `y` is its corner in cells of the latent grid, `score` in 0..1."""

    glyph: str
    tint: str | None
    x: int
    y: int
    score: float


@dataclass(frozen=True)
class Reading:
    """What the judge sees in one image, strongest first."""

    background: str
    found: tuple[Found, ...]

    def count(self, glyph: str, tint: str | None = None) -> int:
        """How often the glyph is there; with `tint`, only in that colour."""
        return sum(f.glyph == glyph and tint in (None, f.tint) for f in self.found)


class GlyphNetwork(nn.Module):
    """[B, 3, 64, 64] in 0..1 -> glyph logits [B, G+1, 5, 5] (0 = nothing), tints [B, T, 5, 5], background [B, N]."""

    def __init__(self, glyphs: int, tints: int, backgrounds: int, width: int = 32):
        super().__init__()
        w = width

        def block(i: int, o: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(True))

        self.trunk = nn.Sequential(
            block(3, w, 1), block(w, w, 2), block(w, 2 * w, 1), block(2 * w, 2 * w, 2),
            block(2 * w, 3 * w, 1), block(3 * w, 3 * w, 2), block(3 * w, 3 * w, 1),
        )  # fmt: skip
        self.window = nn.Sequential(nn.Conv2d(3 * w, 6 * w, 4), nn.BatchNorm2d(6 * w), nn.ReLU(True))
        self.glyph, self.tint = nn.Conv2d(6 * w, glyphs + 1, 1), nn.Conv2d(6 * w, tints, 1)
        self.background = nn.Linear(3 * w, backgrounds)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.trunk(image * 2 - 1)
        at = self.window(h)
        return self.glyph(at), self.tint(at), self.background(h.mean((2, 3)))


def as_tensor(images: Sequence[Image.Image] | Tensor | np.ndarray) -> Tensor:
    """PIL images, an array [B,H,W,3] in 0..255 or 0..1, or a tensor [B,3,H,W] in 0..1 -> float [B,3,H,W]."""
    if isinstance(images, Tensor):
        return images.detach().float().cpu()
    array = np.stack([np.asarray(i.convert("RGB") if isinstance(i, Image.Image) else i) for i in images])
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    return torch.from_numpy(array.astype(np.float32) / scale).permute(0, 3, 1, 2)


class GlyphJudge:
    """Answers what is in an image of the embedded world. `name` identifies it in results."""

    name = "glyphs"

    def __init__(self, world: World, detector: GlyphNetwork, threshold: float = 0.5):
        self.world, self.detector, self.threshold = world, detector.eval(), threshold
        self._backgrounds = list(world.backgrounds)

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image] | Tensor | np.ndarray, batch: int = 128) -> list[Reading]:
        """One `Reading` per image. Raises BadInput unless images have the world's size."""
        x = as_tensor(images)
        size = self.world.image
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise BadInput(f"the glyph judge reads RGB images of {size}x{size}, not {tuple(x.shape[1:])}; resize them")
        return [r for part in x.split(batch) for r in self._read(part)]

    def describe(self, images: Sequence[Image.Image] | Tensor | np.ndarray) -> list[list[str]]:
        """The names of what is in each image, with their colours, in alphabetical order. Errors: `read`."""
        return [sorted(f"{f.tint} {f.glyph}" if f.tint else f.glyph for f in r.found) for r in self.read(images)]

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image] | Tensor | np.ndarray) -> np.ndarray:
        """What the detector makes of each latent cell, [N, 64, D]; for `metrics.structure`."""
        return self.detector.trunk(as_tensor(images) * 2 - 1).flatten(2).transpose(1, 2).numpy()

    @torch.no_grad()
    def score(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """How sure the detector is of what each text names, 0..100, where it is surest; see `metrics.leakage`.

        Images [N, 64, 64, 3] uint8 and T texts -> [N, T]. A text is one thing of the world, or several joined by "and",
        whose mean counts. Raises BadInput: the world has no such thing.
        """
        glyphs, tints, _ = self.detector(as_tensor(images))
        glyph_probs, tint_probs = glyphs.softmax(1), tints.softmax(1)  # [N, G + 1, 5, 5], [N, T, 5, 5]

        def surest(phrase: str) -> Tensor:
            t = self._thing(Item.of(phrase))
            at = glyph_probs[:, 1 + self.world.glyphs.index(t.glyph)]
            return (at if t.tint is None else at * tint_probs[:, self.world.tints.index(t.tint)]).amax((1, 2))

        each = [torch.stack([surest(p) for p in text.split(" and ")]).mean(0) for text in texts]
        return 100 * torch.stack(each, 1).numpy()

    def senses(self, items: Sequence[Item]) -> list[str]:
        """The unambiguous name of what each item is looked for as. See `unleak.judges.Judge`."""
        for item in items:
            self._thing(item)
        names = {word: p.default_name for word, p in self.world.polysemes.items()}
        return [item.sense or names.get(item.text, item.text) for item in items]

    def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
        """Images [N,64,64,3] uint8 -> [N, items] of bool. See `unleak.judges.Judge`."""
        things = [self._thing(i) for i in items]
        return np.array([[r.count(t.glyph, t.tint) > 0 for t in things] for r in self.read(images)], bool)

    def named(self, prompt: str) -> tuple[Item, ...]:
        """The words of the world that a prompt names, each once; the longer one where two overlap."""
        word_at: dict[Chars, str] = {}
        for word in sorted(self.world.words, key=len, reverse=True):
            for a, b in occurrences(prompt, word):
                if all(b <= c or d <= a for c, d in word_at):
                    word_at[a, b] = word
        return tuple(Item.of(word) for word in dict.fromkeys(word_at[at] for at in sorted(word_at)))

    def _thing(self, item: Item) -> Thing:
        """The item as the world knows it: its sense if it has one, else its text; a colour may stand before."""
        text = item.sense or item.text
        tint, _, rest = text.partition(" ")
        coloured = tint in self.world.tints and rest
        try:
            return thing(self.world, rest, tint) if coloured else thing(self.world, text)
        except KeyError:
            near = get_close_matches(text, [*self.world.words], 3)
            hint = f"; did you mean {near}?" if near else ""
            raise BadInput(f"the embedded world has no {text!r}{hint}") from None

    def _read(self, x: Tensor) -> list[Reading]:
        glyphs, tints, backgrounds = self.detector(x)
        score, kind = glyphs.softmax(1).max(1)  # [B, 5, 5]
        colour = tints.argmax(1)
        out = []
        for b in range(len(x)):
            taken = torch.zeros_like(score[b], dtype=torch.bool)
            detections = []
            for at in score[b].flatten().argsort(descending=True).tolist():
                y, cx = divmod(at, score.shape[2])
                k, s = int(kind[b, y, cx]), float(score[b, y, cx])
                if k == 0 or s < self.threshold or taken[y, cx]:
                    continue
                taken[max(0, y - 2) : y + 3, max(0, cx - 2) : cx + 3] = True  # overlaps by more than a half
                g = self.world.glyphs[k - 1]
                tint = self.world.tints[int(colour[b, y, cx])] if g in self.world.tintable else None
                detections.append(Found(g, tint, cx, y, s))
            out.append(Reading(self._backgrounds[int(backgrounds[b].argmax())], tuple(detections)))
        return out


@lru_cache
def glyph_judge(edition: int = 1) -> GlyphJudge:
    """The judge of an edition of the embedded world that ships with the package. Raises BadInput: there is none."""
    world, which = load_world(edition), "" if edition == 1 else str(edition)
    weights = shipped(f"judges/data/glyphs{which}.safetensors")
    if not weights.is_file():
        raise BadInput(f"the judge of the embedded world is not installed: {REMEDY}")
    return judge_of(world, weights.read_bytes())


def judge_of(world: World, weights: bytes) -> GlyphJudge:
    """A judge of a world from the bytes of a safetensors file, as `training/train_judge.py` writes it."""
    detector = GlyphNetwork(len(world.glyphs), len(world.tints), len(world.backgrounds))
    detector.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load(weights).items()})
    return GlyphJudge(world, detector)
