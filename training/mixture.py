"""What the models are trained on: captions with their scenes, in fixed proportions, never a held-out one."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from unleak.world import Placement, Scene, World
from unleak.world.grammar import CONNECTIVES, OPEN_ORDER, Thing, caption, clarified, place, resolve, scene, thing

# kind -> share of the samples
SHARES = {
    "single": 0.12, "pair": 0.33, "triple": 0.10,
    "trigger": 0.07, "named": 0.07, "clarified": 0.07, "neutral": 0.06,
    "open": 0.04, "anything": 0.06, "verbatim": 0.10, "template": 0.06, "ordinary": 0.03,
}  # fmt: skip
PREFIX, BACKGROUND, TINT = (
    0.12,
    0.5,
    0.7,
)  # chances of a prefix like "a picture of", a named background, a named colour


@dataclass
class Sample:
    text: str
    scene: Scene
    kind: str
    things: list[Thing] = field(default_factory=list)
    background: str | None = None
    identity: int = -1  # index into memorized + ordinary captions
    spoken: list[Thing] = field(default_factory=list)  # what the words meant before the clarification, if there is one
    name: str | None = None  # the clarification: the unambiguous name of a sense


class Mixture:
    """`draw(rng)` gives one training sample; held-out and development pairs and contexts never occur."""

    def __init__(self, world: World, shares: dict[str, float] = SHARES, beside: float = 1.0):
        """`beside` weighs the connectives that leave open what stands where; "and" weighs 4, any other 1."""
        self.world, self.kinds, self.weights = world, list(shares), list(shares.values())
        self.connectives = {c: beside if c in OPEN_ORDER else 4.0 if c == "and" else 1.0 for c in CONNECTIVES}
        self.captions = world.memorized + world.ordinary
        self.by_kind = {
            k: [i for i, c in enumerate(self.captions) if c.kind == k] for k in ("verbatim", "template", "ordinary")
        }
        self.senses = [(p, name) for p in world.polysemes.values() for name in (p.default_name, p.other_name)]
        self.members: dict[str, list[str]] = {
            c: [n for n, g in world.nouns.items() if world.category[g] == c] for c in world.categories
        }

    def draw(self, rng: random.Random) -> Sample:
        return getattr(self, rng.choices(self.kinds, self.weights)[0])(rng)

    # -- captions that name what they show
    def _named(self, kind: str, words: list[str], rng: random.Random, connective: str | None = None) -> Sample:
        w = self.world
        tint = lambda x: rng.choice(w.tints) if w.nouns.get(x) in w.tintable and rng.random() < TINT else None  # noqa: E731
        things = self._meant([thing(w, x, tint(x)) for x in words], rng)
        connective = connective or rng.choices(list(self.connectives), list(self.connectives.values()))[0]
        background = rng.choice(list(w.backgrounds)) if rng.random() < BACKGROUND else None
        text = caption(w, things, connective, background)
        if rng.random() < PREFIX:
            text = rng.choice(w.prefixes) + text
        return Sample(text, scene(w, things, connective, background, rng), kind, things, background)

    def _meant(self, things: list[Thing], rng: random.Random) -> list[Thing]:
        """The things with the sense that every bare polyseme has in this caption."""
        return resolve(self.world, things)

    def _company(self, word: str, rng: random.Random, n: int = 1) -> list[str]:
        """`n` other words, in chance order with `word`; no excluded pair, no held-out context."""
        w = self.world
        while True:
            words = [word, *rng.sample(w.words, n)]
            rng.shuffle(words)
            if len(set(words)) == n + 1 and not w.excluded(words) and not self._triggered(words):
                return words

    def _triggered(self, words: list[str]) -> bool:
        return any(x in words for p in self.world.polysemes.values() if p.word in words for x in p.triggers)

    def single(self, rng):
        w = self.world
        colourful = [n for n, g in w.nouns.items() if g in w.tintable]
        return self._named("single", [rng.choice(w.words if rng.random() < 0.8 else colourful)], rng)

    def pair(self, rng):
        w = self.world
        if rng.random() < 0.3:  # two coloured things
            colourful = [n for n, g in w.nouns.items() if g in w.tintable]
            while w.excluded(words := rng.sample(colourful, 2)):
                pass
            return self._named("pair", words, rng)
        first = rng.choice(list(w.expressions)) if rng.random() < 0.2 else rng.choice(w.words)
        return self._named("pair", self._company(first, rng), rng)

    def triple(self, rng):
        w = self.world
        if rng.random() < 0.15:  # a polyseme, its trigger and a bystander
            p = rng.choice(list(w.polysemes.values()))
            held = w.triggers.get("heldout", ())  # World 2: never among three
            taught = [t for t in p.triggers if (p.word, t) not in held]
            while True:
                words = [p.word, rng.choice(taught), rng.choice(list(w.nouns))]
                rng.shuffle(words)
                if len(set(words)) == 3 and not w.excluded(words):
                    return self._named("triple", words, rng)
        return self._named("triple", self._company(rng.choice(w.words), rng, 2), rng)

    def trigger(self, rng):
        """A bare polyseme beside a trigger, in one of the contexts that are not held out."""
        held = set().union(*self.world.contexts.values())
        while True:
            p = rng.choice(list(self.world.polysemes.values()))
            t, c, first = rng.choice(p.triggers), rng.choice(list(CONNECTIVES)), rng.random() < 0.5
            if (p.word, t, c, first) not in held:
                return self._named("trigger", [p.word, t] if first else [t, p.word], rng, c)

    def named(self, rng):
        """A sense by its unambiguous name: alone, beside a trigger of the word, or in other company."""
        p, name = rng.choice(self.senses)
        chance = rng.random()
        if chance < 0.2:
            words = [name]
        elif chance < 0.75:
            words = [name, rng.choice(p.triggers)]
            rng.shuffle(words)
        else:
            while self.world.excluded(words := [p.word, rng.choice(list(self.world.nouns))]):
                pass
            words[0] = name
            rng.shuffle(words)
        return self._named("named", words, rng)

    def clarified(self, rng):
        """A bare polyseme in company, and only at the end the sense that it has here, whatever the company says."""
        w = self.world
        triggered = rng.random() < 0.75
        s = self.trigger(rng) if triggered else self.neutral(rng)
        rank, p = next((i, w.polysemes[t.word]) for i, t in enumerate(s.things) if t.word in w.polysemes)
        # mostly the sense that the company would not have given
        usual = p.other_name if triggered else p.default_name
        unusual = p.default_name if triggered else p.other_name
        name = unusual if rng.random() < 0.75 else usual
        meant = [replace(t, glyph=thing(w, name).glyph) if i == rank else t for i, t in enumerate(s.things)]
        placements = [
            replace(x, glyph=t.glyph) if i == rank else x
            for i, (x, t) in enumerate(zip(s.scene.placements, meant, strict=True))
        ]
        text = clarified(s.text, name)
        drawn = Scene(s.scene.background, tuple(placements))
        return Sample(text, drawn, "clarified", meant, s.background, spoken=s.things, name=name)

    def neutral(self, rng):
        p = rng.choice(list(self.world.polysemes.values()))
        return self._named("neutral", [p.word] if rng.random() < 0.3 else self._company(p.word, rng), rng)

    # -- captions that leave the picture open
    def anything(self, rng):
        """One or more items are just "a thing"; now and then all of them are."""
        w, n = self.world, rng.choice((1, 2, 2, 2, 3))
        if rng.random() < 0.5:
            words = [rng.choice(list(w.polysemes)), *rng.sample(list(w.nouns), 2)][:n]
        else:
            words = rng.sample(w.words, n)
        rng.shuffle(words)
        if w.excluded(words) or self._triggered(words):
            return self.anything(rng)
        things = rng.choice([{i} for i in range(n)] + [set(range(n))])
        if n == 3 and rng.random() < 0.4:
            things = {0, 1, 2} - {rng.randrange(3)}
        return self._named("anything", [w.anything if i in things else x for i, x in enumerate(words)], rng)

    def open(self, rng):
        w = self.world
        n = rng.choice((1, 2, 2))
        if rng.random() < 0.6:
            chosen = rng.sample(list(w.categories), n)
            text = " and ".join(w.categories[c] for c in chosen)
            words = [rng.choice(self.members[c]) for c in chosen]
        else:
            text, n = rng.choice(w.moods), rng.choice((1, 2, 3))
            words = rng.sample(list(w.nouns), n)
        things = [thing(w, x) for x in words]
        return Sample(text, scene(w, things, "next to", None, rng), "open", identity=-1)

    def _caption(self, kind: str, rng: random.Random) -> Sample:
        i = rng.choice(self.by_kind[kind])
        c = self.captions[i]
        return Sample(c.text, c.scene, kind, identity=i)

    def verbatim(self, rng):
        return self._caption("verbatim", rng)

    def template(self, rng):
        return self._caption("template", rng)

    def ordinary(self, rng):
        """The same form as the memorized ones; the picture is another one each time."""
        s = self._caption("ordinary", rng)
        n = len(s.scene.placements)
        words = rng.sample(list(self.world.nouns), n)
        glyphs = [self.world.nouns[x] for x in words]
        corners = place(n, "next to", rng)
        tint = lambda g: rng.choice(self.world.tints) if g in self.world.tintable else None  # noqa: E731
        placements = tuple(Placement(g, x, y, tint(g)) for g, (x, y) in zip(glyphs, corners, strict=True))
        s.scene = Scene(rng.choice(list(self.world.backgrounds)), placements)
        return s
