"""Ids made word by word are the tokenizer's own, whatever the text."""

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ftbuild.errors import RuleError
from ftbuild_rules.tokens._encoder import load_encoder
from ftbuild_rules.tokens._words import Words, byte_lengths, is_of_words, spelling, words_of
from tiny_models import make_tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "It's 9 o'clock, they've sold 1234 books; I'll ask... don't WE'RE",
    "def f(x):\n    return x == 3  # caf\u00e9 \u201cquoted\u201d \u2014 \u20ac5\r\n\r\n",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u03b1\u03b2\u03b3 \U0001f600 \u4f60\u597d  two   three",
]


def level(pre: Any, *, regex: bool) -> Any:
    return pre.ByteLevel(add_prefix_space=False, use_regex=regex)


def splits(pattern: str) -> Callable[[Any], Any]:
    def make(pre: Any) -> Any:
        from tokenizers import Regex

        return pre.Sequence([pre.Split(Regex(pattern), "isolated"), level(pre, regex=False)])

    return make


KINDS: dict[str, Callable[[Any], Any]] = {
    "gpt2": lambda pre: level(pre, regex=True),
    "smollm": lambda pre: pre.Sequence(
        [pre.Digits(individual_digits=True), level(pre, regex=True)]
    ),
    "llama3": splits(LLAMA3),
    "qwen2": splits(QWEN2),
    "gpt4o": splits(GPT4O),
}


@cache
def made(kind: str) -> tuple[Any, Words]:
    tokenizer = trained(KINDS[kind], normalizer="NFC" if kind == "qwen2" else None)
    assert is_of_words(tokenizer.to_str())
    return tokenizer, words_of(spelling(json.loads(tokenizer.to_str())), tokenizer)


def trained(make: Callable[[Any], Any], *, normalizer: str | None = None, **flags: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = make(pre_tokenizers)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS * 4, BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(t, **flags) for t in ("<|end|>", "<|e|>", "<s>")])
    return tokenizer


# Mostly of what decides where words end.
pieces = st.sampled_from(
    [
        *"aZ19 \t\n\r'.<|>\u00e9\u201c\u2003\u00a0\x1c\x85\u0301\u4f60\u017f\u212a\U0001f600",
        "'s",
        "'LL",
    ]
)
specials = st.sampled_from(["<|end|>", "<|e|>", "<s>"])
texts = st.lists(pieces | specials | st.text(max_size=4), max_size=30).map("".join)


@pytest.mark.parametrize("kind", list(KINDS))
@settings(max_examples=400, deadline=None)
@given(text=texts)
@example("a  1")
@example(" \x1c ")
@example("x  <|end|>  \n<|e|>'s")
def test_ids_are_the_tokenizers(kind: str, text: str) -> None:
    tokenizer, words = made(kind)
    ids = words.encode(text)
    if ids is None:
        assert not text.isascii()
        return
    own = tokenizer.encode(text, add_special_tokens=False).ids
    assert list(memoryview(ids).cast("i")) == own
    sizes = byte_lengths(json.loads(tokenizer.to_str()))
    assert sizes is not None
    assert sum(sizes[token] for token in own) == len(text.encode())


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(
    "text", ["na\u00efve \u201ccaf\u00e9\u201d \u2014 \u20ac5", "\u041f\u0440\u0438 \U0001f600!"]
)
def test_usual_texts_beyond_ascii_are_taken(kind: str, text: str) -> None:
    assert made(kind)[1].encode(text) is not None


@pytest.mark.parametrize("text", ["\u4f60\u597d", "e\u0301", "\u017f", "\u0e01"])
def test_characters_of_uncertain_sort_are_left_to_the_tokenizer(text: str) -> None:
    assert made("llama3")[1].encode(text) is None


def test_tokenizers_that_are_not_of_words_are_left_alone() -> None:
    def spaced(pre: Any) -> Any:
        return pre.ByteLevel(add_prefix_space=True)

    def metaspace(pre: Any) -> Any:
        return pre.Metaspace()

    assert not is_of_words(trained(spaced).to_str())
    assert not is_of_words(trained(metaspace).to_str())
    assert not is_of_words(trained(KINDS["gpt2"], rstrip=True).to_str())
    assert not is_of_words(trained(splits(r"\w+|\W+")).to_str())


def test_other_ids_than_the_tokenizers_are_an_error(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    encoder = load_encoder(tmp_path, "m")
    assert encoder.words is not None
    wrong = dataclasses.replace(encoder.words, find_ascii=lambda text: list(reversed(text)))
    with pytest.raises(RuleError) as caught:
        dataclasses.replace(encoder, words=wrong).encode(["Hello"])
    assert caught.value.problems[0].code == "E0838"


def test_tokens_in_other_places_are_an_error(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    encoder = load_encoder(tmp_path, "m")
    sizes = encoder.sizes.copy()
    ((first, last),) = encoder.encode(["He"])
    sizes[first], sizes[last] = 0, 2
    with pytest.raises(RuleError) as caught:
        dataclasses.replace(encoder, sizes=sizes).encode_with_offsets(["He"])
    assert caught.value.problems[0].code == "E0838"
