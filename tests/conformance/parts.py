"""Tokenizers, language models and autoencoders that several families share; all tiny, none from a network.

Vocabularies are learnt on the spot from the words below: a word of ``WHOLE`` is one token, others are spelt in
pieces, as rare words are by real tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

import diffusers
import tokenizers
import transformers
from tokenizers import pre_tokenizers

from tiny import WORDS, autoencoder, clip_encoder, clip_tokenizer, lively, sharp, t5_encoder, t5_tokenizer

__all__ = [
    "autoencoder",
    "autoencoder_16",
    "clip_encoder",
    "clip_tokenizer",
    "flow",
    "gemma2",
    "gemma_tokenizer",
    "lively",
    "mistral_tokenizer",
    "qwen3",
    "qwen_tokenizer",
    "sharp",
    "t5_encoder",
    "t5_tokenizer",
]

# Words of the templates, system messages and instructions that pipelines put around a prompt.
_AROUND = """
system user assistant think Describe the image by detailing color shape size texture quantity text spatial
relationships of objects and background You are an designed to generate superior images with degree
image-text alignment based on textual prompts or prompt Prompt Start User Enhanced
"""
WHOLE = [*_AROUND.split(), *(word for i, word in enumerate(WORDS) if i % 3 != 2 or word in {"mouse", "red"})]

QWEN_TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}
{%- else %}{%- for part in message.content %}{{- part.text }}{%- endfor %}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

MISTRAL_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{%- set open, close = '[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]' %}
{%- elif message.role == 'user' %}{%- set open, close = '[INST]', '[/INST]' %}
{%- else %}{%- set open, close = '', eos_token %}{%- endif %}
{{- open }}
{%- if message.content is string %}{{- message.content }}
{%- else %}
{%- for part in message.content %}{{- part.text if part.type == 'text' else '[IMG]' }}{%- endfor %}
{%- endif %}
{{- close }}
{%- endfor %}"""


def _learn(words: Iterable[str], pre: pre_tokenizers.PreTokenizer, alphabet: list[str]) -> tuple[dict[str, int], list]:
    """Vocabulary and merges of byte-pair encoding: every given word becomes one token."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = pre
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(words, trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@cache
def _byte_level() -> tuple[dict[str, int], list]:
    """Byte-level pieces: each word at the start of a text and after a space."""
    words = [text for word in WHOLE for text in (word, f" {word}")]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _learn(words, level, sorted(pre_tokenizers.ByteLevel.alphabet()))


def qwen_tokenizer(specials: Iterable[str] = ()) -> transformers.Qwen2Tokenizer:
    """Byte-level pieces, `<|im_start|>role` turns, padded on the right; `specials` are further special tokens."""
    vocab, merges = _byte_level()
    made = transformers.Qwen2Tokenizer(dict(vocab), list(merges), padding_side="right", model_max_length=4096)
    made.add_tokens(["<think>", "</think>"])
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *specials]})
    made.chat_template = QWEN_TEMPLATE
    return made


def mistral_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level pieces between `[INST]` and `[/INST]`, padded on the left."""
    vocab, merges = _byte_level()
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=dict(vocab), merges=list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = tokenizers.decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=4096,
    )
    turns = ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    made.add_special_tokens({"additional_special_tokens": turns})
    made.chat_template = MISTRAL_TEMPLATE
    return made


def gemma_tokenizer() -> transformers.GemmaTokenizer:
    """Pieces with `▁` for a space, unknown letters as bytes, `<bos>` in front."""
    words = [text for word in WHOLE for text in (word, f"▁{word}")]
    vocab, merges = _learn(words, pre_tokenizers.Split("▁", "merged_with_next"), ["▁", *map(chr, range(33, 127))])
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*specials, *sorted(vocab, key=vocab.__getitem__)]
    made = transformers.GemmaTokenizer(
        {piece: i for i, piece in enumerate(pieces)}, merges, add_bos_token=True, model_max_length=4096
    )
    assert made("a red mouse").input_ids[0] == made.bos_token_id, "no <bos> in front"
    return made


def language_model(model: type, config: type, tokenizer, layers: int = 3, hidden: int = 32, vocab: int = 0, **more):
    """A decoder of `layers` layers with grouped keys: two heads of queries, one of keys and values. `vocab`: the least
    number of tokens that it knows."""
    return lively(
        model(
            config(
                vocab_size=max(len(tokenizer), vocab),
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=hidden // 2,
                max_position_embeddings=4096,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **more,
            )
        )
    )


def qwen3(tokenizer, layers: int = 3, model: type = transformers.Qwen3Model, hidden: int = 32):
    """A Qwen3 of `layers` layers; `model` may be `Qwen3ForCausalLM`."""
    return language_model(model, transformers.Qwen3Config, tokenizer, layers, hidden)


def gemma2(tokenizer, layers: int = 3, hidden: int = 32):
    """A Gemma2 of `layers` layers."""
    return lively(
        transformers.Gemma2Model(
            transformers.Gemma2Config(
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=hidden // 2,
                query_pre_attn_scalar=hidden // 2,
                sliding_window=4096,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    )


def autoencoder_16(shift: float | None = 0.1) -> diffusers.AutoencoderKL:
    """Sixteen latent channels, as newer flow models have."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=128,
        shift_factor=shift,
    ).eval()


def flow(**settings) -> diffusers.FlowMatchEulerDiscreteScheduler:
    """Euler steps of flow matching; `settings` are the scheduler's."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)
