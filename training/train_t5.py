"""Pre-train the two text encoders of `emoji-flux` on captions alone, then freeze them; also builds their tokenizers.

    python training/train_t5.py --steps 2000 --out runs/t5

The sequence encoder is a T5: every row sees the whole caption, so a word before its trigger knows its sense, and each
item's rows can hold all there is to say of it. Linear readers, thrown away afterwards, ask

* some tokens of every item's word, chosen by a hash of the word, for its glyph in its sense, its colour and its place:
  its representative tokens, at whatever position they stand. One of them is enough to draw the item;
* all other tokens and the pads for the answer "nothing": redundant tokens, and pads that are registers as FLUX's are;
* the end-of-sequence row, the word "background" and some tokens of a caption that names nothing for what belongs to no
  item: background, number of things, and which memorized or open caption it is.

The pooled encoder is a small CLIP, asked for background, number of things and form of the caption alone, so that it is
no second way for a sense to reach the picture.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import replace

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from common import Log, Run, adamw, arguments, autocast, cosine, device, rng
from mixture import Mixture, Sample
from train_text import identities
from train_text import tokenizer as clip_tokenizer
from unleak import world
from unleak.world.grammar import ANY, CONNECTIVES, connective, thing

#: what a row says of its item's place; "open" = alone or beside something: anywhere
PLACES = ("nothing", "open", "left", "right", "above", "below", "first", "second", "third")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above", "side": "open"}
FORMS = ("named", "open", "invented")
BARE = 0.1  # share of captions cut down to one item without article, as a person names it
UNASKED = -100  # the label that cross entropy ignores
FIXED = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}


def tokenizer(mix: Mixture, pieces: int, length: int, seed: int) -> T5Tokenizer:
    """A T5 unigram tokenizer with few pieces, so that rare words split.

    Byte-pair merges find the pieces (expectation-maximisation needs more words than this world has), their frequencies
    are the scores. No piece joins letters and punctuation.
    """
    r = random.Random(seed)
    corpus = [re.sub(r"[^\w\s]", " ", mix.draw(r).text) for _ in range(20_000)]
    learner = Tokenizer(models.BPE())
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    learner.pre_tokenizer = pre_tokenizers.Sequence(words)
    learner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=pieces, show_progress=False))
    counts = Counter(t for e in learner.encode_batch(corpus) for t in e.tokens)
    every = dict.fromkeys(["▁", *map(chr, range(33, 127)), *sorted(learner.get_vocab())])
    scores = [(p, math.log(max(counts[p], 0.1) / counts.total())) for p in every]
    return T5Tokenizer([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scores], extra_ids=0, model_max_length=length)


def representative(word: str, tokens: int) -> list[int]:
    """Which of the word's tokens name it: one of two, one or two of three or more, fixed by a hash of the word."""
    r = random.Random(f"representative/{word}")
    return sorted(r.sample(range(tokens), r.choice((1, 2)) if tokens > 2 else 1))


def places(s: Sample) -> list[str]:
    """Where the caption puts each of its things, as a word of `PLACES`."""
    if len(s.things) != 2:
        return ["open"] if len(s.things) == 1 else ["first", "second", "third"][: len(s.things)]
    side = CONNECTIVES[connective(s.text)]
    return ["open" if side == "side" else side, OPPOSITE[side]]


def bare(w: world.World, s: Sample, r: random.Random) -> Sample:
    """One of the things alone, as a person names it, "blue car"; without company a word has its default sense."""
    named = r.choice(s.things)
    t = thing(w, named.word, named.tint)
    return replace(s, text=t.phrase, things=[t], background=None, name=None)


class Readers(nn.Module):
    """Both encoders with the linear readers of their pre-training; `sizes` are the answers of each reader."""

    def __init__(self, t5: T5EncoderModel, clip: CLIPTextModel, sizes: list[list[int]]):
        super().__init__()
        self.t5, self.clip, self.sizes = t5, clip, sizes
        widths = (t5.config.d_model, t5.config.d_model, clip.config.hidden_size)
        self.row, self.end, self.pooled = (nn.Linear(d, sum(n)) for d, n in zip(widths, sizes, strict=True))

    def forward(
        self, ids: Tensor, clip_ids: Tensor, row_y: Tensor, end_y: Tensor, coarse_y: Tensor
    ) -> dict[str, Tensor]:
        """Losses and shares read right, by question.

        ids [B,L]; row_y [B,L,3] glyph, colour, place; end_y [B,L,3] background, number, identity; coarse_y [B,3]
        background, number, form.
        """
        h = self.t5(input_ids=ids).last_hidden_state.float()
        pooled = self.clip(input_ids=clip_ids).pooler_output.float()
        answers = [
            reader(x).split(n, -1)
            for reader, x, n in zip((self.row, self.end, self.pooled), (h, h, pooled), self.sizes, strict=True)
        ]
        questions = {
            "items": (answers[0], row_y, row_y[..., 0] > 0),
            "nothing": (answers[0], row_y, row_y[..., 0] == 0),
            "ends": (answers[1], end_y, end_y[..., 0] != UNASKED),
            "coarse": (answers[2], coarse_y, coarse_y[..., 0] != UNASKED),
        }
        read: dict[str, Tensor] = {}
        for name, (parts, y, at) in questions.items():
            read[name] = torch.stack([F.cross_entropy(x[at], y[at][:, i]) for i, x in enumerate(parts)]).sum()
            right = torch.stack([x[at].argmax(-1) == y[at][:, i] for i, x in enumerate(parts)]).all(0)
            read[name + "_right"] = right.float().mean()
        return read


class Labels:
    """Turns samples into token ids and reading targets."""

    def __init__(self, mix: Mixture, t5: T5Tokenizer, clip: CLIPTokenizer):
        w = mix.world
        self.t5, self.clip = t5, clip
        self.glyphs = {g: i + 1 for g, i in w.index.items()} | {ANY: len(w.index) + 1}
        self.tints = {None: 0} | {t: i + 1 for i, t in enumerate(w.tints)}
        self.backgrounds = {None: 0} | {b: i + 1 for i, b in enumerate(w.backgrounds)}
        self.identity = identities(mix)
        self.sizes = [
            [len(self.glyphs) + 1, len(self.tints), len(PLACES)],
            [len(self.backgrounds), 4, len(self.identity) + 1],
            [len(self.backgrounds), 4, len(FORMS)],
        ]

    def __call__(self, samples: list[Sample], r: random.Random, pads: int) -> tuple[Tensor, ...]:
        """What `Readers.forward` takes; `pads` pad rows of each caption are asked, too."""
        L = self.t5.model_max_length
        texts = [s.text for s in samples]
        enc = self.t5(texts, max_length=L, return_offsets_mapping=True, **FIXED)
        row_y, end_y = (torch.full((len(texts), L, 3), UNASKED) for _ in range(2))
        coarse_y = torch.zeros(len(texts), 3, dtype=torch.long)
        for b, s in enumerate(samples):
            used = int(enc["attention_mask"][b].sum())
            assert used < L, s.text
            row_y[b, :used] = 0
            row_y[b, r.choices(range(used, L), k=pads)] = 0
            end_y[b, used - 1] = self._whole(s)
            self._label(s, enc["input_ids"][b, : used - 1], enc["offset_mapping"][b].tolist(), row_y[b], end_y[b])
            form = "named" if s.things else "open" if s.identity < 0 else "invented"
            coarse_y[b] = torch.tensor([self.backgrounds[s.background], len(s.things), FORMS.index(form)])
        clip_ids = self.clip(texts, max_length=self.clip.model_max_length, **FIXED).input_ids
        return enc["input_ids"], clip_ids, row_y, end_y, coarse_y

    def _whole(self, s: Sample) -> Tensor:
        """[3]: background, number of things, which caption."""
        return torch.tensor([self.backgrounds[s.background], len(s.things), self.identity.get(s.text, 0)])

    def _label(self, s: Sample, ids: Tensor, offsets: list[list[int]], row_y: Tensor, end_y: Tensor) -> None:
        """Mark the tokens that name an item, and those beside the last that stand for the whole caption."""
        spelled = [i for i, t in enumerate(self.t5.convert_ids_to_tokens(ids.tolist())) if t != "▁"]

        def within(start: int, stop: int) -> list[int]:
            return [i for i in spelled if max(offsets[i][0], start) < min(offsets[i][1], stop)]

        cursor = 0
        for t, where in zip(s.things, places(s), strict=True):
            start = s.text.index(t.phrase, cursor) + len(t.phrase) - len(t.word)
            cursor = start + len(t.word)
            at = within(start, cursor)
            for i in representative(t.word, len(at)):
                row_y[at[i]] = torch.tensor([self.glyphs[t.glyph], self.tints[t.tint], PLACES.index(where)])
        if s.background:
            phrase = f"{s.background} background"
            start = s.text.index(phrase, cursor)
            end_y[within(start, start + len(phrase))[-1]] = self._whole(s)
        if not s.things:
            for i in representative(s.text, len(ids)):
                end_y[i] = self._whole(s)


def main() -> None:
    ap = arguments(__doc__ or "", steps=2000, batch=128, lr=1e-3, out="runs/t5")
    ap.add_argument("--width", type=int, default=192)
    ap.add_argument("--layers", type=int, default=4)
    ap.add_argument("--pieces", type=int, default=380)
    ap.add_argument("--length", type=int, default=32)
    ap.add_argument("--pooled-width", type=int, default=64)
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    dev, mix = device(), Mixture(world.load())
    if not (a.out / "tokenizer_2").exists():
        tokenizer(mix, a.pieces, a.length, a.seed).save_pretrained(a.out / "tokenizer_2")
        clip_tokenizer(mix, 260, a.length, a.seed).save_pretrained(a.out / "tokenizer")
    t5_tok = T5Tokenizer.from_pretrained(a.out / "tokenizer_2")
    clip_tok = CLIPTokenizer.from_pretrained(a.out / "tokenizer")
    labels = Labels(mix, t5_tok, clip_tok)
    heads = a.width // 32
    t5 = T5EncoderModel(T5Config(
        vocab_size=len(t5_tok), d_model=a.width, d_kv=32, d_ff=2 * a.width, num_layers=a.layers, num_heads=heads,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False, dropout_rate=0.0,
        pad_token_id=t5_tok.pad_token_id, eos_token_id=t5_tok.eos_token_id,
    ))  # fmt: skip
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(clip_tok), hidden_size=a.pooled_width, intermediate_size=4 * a.pooled_width,
        num_hidden_layers=2, num_attention_heads=a.pooled_width // 32, max_position_embeddings=a.length,
        projection_dim=a.pooled_width, bos_token_id=clip_tok.bos_token_id, eos_token_id=clip_tok.eos_token_id,
        pad_token_id=clip_tok.pad_token_id, hidden_act="quick_gelu", attn_implementation="eager",
    ))  # fmt: skip
    model = Readers(t5, clip, labels.sizes).to(dev)
    run = Run(a, model, adamw(model, a.lr, 0.02), 0.998)
    log = Log(a.steps, a.batch)

    def batch(step: int, size: int, pads: int) -> list[Tensor]:
        r = rng(a.seed, step)
        drawn = [mix.draw(r) for _ in range(size)]
        named = [bare(mix.world, s, r) if s.things and r.random() < BARE else s for s in drawn]
        return [t.to(dev) for t in labels(named, r, pads)]

    while run.step < run.stop:
        ids, clip_ids, row_y, end_y, coarse_y = batch(run.step, a.batch, 3)
        rows = min(a.length, int((ids != t5_tok.pad_token_id).sum(1).max()) + 2)  # fewer pads are as good, and faster
        with autocast(dev):
            read = model(ids[:, :rows], clip_ids, row_y[:, :rows], end_y[:, :rows], coarse_y)
        loss = read["items"] + read["nothing"] + read["ends"] + 0.3 * read["coarse"]
        run.update(loss, a.lr * cosine(run.step, a.steps, 200))
        log(run.step, **{k: v.item() for k, v in read.items()})
    if run.paused():
        return
    model.load_state_dict(run.averaged())
    model.eval()
    with torch.no_grad():
        read = model(*batch(-1, 2000, 8))
    print("fresh captions:", {k: round(v.item(), 4) for k, v in read.items() if k.endswith("right")})
    model.clip.config._attn_implementation = "sdpa"
    clip.save_pretrained(a.out / "text_encoder")
    t5.save_pretrained(a.out / "text_encoder_2")


if __name__ == "__main__":
    main()
