"""One text encoder's call on the positive prompt, and what a generation's prompts became."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unleak.errors import BadInput, NotFinite, PromptTruncated, UnsupportedModel
from unleak.text.encode import no_pad, pad_ids
from unleak.text.rows import Layer, hidden_layers
from unleak.text.spans import Tokens, tokenize
from unleak.text.template import Template, TokenIds
from unleak.text.vectors import expanded


@dataclass(eq=False)
class TextCall:
    """One encoder's call on the positive prompt.

    `ids` is [B, L] with B prompts; `output` is the encoder's model output with whatever hidden states the
    pipeline asked for, already changed by earlier interventions. `encode(ids, mask, overrides)` is the call on other
    ids, with `mask` if it had a mask.

    `template` says what the pipeline gives the encoder for other texts; None: the texts alone. `given` are the tokens
    of the prompts where the pipeline put something around them or changed them.
    """

    name: str
    module: nn.Module
    tokenizer: Any
    prompts: list[str]
    ids: Tensor
    output: Any
    encode: Callable[[Tensor, Tensor | None, dict[str, Any]], Any]
    template: Template | None = None
    given: tuple[TokenIds, ...] | None = None

    @property
    def length(self) -> int:
        """L."""
        return self.ids.shape[1]

    def cut(self, texts: Sequence[str]) -> tuple[Tokens, ...]:
        """Texts as the pipeline gives them to this encoder, template included; `Tokens.lost` is what does not fit.

        Their length is L, or their own where the pipeline pads to the longest text.

        Raises:
            UnsupportedModel: the tokens of a text cannot be traced to its characters.
        """
        if self.given is not None:
            assert self.template is not None
            if list(texts) == self.prompts:
                return tuple(map(self.template.read, texts, self.given))
            return self.template.cut(texts)
        tokens = tuple(tokenize(self.tokenizer, text, self.length, f"{self.name}'s tokenizer") for text in texts)
        if self.template is not None and any(one.lost for one in tokens):
            longer = self.template.inputs(texts)
            if any(len(one.ids) > self.length for one in longer):
                return tuple(map(self.template.read, texts, longer))
        return tokens

    def fitting(self, texts: Sequence[str]) -> tuple[Tokens, ...]:
        """`cut`, of texts that fit.

        Raises:
            PromptTruncated: the encoder would lose a part of a text.
        """
        tokens = self.cut(texts)
        for one in tokens:
            if one.lost:
                lost = one.text[one.lost[0][0] : one.lost[-1][1]].strip()
                raise truncated(self.name, self.tokenizer, one.length, lost, one.length + len(one.lost))
        return tokens

    def check_length(self, texts: Sequence[str]) -> None:
        """Raises PromptTruncated: the encoder would lose a part of a text."""
        self.fitting(texts)

    def neutral(self, pad: str = "empty") -> Tokens:
        """L tokens whose rows say nothing: of ``"empty"`` (and ``"zero"``) the empty text, of ``"allpad"`` pads in the
        place of text and pads, of ``"padtoken"`` the pad token's string; inside the template where there is one.

        Raises:
            BadInput: the tokenizer has no pad token.
        """
        if self.given is None:
            ids, real = pad_ids(self.tokenizer, pad, self.length, self.name)
            return Tokens("", ids, ((0, 0),) * len(ids), (False,) * len(ids), real)
        if pad in ("allpad", "padtoken") and self.tokenizer.pad_token is None:
            raise no_pad(self.name)
        if pad == "allpad":
            own = self.cut(self.prompts)[0]
            pads = [word or not real for word, real in zip(own.words, own.real, strict=True)]
            pad_id = self.tokenizer.pad_token_id
            ids = tuple(pad_id if is_pad else token for token, is_pad in zip(own.ids, pads, strict=True))
            return replace(own, text="", ids=ids, words=(False,) * len(ids), real=(True,) * len(ids), lost=())
        return self.padded(self.cut([self.tokenizer.pad_token if pad == "padtoken" else ""])[0])

    def padded(self, tokens: Tokens) -> Tokens:
        """The tokens with pads to L, on the side where the pipeline has them."""
        n = self.length - tokens.length
        if n <= 0:
            return tokens
        assert self.given is not None
        left = not self.given[0].real[0] or (all(self.given[0].real) and self.tokenizer.padding_side == "left")
        pad = self.tokenizer.pad_token_id

        def fill(values: tuple, value: Any) -> tuple:
            return (value,) * n + values if left else values + (value,) * n

        return replace(
            tokens,
            ids=fill(tokens.ids, tokens.ids[0] if pad is None else pad),
            offsets=fill(tokens.offsets, (0, 0)),
            words=fill(tokens.words, False),
            real=fill(tokens.real, False),
            before=None if tokens.before is None else tokens.before + n * left,
        )

    def encoded(self, tokens: Sequence[Tokens], **overrides: Any) -> Any:
        """The same module call on other tokens; `overrides` replace keyword arguments."""
        ids, mask = stacked(tokens)
        return self.encode(ids.to(self.ids.device), mask.to(self.ids.device), overrides)

    def rerun(self, prompts: str | Sequence[str] | Tensor, **overrides: Any) -> Any:
        """The same module call on other prompts, or ids [B, L]; `overrides` replace keyword arguments.

        Raises:
            PromptTruncated: a text is longer than the encoder reads.
        """
        if isinstance(prompts, Tensor):
            return self.encode(prompts, None, overrides)
        return self.encoded(self.fitting([prompts] if isinstance(prompts, str) else list(prompts)), **overrides)


def stacked(tokens: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L] of texts cut to one length; shorter ones get their last id, masked."""
    length = max(one.length for one in tokens)
    ids = torch.tensor([one.ids + one.ids[-1:] * (length - one.length) for one in tokens])
    real = torch.tensor([one.real + (False,) * (length - one.length) for one in tokens])
    return ids, real.long()


class Place(NamedTuple):
    """Where one encoder's rows stand in the denoiser's text.

    Attributes:
        at: by prompt, for each of the encoder's L rows its column of the denoiser's text; None: the pipeline drops it.
        layers: which of `hidden_layers` of its output the denoiser reads, joined on channels.
    """

    at: tuple[tuple[int | None, ...], ...]
    layers: tuple[int, ...]

    @property
    def columns(self) -> slice:
        """The columns from the first to the last."""
        columns = [column for row in self.at for column in row if column is not None]
        return slice(min(columns), max(columns) + 1)


@dataclass(eq=False)
class Encoded:
    """What one generation's prompts became: per encoder the call, and the rows the denoiser gets.

    `cond` and `uncond` are [images, K, D], as `text_rows` makes them of whatever the pipeline has. `cut` has the calls
    of encoders that lost a part of a prompt which another one holds whole; no item is looked for in these.
    `pooled` [n, P] and `masks` [n, K] are all that the pipeline encoded beside the rows, of prompts and negative ones;
    `more` [n, K, D] are further text rows, for denoisers that are given those of several encoders apart, and
    `others_have_more` says that a text which was encoded meanwhile has other ones.
    """

    prompts: list[str] = field(default_factory=list)
    images_per_prompt: int = 1
    calls: dict[str, TextCall] = field(default_factory=dict)
    cond: Tensor | None = None
    uncond: Tensor | None = None
    cut: dict[str, TextCall] = field(default_factory=dict)
    pooled: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    more: list[Tensor] = field(default_factory=list)
    others_have_more: bool = False
    _known: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def image_prompts(self) -> list[str]:
        """The prompt of each image."""
        return [prompt for prompt in self.prompts for _ in range(self.images_per_prompt)]

    def images_of(self, prompt: int) -> slice:
        """The images of a prompt, by its number."""
        return slice(prompt * self.images_per_prompt, (prompt + 1) * self.images_per_prompt)

    def place(self, encoder: str) -> Place | None:
        """Where this encoder's rows stand among the denoiser's text rows; None if only its pooled vector is used.

        Found by content: rows of a template may be dropped, layers joined on channels, pads dropped or replaced. Rows
        that the pipeline changed on the way (a final norm) are placed by length, which is decisive when one encoder
        alone fills the text.
        """
        if self.cond is None or encoder not in self._every:
            return None
        key = (*self.calls, None, *self.cut)
        same = self._known.get("cond") is self.cond and self._known["key"] == key
        if not same:
            self._known = {
                "cond": self.cond,
                "key": key,
                "places": {name: self._place(call) for name, call in self._every.items()},
            }
        places: dict[str, Place | None] = self._known["places"]
        call = self._every[encoder]
        if not any(places.values()) and call.length == self.cond.shape[1] and _states(call):
            return Place((tuple(range(call.length)),) * len(call.prompts), (0,))
        return places[encoder]

    def columns(self, encoder: str) -> slice | None:
        """The columns of the denoiser's text that hold this encoder's rows; None if only its pooled vector is used."""
        place = self.place(encoder)
        return None if place is None else place.columns

    def layer(self, encoder: str) -> Layer | None:
        """Which rows [B, L, d] of this encoder's outputs the denoiser gets, several layers joined on channels; None if
        only its pooled vector is used. Where the pipeline changed them on the way (a final norm), the last layer."""
        place = self.place(encoder)
        if place is None:
            return None
        if len(place.layers) == 1:
            return lambda output: hidden_layers(output)[place.layers[0]]
        return lambda output: torch.cat([hidden_layers(output)[k] for k in place.layers], -1)

    def _place(self, call: TextCall) -> Place | None:
        assert self.cond is not None
        states = [state.to(self.cond) for state in _states(call)]
        d, D = (states[0].shape[-1] if states else 0), self.cond.shape[-1]
        if not 0 < d <= D:
            return None
        offsets = sorted({w for w in (0, D - d, *self._widths(), *range(0, D - d + 1, d)) if w <= D - d})
        traced = self._whole(states, offsets) or self._traced(call, states, offsets)
        if traced is None:
            return None
        at, w, k = traced
        rows = [(p, c) for p, c in enumerate(at[0]) if c is not None and _equal(states[k][0, p], self.cond[0, c], w)]
        layers = [k]
        for after in range(w + d, D - d + 1, d):
            same = (j for j, s in enumerate(states) if all(_equal(s[0, p], self.cond[0, c], after) for p, c in rows))
            if (joined := next(same, None)) is None:
                break
            layers.append(joined)
        return Place(tuple(map(tuple, at)), tuple(layers))

    def _whole(self, states: Sequence[Tensor], offsets: Sequence[int]) -> Found | None:
        """All L rows of every prompt stand in a block, as most pipelines leave them."""
        assert self.cond is not None
        B, L, K = *states[0].shape[:2], self.cond.shape[1]
        starts = sorted({0, K - L, *(other.length for other in self._every.values())})
        firsts = self.cond[[self.images_of(b).start for b in range(B)]]
        for k, state in enumerate(states):
            for start in starts:
                if 0 <= start <= K - L:
                    for w in offsets:
                        if _equal(state, firsts[:, start : start + L], w):
                            return [list(range(start, start + L)) for _ in range(B)], w, k
        return None

    def _traced(self, call: TextCall, states: Sequence[Tensor], offsets: Sequence[int]) -> Found | None:
        """The rows of the words stand in a block; the others beside them, or elsewhere, or nowhere."""
        assert self.cond is not None
        cuts = call.cut(call.prompts)
        for k, state in enumerate(states):
            for w in offsets:
                parts = self.cond[..., w : w + state.shape[-1]]
                rows = [_columns(s, parts[self.images_of(b)][0], cuts[b]) for b, s in enumerate(state)]
                if None not in rows:
                    return [row for row in rows if row is not None], w, k
        return None

    @property
    def _every(self) -> dict[str, TextCall]:
        return {**self.calls, **self.cut}

    def _widths(self) -> set[int]:
        return {state.shape[-1] for call in self._every.values() for state in _states(call)[:1]}


Found = tuple[list[list[int | None]], int, int]
"""The columns of each prompt's rows, and at which channel and layer they were found."""


def _states(call: TextCall) -> list[Tensor]:
    """The encoder's hidden layers [B, L, d]; none where it has but a pooled vector."""
    try:
        return [state for state in hidden_layers(call.output) if state.shape[:2] == call.ids.shape]
    except UnsupportedModel:
        return []


def _equal(state: Tensor, rows: Tensor, w: int) -> bool:
    """Whether the rows hold this state from channel w on."""
    return torch.equal(state, rows[..., w : w + state.shape[-1]])


def _columns(state: Tensor, part: Tensor, tokens: Tokens) -> list[int | None] | None:
    """The column of `part` [K, d] where each row of `state` [L, d] stands; None: the rows of the words stand nowhere.

    Words stand in a block, but may be cut off at its end. What else the encoder reads stands beside them, or alone
    elsewhere, as a first row does that is kept where a template is dropped. Pads may be zeroed, replaced or dropped:
    they have the columns beside the words that are left.
    """
    words = [p for p, word in enumerate(tokens.words) if word] or [p for p, real in enumerate(tokens.real) if real]
    for column in torch.nonzero((part == state[words[0]]).all(-1)).flatten().tolist():
        shift = column - words[0]
        inside = [p for p in words if p + shift < len(part)]
        if torch.equal(state[inside], part[[p + shift for p in inside]]):
            break
    else:
        return None
    out: list[int | None] = []
    for p, row in enumerate(state):
        beside = p + shift if 0 <= p + shift < len(part) else None
        if tokens.real[p] and (beside is None or not torch.equal(row, part[beside])):
            elsewhere = torch.nonzero((part == row).all(-1)).flatten().tolist()
            beside = elsewhere[0] if len(elsewhere) == 1 else None
        out.append(beside)
    taken = {column for column, real in zip(out, tokens.real, strict=True) if real}
    return [column if real or column not in taken else None for column, real in zip(out, tokens.real, strict=True)]


def text_rows(value: Any, rows: int | None = None) -> Tensor | None:
    """Text as [n, K, D]: a tensor of that form; [n, K, layers, d] or [layers, n, K, d] with the layers joined on
    channels; a list of [K_i, D], padded with zeros. None: it is no text.

    Args:
        rows: n, where it is known; it tells the two forms of four dimensions apart.
    """
    if isinstance(value, list) and value and all(_is_rows(part, 2) for part in value):
        same = len({part.shape[1] for part in value}) == 1
        return torch.nn.utils.rnn.pad_sequence(value, batch_first=True) if same else None
    if _is_rows(value, 3):
        return value
    if _is_rows(value, 4):
        first = rows is None or len(value) == rows or value.shape[1] != rows
        return (value if first else value.movedim(0, 2)).flatten(2)
    return None


def _is_rows(value: Any, dimensions: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == dimensions and value.is_floating_point()


def tokens(tokenizer: Any, prompts: Sequence[str], length: int) -> Any:
    """The tokenizer call of diffusers pipelines: padded and cut to `length`."""
    given = [expanded(tokenizer, prompt) for prompt in prompts]
    return tokenizer(given, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def truncated(name: str, tokenizer: Any, length: int, lost: str, tokens: int) -> PromptTruncated:
    """The error of a prompt of which an encoder would lose a part."""
    longer = f", or raise max_sequence_length above {length}" if length < tokenizer.model_max_length else ""
    return PromptTruncated(
        f"{name} reads {length} tokens and the prompt has {tokens}; it would lose {lost!r}. Shorten the prompt{longer}"
    )


def replace_output(call: TextCall, new: Any) -> list[list[int]]:
    """Take an intervention's model output, if the pipeline can go on with it.

    Returns:
        For each prompt, the token positions whose rows changed in some part of the output.
    """
    if type(new) is not type(call.output):
        raise BadInput(f"on_text returned a {type(new).__name__}, not a {type(call.output).__name__}")
    old_parts, new_parts = dict(tensors(call.output)), dict(tensors(new))
    if old_parts.keys() != new_parts.keys():
        raise BadInput(f"on_text returned fields {sorted(new_parts)}, not {sorted(old_parts)}")
    changed = torch.zeros_like(call.ids, dtype=torch.bool)
    for name, old in old_parts.items():
        part = new_parts[name]
        if part is old:
            continue
        if part.shape != old.shape or part.dtype != old.dtype:
            was, now = f"{tuple(old.shape)} {old.dtype}", f"{tuple(part.shape)} {part.dtype}"
            raise BadInput(f"on_text changed {name} of {call.name} from {was} to {now}")
        if not torch.isfinite(part).all():
            raise NotFinite(f"on_text left NaN or infinity in {name} of {call.name}")
        if part.ndim == 3:
            changed |= (part != old).any(-1).to(changed.device)
    call.output = new
    return [torch.nonzero(row).flatten().tolist() for row in changed]


def tensors(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model output with its name ("hidden_states.2")."""
    items = output.items() if isinstance(output, Mapping) else enumerate(output)
    for name, value in items:
        if isinstance(value, Tensor):
            yield str(name), value
        elif isinstance(value, tuple | list):
            yield from ((f"{name}.{i}", item) for i, item in enumerate(value) if isinstance(item, Tensor))
