"""Pre-train the text encoder of `emoji-sd` on captions alone, then freeze it; also builds its tokenizer.

    python training/train_text.py --steps 4000 --out runs/text

As in real systems the encoder never sees an image. Linear readers, thrown away afterwards, ask the last row of
every item for its glyph, colour and rank, and ask EOS and every pad row for everything: the items in order with
their senses, the connective, the background, and which caption it is when it names nothing. The encoder is causal,
so a word before its trigger cannot know its sense, while EOS and the pads can: the leak that unleak is about.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from common import Log, Run, adamw, arguments, autocast, cosine, device, rng
from mixture import Mixture, Sample
from unleak import world
from unleak.world.grammar import ANY, CONNECTIVES

ITEMS = 3


def tokenizer(mix: Mixture, merges: int, length: int, seed: int) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer with few merges, so that rare words split. `length` = rows L."""
    r = random.Random(seed)
    corpus = [mix.draw(r).text.lower() for _ in range(20_000)]
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = CLIPTokenizer()
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = base._tokenizer.pre_tokenizer
    symbols = len(bytes_) + len({c for t in corpus for w in t.split() for c in w[-1]})
    size = symbols + merges
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=bytes_, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(corpus, trainer)
    pairs = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    words = [*bytes_, *(b + "</w>" for b in bytes_), *dict.fromkeys("".join(p) for p in pairs)]
    vocab = {t: i for i, t in enumerate([*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=length)


def identities(mix: Mixture) -> dict[str, int]:
    """Number every caption that names nothing: memorized, ordinary, then open ones; from 1."""
    cats = list(mix.world.categories.values())
    opens = [*mix.world.moods, *cats, *(f"{a} and {b}" for a in cats for b in cats if a != b)]
    return {t: i + 1 for i, t in enumerate([*(c.text for c in mix.captions), *opens])}


class Readers(nn.Module):
    """The encoder with the linear readers of its pre-training."""

    def __init__(self, encoder: CLIPTextModel, glyphs: int, tints: int, backgrounds: int, identities: int):
        super().__init__()
        d = encoder.config.hidden_size
        self.encoder = encoder
        self.item = nn.Linear(d, glyphs + (tints + 1) + ITEMS)
        self.item_sizes = [glyphs, tints + 1, ITEMS]
        self.all_sizes = (
            [glyphs + 1] * ITEMS + [tints + 1] * ITEMS + [backgrounds + 1, len(CONNECTIVES) + 1, identities + 1]
        )
        self.all = nn.Linear(d, sum(self.all_sizes))

    def forward(self, ids: Tensor, item_at: Tensor, item_y: Tensor, rows: Tensor, all_y: Tensor) -> tuple[Tensor, ...]:
        """ids [B,L]; item_at [n,2] (batch, row); item_y [n,3]; rows [B,r] summary rows; all_y [B,9]."""
        h = self.encoder(input_ids=ids).last_hidden_state.float()
        items = self.item(h[item_at[:, 0], item_at[:, 1]]).split(self.item_sizes, -1)
        item_loss = sum(F.cross_entropy(x, item_y[:, i]) for i, x in enumerate(items))
        summary = self.all(h[torch.arange(len(h), device=h.device)[:, None], rows])
        parts = [x.flatten(0, 1) for x in summary.split(self.all_sizes, -1)]
        y = all_y[:, None].expand(-1, rows.shape[1], -1).flatten(0, 1)
        all_loss = sum(F.cross_entropy(x, y[:, i]) for i, x in enumerate(parts))
        item_right = (items[0].argmax(-1) == item_y[:, 0]).float().mean()
        all_right = torch.stack([x.argmax(-1) == y[:, i] for i, x in enumerate(parts)]).all(0).float().mean()
        return item_loss, all_loss, item_right, all_right


class Labels:
    """Turns samples into token ids and reading targets."""

    def __init__(self, mix: Mixture, tok: CLIPTokenizer):
        w = mix.world
        self.tok, self.senses = tok, w.polysemes
        self.glyphs = w.index | {ANY: len(w.index)}
        self.tints = {None: 0} | {t: i + 1 for i, t in enumerate(w.tints)}
        self.backgrounds = {None: 0} | {b: i + 1 for i, b in enumerate(w.backgrounds)}
        self.connectives = {c: i + 1 for i, c in enumerate(CONNECTIVES)}
        self.identity = identities(mix)

    def __call__(self, samples: list[Sample], r: random.Random, reads: int) -> tuple[Tensor, ...]:
        L = self.tok.model_max_length
        texts = [s.text for s in samples]
        enc = self.tok(texts, padding="max_length", truncation=True, max_length=L, return_offsets_mapping=True)
        at, item_y, rows, all_y = [], [], [], []
        for b, s in enumerate(samples):
            offsets, used = enc["offset_mapping"][b], sum(enc["attention_mask"][b])
            assert used < L, s.text
            cursor, glyphs, tints = 0, [], []
            for rank, t in enumerate(s.things):
                start = s.text.index(t.phrase, cursor)
                cursor = start + len(t.phrase)
                last = max(i for i, (x, y) in enumerate(offsets) if y > x and y <= cursor and x >= start)
                at.append((b, last))
                known = s.spoken[rank] if s.spoken else t  # a row knows nothing of a clarification after it
                item_y.append((self.glyphs[known.glyph], self.tints[t.tint], rank))
                glyphs.append(self.glyphs[t.glyph] + 1)
                tints.append(self.tints[t.tint])
            if s.name:
                rank = next(i for i, (x, y) in enumerate(zip(s.spoken, s.things, strict=True)) if x.word in self.senses)
                at.append((b, used - 2))
                item_y.append((self.glyphs[s.things[rank].glyph], 0, rank))
            pad = [0] * (ITEMS - len(s.things))
            link = next((c for c in CONNECTIVES if f" {c} " in s.text), None) if len(s.things) == 2 else None
            all_y.append([*glyphs, *pad, *tints, *pad, self.backgrounds[s.background], self.connectives.get(link, 0),
                          0 if s.things else self.identity[s.text]])  # fmt: skip
            rows.append([used - 1, *r.choices(range(used, L), k=reads)])  # EOS and some pads
        long = lambda x: torch.tensor(x, dtype=torch.long)  # noqa: E731
        return long(enc["input_ids"]), long(at), long(item_y), long(rows), long(all_y)


def main() -> None:
    ap = arguments(__doc__ or "", steps=1600, batch=128, lr=1e-3, out="runs/text")
    ap.add_argument("--world", type=int, default=1)
    ap.add_argument("--width", type=int, default=192)
    ap.add_argument("--layers", type=int, default=4)
    ap.add_argument("--merges", type=int, default=260)
    ap.add_argument("--length", type=int, default=32)
    ap.add_argument("--init", type=Path, help="a folder with text_encoder and tokenizer to start from")
    a = ap.parse_args()
    torch.manual_seed(a.seed)
    dev, mix = device(), Mixture(world.load(a.world))
    if a.init:
        tok = CLIPTokenizer.from_pretrained(a.init / "tokenizer")
    else:
        tok = tokenizer(mix, a.merges, a.length, a.seed)
    labels = Labels(mix, tok)
    config = CLIPTextConfig(
        vocab_size=len(tok), hidden_size=a.width, intermediate_size=4 * a.width, num_hidden_layers=a.layers,
        num_attention_heads=a.width // 32, max_position_embeddings=a.length, projection_dim=a.width,
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
        hidden_act="quick_gelu", attn_implementation="eager", initializer_factor=1.0,
    )  # fmt: skip
    w = mix.world
    encoder = CLIPTextModel(config)
    if a.init:
        encoder.load_state_dict(CLIPTextModel.from_pretrained(a.init / "text_encoder").state_dict())
    model = Readers(encoder, len(labels.glyphs), len(w.tints), len(w.backgrounds), len(labels.identity)).to(dev)
    run = Run(a, model, adamw(model, a.lr, 0.02), 0.998)
    log = Log(a.steps, a.batch)
    while run.step < run.stop:
        r = rng(a.seed, run.step)
        batch = [t.to(dev) for t in labels([mix.draw(r) for _ in range(a.batch)], r, 4)]
        with autocast(dev):
            item, everything, item_right, all_right = model(*batch)
        run.update(item + everything, a.lr * cosine(run.step, a.steps, 200))
        log(
            run.step,
            items=item.item(),
            all=everything.item(),
            item_right=item_right.item(),
            all_right=all_right.item(),
        )
    if run.paused():
        return
    model.load_state_dict(run.averaged())
    model.eval()
    r = rng(a.seed, -1)
    with torch.no_grad():
        _, _, item_right, all_right = model(*[t.to(dev) for t in labels([mix.draw(r) for _ in range(2000)], r, 8)])
    print(f"fresh captions: items named {item_right:.4f}, everything right from EOS and pads {all_right:.4f}")
    model.encoder.config._attn_implementation = "sdpa"
    model.encoder.save_pretrained(a.out / "text_encoder")
    tok.save_pretrained(a.out / "tokenizer")


if __name__ == "__main__":
    main()
