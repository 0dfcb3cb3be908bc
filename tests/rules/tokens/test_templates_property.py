"""For any conversation: ids as `apply_chat_template` gives them, labels exactly what is said."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_kit import CHATML, LLAMA2, MARKED, PLAIN, SPECIAL, make_tokenizer
from ftbuild_rules.templates._named import templates
from ftbuild_rules.templates._render import Renderer
from ftbuild_rules.tokens._encoder import Encoder, load_encoder
from ftbuild_rules.tokens._masks import MaskPolicy, label_turns

# What each template lets the assistant say, its end included, written by hand.
SAYS: dict[str, Callable[[str], str]] = {
    "chatml": lambda text: f"{text}<|im_end|>",
    "marked": lambda text: f"{text}<|im_end|>",
    "named": lambda text: f"{text}<|im_end|>",
    "llama2": lambda text: f" {text.strip()} </s>",
    "plain": lambda text: f"{text.strip(chr(10))}</s>",
}
TEXTS = {
    "chatml": CHATML,
    "marked": MARKED,
    "named": templates()["chatml"],
    "llama2": LLAMA2,
    "plain": PLAIN,
}

pieces = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.sampled_from(
        [*SPECIAL, "\n", " ", "\u2003", "\n\n\n\u2003", "\ue0000\ue001", "[INST]", "é🌍"]
    ),
)
contents = st.lists(pieces, min_size=1, max_size=4).map("".join).filter(str.strip)
conversations = st.lists(st.tuples(contents, contents), min_size=1, max_size=4)


@cache
def tokenizer_of(name: str) -> tuple[Any, Encoder, Renderer]:
    with TemporaryDirectory() as directory:
        tokenizer = make_tokenizer(Path(directory), TEXTS[name])
        encoder = load_encoder(Path(directory), "model")
    return tokenizer, encoder, Renderer(encoder.template(TEXTS[name]))


def text_of(ids: list[int]) -> str:
    """Return the text of ids of the byte tokenizer."""
    return b"".join(bytes([i]) if i < 256 else SPECIAL[i - 256].encode() for i in ids).decode()


@pytest.mark.parametrize("name", list(TEXTS))
@settings(max_examples=150, deadline=None)
@given(pairs=conversations)
def test_trained_tokens_are_what_the_assistant_says(
    name: str, pairs: list[tuple[str, str]]
) -> None:
    tokenizer, encoder, renderer = tokenizer_of(name)
    messages = [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    policy = MaskPolicy(("assistant",), "turn", False)
    found = renderer.turns(messages, None, policy.roles(messages))
    ((ids, offsets),) = encoder.encode_with_offsets([found.text])
    labelled = label_turns(ids, offsets, found.turns, messages, policy)

    assert ids.tolist() == tokenizer.apply_chat_template(messages)["input_ids"]
    assert not labelled.lacks_eot
    assert not labelled.has_split_token
    trained = [label for label in labelled.labels if label != -100]
    assert text_of(trained) == "".join(SAYS[name](answer) for _, answer in pairs)
    turns = [found.text[t.start : t.eot[1] if t.eot else t.end] for t in found.turns]
    assert turns == [SAYS[name](answer) for _, answer in pairs]


@pytest.mark.parametrize("name", ["marked", "named"])
@settings(max_examples=100, deadline=None)
@given(pairs=conversations)
def test_labels_are_transformers_own_assistant_mask(
    name: str, pairs: list[tuple[str, str]]
) -> None:
    tokenizer, encoder, renderer = tokenizer_of(name)
    messages = [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    policy = MaskPolicy(("assistant",), "turn", False)
    found = renderer.turns(messages, None, {"assistant"})
    ((ids, offsets),) = encoder.encode_with_offsets([found.text])
    labelled = label_turns(ids, offsets, found.turns, messages, policy)
    theirs = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)
    assert [int(label != -100) for label in labelled.labels] == theirs["assistant_masks"]
