"""Captions and layouts: how the embedded world says things and where it puts them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from unleak.world.vocabulary import Placement, Polyseme, Scene, World

#: connective -> where the first item stands; "side": left or right by chance
CONNECTIVES = {
    "and": "left",
    "with": "left",
    "next to": "side",
    "beside": "side",
    "left of": "left",
    "right of": "right",
    "above": "above",
    "below": "below",
}
OPEN_ORDER = tuple(c for c, side in CONNECTIVES.items() if side == "side")  #: they do not say which item stands where
SPAN = 4  # a sprite covers SPAN x SPAN cells
ROOM = 5  # so its corner has ROOM places along each axis
ANY = "?"  #: the glyph of a thing that may be any object


@dataclass(frozen=True)
class Thing:
    """One item of a caption: its words and what they mean there.

    `phrase` is the item without article ("blue car"), `word` its bare word or unambiguous name.
    """

    phrase: str
    word: str
    glyph: str
    tint: str | None = None

    def article(self, world: World) -> str:
        """The phrase with its article, as a caption says it."""
        default = "an" if self.phrase[0].lower() in "aeiou" else "a"
        article = world.articles.get(self.word, world.articles.get(self.word.split()[-1], default))
        return f"{article} {self.phrase}".strip()


def thing(world: World, word: str, tint: str | None = None) -> Thing:
    """The item that `word` names on its own: a noun, expression, polyseme (default sense) or sense name.

    Raises KeyError for a word that the world does not have.
    """
    phrase = f"{tint} {word}" if tint else word
    if word == world.anything:
        return Thing(phrase, word, ANY, tint)
    if word in world.polysemes:
        return Thing(phrase, word, world.polysemes[word].default, tint)
    if word in world.nouns:
        return Thing(phrase, word, world.nouns[word], tint)
    for p in world.polysemes.values():
        if word == p.default_name:
            return Thing(phrase, word, p.default, tint)
        if word == p.other_name:
            return Thing(phrase, word, p.other, tint)
    raise KeyError(word)


def resolve(world: World, things: list[Thing]) -> list[Thing]:
    """Give every bare polyseme the sense that its context triggers."""
    words = {t.word for t in things}

    def sense(t: Thing) -> Thing:
        p: Polyseme | None = world.polysemes.get(t.word)
        return replace(t, glyph=p.other) if p and words & set(p.triggers) else t

    return [sense(t) for t in things]


def caption(world: World, things: list[Thing], connective: str = "and", background: str | None = None) -> str:
    """`a mouse and a blue car on a red background`; three items are joined with a comma and `and`."""
    parts = [t.article(world) for t in things]
    if len(parts) == 2:
        text = f"{parts[0]} {connective} {parts[1]}"
    else:
        text = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    return text + (f" on a {background} background" if background else "")


def connective(text: str) -> str:
    """The connective between the two items of a caption; "" where it has none."""
    return next((c for c in CONNECTIVES if f" {c} " in text), "")


def clarified(text: str, name: str) -> str:
    """The caption with a sense named only after everything else: "a mouse and a laptop (furry mouse)".

    A causal encoder has then written the word's own row, and those of its context, without knowing it: only the rows
    from there on (end and pads) say which sense is meant.
    """
    return f"{text} ({name})"


def place(n: int, connective: str, rng: random.Random) -> list[tuple[int, int]]:
    """Corners (x, y) in cells for `n` items, in caption order, without overlap."""
    free = lambda: rng.randrange(ROOM)  # noqa: E731
    if n == 1:
        return [(free(), free())]
    if n > 2:  # three or four of the quadrants in reading order
        quadrants = [(0, 0), (SPAN, 0), (0, SPAN), (SPAN, SPAN)]
        if n == 3:
            quadrants.pop(rng.randrange(4))
        return quadrants
    side = CONNECTIVES[connective]
    if side == "side":
        side = rng.choice(("left", "right"))
    if side in ("left", "right"):
        ends = [(0, free()), (SPAN, free())]
    else:
        ends = [(free(), 0), (free(), SPAN)]
    return ends if side in ("left", "above") else ends[::-1]


def scene(world: World, things: list[Thing], connective: str, background: str | None, rng: random.Random) -> Scene:
    """A scene that the caption describes; what the caption leaves open is drawn from `rng`."""
    corners = place(len(things), connective, rng)
    bg = background or rng.choice(list(world.backgrounds))

    def draw(t: Thing, x: int, y: int) -> Placement:
        glyph = rng.choice(list(world.nouns.values())) if t.glyph == ANY else t.glyph
        return Placement(glyph, x, y, t.tint or (rng.choice(world.tints) if glyph in world.tintable else None))

    return Scene(bg, tuple(draw(t, x, y) for t, (x, y) in zip(things, corners, strict=True)))
