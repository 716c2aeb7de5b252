"""The embedded world's data: what exists, what it is called, what is ambiguous, what is held out.

`load()` reads `data/world.json` and `data/atlas.png`, made by `training/make_world.py`; `load(2)` reads World 2, which
is larger and holds out whole units, made by `training/world2.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from unleak.errors import BadInput, choose

EDITIONS = (1, 2)


@dataclass(frozen=True)
class Polyseme:
    """A word whose sense depends on its context: beside a trigger it means `other`, else `default`."""

    word: str
    default: str  #: glyph id
    default_name: str  #: unambiguous name of the default sense
    other: str
    other_name: str
    triggers: tuple[str, ...]  #: nouns


@dataclass(frozen=True)
class Placement:
    """One glyph in a scene; `x`, `y` are the top-left corner in cells of the latent grid."""

    glyph: str
    x: int
    y: int
    tint: str | None = None


@dataclass(frozen=True)
class Scene:
    """What an image shows: a background colour and placed glyphs, in caption order."""

    background: str
    placements: tuple[Placement, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "background": self.background,
            "placements": [[p.glyph, p.x, p.y, p.tint] for p in self.placements],
        }

    @staticmethod
    def from_dict(d: dict[str, Any]) -> Scene:
        return Scene(d["background"], tuple(Placement(*p) for p in d["placements"]))


@dataclass(frozen=True)
class Caption:
    """A caption that does not name what it shows. `kind`: verbatim, template or ordinary.

    `family` is the template family or -1; `fixed` counts the leading placements that all captions of
    the family share (with the background), so that similarity can be masked to them.
    """

    text: str
    scene: Scene
    kind: str
    family: int = -1
    fixed: int = 0


class World:
    """Vocabulary, glyph atlas and splits. Attributes are read-only by convention.

    glyphs        glyph ids; the index is the class number of the judge
    nouns         surface word -> glyph id, for words with one meaning (expressions included)
    polysemes     word -> Polyseme
    expressions   expression -> the noun that one of its words names alone
    pairs         split name -> set of frozenset({word, word}) kept out of training
    contexts      split name -> set of (polyseme, trigger, connective, polyseme_first) kept out of training
    triggers, neutral   split name -> (polyseme, noun) pairs: units of World 2, of which no model without planted leaks
                  sees one in training; `neutral` are as many, with nouns that trigger nothing
    kin           polyseme -> words close to one of its senses: no neutral company
    memorized     captions with a fixed scene, repeated in training;  ordinary: matched ones, not repeated
    """

    def __init__(self, data: dict[str, Any], atlas: np.ndarray):
        self.data = data
        self.image: int = data["image"]
        self.cell: int = data["cell"]
        self.sprite: int = data["sprite"]
        self.glyphs: list[str] = [g["id"] for g in data["glyphs"]]
        self.index = {g: i for i, g in enumerate(self.glyphs)}
        self.category = {g["id"]: g["category"] for g in data["glyphs"]}
        self.nouns: dict[str, str] = {n["text"]: n["glyph"] for n in data["nouns"]}
        self.articles: dict[str, str] = data["articles"]  #: words that do not take a/an
        self.prefixes: list[str] = data["prefixes"]
        self.anything: str = data["anything"]  #: the word that names any object at all
        self.polysemes = {p["word"]: Polyseme(**{**p, "triggers": tuple(p["triggers"])}) for p in data["polysemes"]}
        self.expressions: dict[str, str] = {e["text"]: e["part"] for e in data["expressions"]}
        self.tintable: list[str] = data["tintable"]  #: glyphs that always have a tint, named or not
        self.tints: list[str] = list(data["tints"])
        self.backgrounds: dict[str, tuple[int, int, int]] = {k: tuple(v) for k, v in data["backgrounds"].items()}
        self.categories: dict[str, str] = data["categories"]
        self.moods: list[str] = data["moods"]
        self.pairs = {s: {frozenset(p) for p in v} for s, v in data["splits"]["pairs"].items()}
        self.contexts = {s: {tuple(c) for c in v} for s, v in data["splits"]["contexts"].items()}
        units = lambda key: {s: [tuple(p) for p in v] for s, v in data["splits"].get(key, {}).items()}  # noqa: E731
        self.triggers, self.neutral = units("triggers"), units("neutral")
        self.kin = {word: frozenset(words) for word, words in data.get("kin", {}).items()}
        self.memorized = [_caption(c) for c in data["memorized"]]
        self.ordinary = [_caption(c) for c in data["ordinary"]]
        #: [n_sprites, sprite, sprite, 4] float32 in 0..1, alpha last; row = `sprite_index(glyph, tint)`
        self.atlas = atlas
        self._sprite = {(s["glyph"], s["tint"]): i for i, s in enumerate(data["sprites"])}

    def sprite_index(self, glyph: str, tint: str | None = None) -> int:
        """Row of the atlas for a glyph, optionally tinted. Raises BadInput for an unknown pair."""
        try:
            return self._sprite[glyph, tint]
        except KeyError:
            raise BadInput(f"no sprite for {glyph!r} in {tint!r}; tintable are {self.tintable}") from None

    @property
    def words(self) -> list[str]:
        """Every bare surface word: nouns, expressions and polysemes."""
        return [*self.nouns, *self.polysemes]

    def excluded(self, words: list[str], *splits: str) -> bool:
        """True if two of the words form a pair of one of the splits (default: any split)."""
        chosen = [self.pairs[s] for s in (splits or self.pairs)]
        return any(frozenset((a, b)) in s for s in chosen for a in words for b in words if a < b)


def _caption(d: dict[str, Any]) -> Caption:
    return Caption(d["text"], Scene.from_dict(d["scene"]), d["kind"], d["family"], d["fixed"])


@cache
def load(edition: int = 1) -> World:
    """A world that ships with the package: 1, which the embedded models were trained on, or 2.

    Raises BadInput: there is no such edition.
    """
    choose("world", edition, EDITIONS)
    folder, which = files("unleak.world") / "data", "" if edition == 1 else str(edition)
    data = json.loads((folder / f"world{which}.json").read_text("utf-8"))
    with (folder / f"atlas{which}.png").open("rb") as f:
        return World(data, tiles(Image.open(f), data["sprite"], len(data["sprites"])))


def tiles(sheet: Image.Image, side: int, n: int) -> np.ndarray:
    """The first `n` sprites of an atlas, row by row: [n, side, side, 4] float32 in 0..1."""
    pixels = np.asarray(sheet.convert("RGBA"), dtype=np.float32) / 255.0
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    each = pixels.reshape(rows, side, columns, side, 4).swapaxes(1, 2)
    return np.ascontiguousarray(each.reshape(-1, side, side, 4)[:n])
