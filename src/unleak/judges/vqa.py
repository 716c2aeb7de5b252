"""A judge that asks: "Is there a furry mouse in the picture?"

The answer is what the model finds likelier, "yes" or "no", in the one step that decides it; a model that would rather
say something else is not taken at its word, so there is always an answer and never a parsed guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unleak.errors import NotFinite, UnsupportedModel
from unleak.judges.asking import batches, check_length, intended_names, with_article
from unleak.text.items import Item

QUESTION = "is there {} in the picture?"
ANSWERS = ("yes", "no")


class VqaJudge:
    """See `unleak.judges.Judge`.

    `model` either generates its answer or chooses it among labels (`config.id2label`).

    Raises UnsupportedModel where neither knows "yes" and "no".
    """

    def __init__(self, model: Any, processor: Any, name: str = "vqa", question: str = QUESTION, batch: int = 8) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self.question, self.batch = question, batch
        self._choices = self._words() if model.can_generate() else self._labels()

    def senses(self, items: Sequence[Item]) -> list[str]:
        names = intended_names(items)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for name in names:
            check_length(self.processor.tokenizer, self._ask(name), self.name, limit)
        return names

    def present(self, images: np.ndarray, items: Sequence[Item]) -> np.ndarray:
        names = self.senses(items)
        answers = [[self._yes(part, self._ask(name)) for part in batches(images, self.batch)] for name in names]
        return np.stack([np.concatenate(parts) for parts in answers], 1)

    def _ask(self, name: str) -> str:
        return self.question.format(with_article(name))

    @torch.no_grad()
    def _yes(self, images: Sequence[Any], question: str) -> np.ndarray:
        """[n] of bool: is "yes" likelier than "no"?"""
        inputs = self.processor(text=[question] * len(images), images=images, return_tensors="pt", padding=True)
        inputs = inputs.to(self.model.device, self.model.dtype)
        logits = self._first_step(inputs) if self.model.can_generate() else self.model(**inputs).logits
        yes, no = (logits[:, choice].float() for choice in self._choices)
        if not torch.isfinite(yes - no).all():
            raise NotFinite(f"{self.name} returned NaN; load it in float32 or bfloat16")
        return (yes > no).cpu().numpy()

    def _first_step(self, inputs: Any) -> Tensor:
        """Logits [n, vocabulary] of the first token of the answer."""
        generated = self.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, num_beams=1, output_logits=True, return_dict_in_generate=True
        )
        return generated.logits[0]

    def _words(self) -> list[int]:
        cut = [self.processor.tokenizer(word, add_special_tokens=False).input_ids for word in ANSWERS]
        unknown = self.processor.tokenizer.unk_token_id
        if not all(cut) or cut[0][0] == cut[1][0] or unknown in (cut[0][0], cut[1][0]):
            raise UnsupportedModel(f"{self.name}'s tokenizer does not tell 'yes' from 'no' by their first token")
        return [ids[0] for ids in cut]

    def _labels(self) -> list[int]:
        labels = {str(label).lower(): int(i) for i, label in self.model.config.id2label.items()}
        if not set(ANSWERS) <= labels.keys():
            raise UnsupportedModel(f"{self.name} has no labels 'yes' and 'no' to answer with")
        return [labels[word] for word in ANSWERS]
