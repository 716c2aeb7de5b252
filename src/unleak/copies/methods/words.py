"""Random words in the prompt: RTA, RNA and CWR of Somepalli et al., CVPR and NeurIPS 2023, and plain repetition.

`times` times a word is put at a random place between the prompt's words, which keep their order. One generator,
seeded by `seed` and the prompt, decides everything.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unleak.core.intervention import Intervention
from unleak.errors import choose

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall

KINDS = ("token", "number", "word")


def with_words(prompt: str, kind: str, times: int, seed: int, tokenizer: Any) -> str:
    """The prompt with `times` more words: a random token of the vocabulary ("token", RTA), a random number
    below 100000 ("number", RNA) or one of the prompt's own words ("word", CWR)."""
    rng = random.Random(f"{seed}/{kind}/{prompt}")
    own, words = prompt.split(" "), prompt.split(" ")
    for _ in range(times):
        if kind == "number":
            word = str(rng.randrange(100_000))
        else:
            word = rng.choice(own) if kind == "word" else _token(tokenizer, rng)
        words.insert(rng.randint(0, len(words)), word)
    return " ".join(words)


def _token(tokenizer: Any, rng: random.Random) -> str:
    """A random entry of the vocabulary that is a visible piece of text."""
    while True:
        token = rng.randrange(len(tokenizer))
        text: str = tokenizer.decode([token]).strip()
        if token not in tokenizer.all_special_ids and text and text.isprintable():
            return text


@dataclass(frozen=True)
class InsertWords(Intervention):
    """Draw the prompt with random words in it; `run.results["prompts"]` has what was drawn instead.

    Attributes:
        kind: "token", "number" or "word", see `with_words`.
        times: how many words are inserted.
        seed: of the choice, beside the prompt.

    Raises:
        PromptTruncated: the longer prompt does not fit an encoder.
    """

    kind: str = "token"
    times: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("kind", self.kind, KINDS)

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        longer: dict[str, str] = ctx.state.setdefault("prompts", {})  # every encoder reads what the first one read
        for prompt in call.prompts:
            longer.setdefault(prompt, with_words(prompt, self.kind, self.times, self.seed, call.tokenizer))
        ctx.results.setdefault("prompts", {}).update(longer)
        return call.rerun([longer[prompt] for prompt in call.prompts]) if self.times else None
