"""Predict from a row alone that its token is redundant, so that nothing has to be drawn.

Source: Follow the Flow (arXiv 2504.01137): a k-NN (v1) and one linear layer (v3) on the token's embedding. Here:
cosine k-NN and logistic regression on the L2-normalised row ``H_i / |H_i|`` and its cosine with the row of the item's
last token, where a causal encoder gathers the item: a row like that one carries it, too, whatever the item is. Folds
share no item, and the threshold puts precision first: dropping a representative token destroys its item, keeping a
redundant one does no harm. `unleak.words.tokens.redundancy` makes the labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from unleak.core.anatomy import Anatomy
from unleak.errors import BrokenFile, WrongEncoder
from unleak.saved import Name, Rule, Saved, length, parse_json, regular
from unleak.text.encode import weights_digest
from unleak.text.items import Item
from unleak.text.spans import token_span, tokenize
from unleak.text.subsets import Cutter, Subset
from unleak.words.methods.prune import Prune
from unleak.words.tokens.reading import rows_read
from unleak.words.tokens.redundancy import check

SCHEMA = "unleak/redundancy/2"
#: per kind the values of its one setting, k or C, of which validation chooses
KINDS: dict[str, tuple[float, ...]] = {"knn": (1, 5, 11, 21), "linear": (0.01, 0.1, 1, 10, 100)}


def features(pipe: Any, prompts: Sequence[str], items: Sequence[Item], encoder: str, extras: bool = False,
             **call: Any) -> list[np.ndarray]:  # fmt: skip
    """For prompt p and its item, [m, D]: of the item's m tokens ``H_i / |H_i|``, as the denoiser reads them, and
    ``cos(H_i, H_m)``.

    With `extras` six columns more: m, the token's place, whether it is the last, ``|H_i| / |C_i|`` and
    ``cos(H_i, C_i)`` with the pad row C_i of the empty prompt, ``cos(H_i, mean of the item's rows)``; each divided
    by 6, so that together they weigh about as much as the row.
    """
    own = next(c for c in Anatomy.of(pipe).encoders if c.name == encoder)
    texts = list(dict.fromkeys(prompts))
    rows = dict(zip(texts, rows_read(pipe, texts, by_token=True, **call)[encoder].float().cpu(), strict=True))
    C = rows_read(pipe, [""], by_token=True, **call)[encoder][0].float().cpu() if extras else None
    return [_of_item(rows[prompt], C, prompt, item, own) for prompt, item in zip(prompts, items, strict=True)]


def _of_item(H: Tensor, C: Tensor | None, prompt: str, item: Item, own: Cutter) -> np.ndarray:
    tokens = tokenize(own.tokenizer, prompt, len(H), own.name)
    a, b = token_span(own.tokenizer, tokens, item.find(prompt), own.name)
    h = H[a:b].numpy()
    unit = _unit(h)
    read = np.concatenate([unit, unit @ unit[-1:].T], 1)
    if C is None:
        return read
    c = C[a:b].numpy()
    m, places, size = b - a, np.arange(b - a), np.linalg.norm(h, axis=1) / np.linalg.norm(c, axis=1)
    near = (unit * _unit(c)).sum(1), unit @ _unit(h.mean(0, keepdims=True))[0]
    more = np.stack([np.full(m, m), places, places == m - 1, size, *near], 1)
    return np.concatenate([read, more / more.shape[1]], 1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def remove(scores: np.ndarray, threshold: float) -> list[int]:
    """The tokens of one item to remove: scores [m] of redundancy from the threshold on, but never the lowest.

    So an item keeps a token whatever the threshold, and a higher threshold removes a subset of what a lower did.
    """
    keep = int(np.argmin(scores))
    return [i for i, score in enumerate(scores) if score >= threshold and i != keep]


@dataclass(frozen=True)
class Classifier:
    """A trained classifier. Bound to the encoders whose weights it was trained on.

    Attributes:
        kind: "knn" or "linear". setting: its k or C. threshold: scores from it on mean "redundant".
        encoder: whose tokens are judged. encoders: digests of all encoders that its rows come from.
        arrays: of "knn" the training rows [N, D] and labels [N]; of "linear" weight [D] and bias [1].
        extras: whether the features have the six columns more.
        report: precision, recall, accuracy and base rate under cross-validation, sample sizes.
    """

    kind: Annotated[str, Rule("knn or linear", KINDS.__contains__)]
    setting: Annotated[float, Rule("above 0", lambda x: x > 0)]
    threshold: Annotated[float, Rule("between 0 and 2", lambda x: 0 <= x <= 2)]
    encoder: Name
    encoders: Annotated[dict[Name, Name], length(1)]
    arrays: dict[str, np.ndarray]
    extras: bool = False
    report: dict[str, Any] = field(default_factory=dict)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Probability [n] that each of the tokens with features [n, D] is redundant. Raises WrongEncoder: another D."""
        if x.shape[1] != (size := self.arrays["weight" if self.kind == "linear" else "rows"].shape[-1]):
            raise WrongEncoder(f"this classifier reads {size} features of a token, not {x.shape[1]}: train it again")
        if self.kind == "linear":
            return 1 / (1 + np.exp(-(x @ self.arrays["weight"] + self.arrays["bias"][0])))
        return probabilities("knn", self.setting, self.arrays["rows"], self.arrays["labels"].astype(bool), x)

    def prune(self, pipe: Any, prompt: str, items: str | Iterable[str | Item], **call: Any) -> Prune | None:
        """The repair that drops the tokens of the items that are predicted redundant; None if there are none.

        Raises:
            WrongEncoder: the pipeline's encoders are not those that it was trained on.
        """
        named, _ = check(prompt, items)
        if read_by(pipe, prompt, **call) != self.encoders:
            raise WrongEncoder(
                f"this classifier was trained on another {', '.join(self.encoders)} (its weights "
                "differ): train one for yours with `unleak redundancy`."
            )
        of_items = features(pipe, [prompt] * len(named), named, self.encoder, self.extras, **call)
        gone = [
            Subset.token(item, i, self.encoder)
            for item, x in zip(named, of_items, strict=True)
            for i in remove(self.scores(x), self.threshold)
        ]
        return Prune(reduce(or_, gone)) if gone else None

    def to_bytes(self) -> bytes:
        """The classifier as a safetensors file, its settings as JSON in the header."""
        head = {
            n: getattr(self, n) for n in ("kind", "setting", "threshold", "encoder", "encoders", "extras", "report")
        }
        return save(self.arrays, {"schema": SCHEMA, "classifier": json.dumps(head)})

    @staticmethod
    def load(file: str | Path) -> Classifier:
        """Read a classifier. Raises BrokenFile for anything but what `to_bytes` made."""
        try:
            with safe_open(str(regular(file, FILE.what)), framework="numpy") as f:
                meta = f.metadata() or {}
                arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            head = parse_json(meta.get("classifier", "{}"))
            if not isinstance(head, dict):
                raise ValueError("its header holds no JSON object")
        except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as e:
            raise e if isinstance(e, BrokenFile) else FILE.broken(file, e) from e
        return FILE.parse({**head, "schema": meta.get("schema"), "arrays": arrays}, file)


def _check(classifier: Classifier) -> None:
    """Raises ValueError where the parts of a classifier do not fit together."""
    if classifier.encoder not in classifier.encoders:
        raise ValueError(f"the field encoder is {classifier.encoder!r}, of which encoders has no digest")
    arrays, names = classifier.arrays, ("weight", "bias") if classifier.kind == "linear" else ("rows", "labels")
    for name in names:
        if name not in arrays:
            raise ValueError(f"the array {name} is missing")
        if arrays[name].dtype.kind not in "fiub" or not np.isfinite(arrays[name]).all():
            raise ValueError(f"the array {name} holds what are no finite numbers")
    first, second = (arrays[name] for name in names)
    if classifier.kind == "linear" and not (first.ndim == 1 and len(first) > 1 and second.shape == (1,)):
        raise ValueError(f"the arrays weight {first.shape} and bias {second.shape} are not of shapes (D,) and (1,)")
    if classifier.kind == "knn" and not (first.ndim == 2 and first.size and second.shape == first.shape[:1]):
        raise ValueError(f"the arrays rows {first.shape} and labels {second.shape} are not of shapes (N, D) and (N,)")
    if classifier.kind == "knn" and not 1 <= classifier.setting <= len(first):
        raise ValueError(f"the field setting is {classifier.setting:g}, not one of 1 to {len(first)} neighbours")


FILE = Saved("classifier of redundant tokens", Classifier, "train it again with `unleak redundancy`", SCHEMA, _check)


def read_by(pipe: Any, prompt: str, **call: Any) -> dict[str, str]:
    """Digests of the weights of the encoders whose rows the denoiser reads, by name."""
    names = rows_read(pipe, [prompt], **call)
    return {e.name: weights_digest(e.module) for e in Anatomy.of(pipe).encoders if e.name in names}


def probabilities(kind: str, setting: float, X: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Probabilities [n] of "redundant" after learning X, y."""
    from sklearn.linear_model import LogisticRegression  # with pandas, which it loads, a second of start-up
    from sklearn.neighbors import KNeighborsClassifier

    if y.all() or not y.any():
        return np.full(len(x), float(y[0]))
    fit: Any = (
        KNeighborsClassifier(min(int(setting), len(y)), metric="cosine")
        if kind == "knn"
        else LogisticRegression(C=setting, max_iter=1000)
    )
    return fit.fit(X, y).predict_proba(x)[:, 1]
