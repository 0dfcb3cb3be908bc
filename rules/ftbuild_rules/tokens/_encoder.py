"""The tokenizer of a model: the one seam through which text becomes ids.

Ids are those of `AutoTokenizer` on the same directory. Where the tokenizer is byte-level BPE of
words, `_words` makes them; else its Rust core is called in batches. Of every batch some texts go
both ways, and must come out with the same ids and in the same places.
"""

import json
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ftbuild.api import Place, RuleError
from ftbuild_rules.templates._render import Template
from ftbuild_rules.tokens._offsets import Offsets, offsets_by_size, offsets_in_characters
from ftbuild_rules.tokens._words import Words, byte_lengths, is_of_words, spelling, words_of

_BACKEND, _ABOUT, _SIZES = "tokenizer.json", "about.json", "sizes.int32"
VOCABULARY = "vocabulary.json"
"""Where the model has no tokenizer.json of the same vocabulary: one to be put beside the ids."""
CHECKED_EVERY = 64
"""One text in so many is encoded by the tokenizer too."""


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, ready for batches."""

    text: str
    """The tokenizer.json as Transformers set it up."""
    plain: Any
    """The `tokenizers.Tokenizer` without a post-processor: it adds no token, and its offsets are
    not trimmed."""
    templates: dict[str, str]
    """The tokenizer's own chat templates; the usual one is `default`."""
    variables: dict[str, str]
    enders: tuple[str, ...]
    bos_id: int | None
    eos_id: int | None

    words: Words | None
    """None where its ids are not made word by word."""
    sizes: Any
    """How many bytes each id stands for, an array; None where that is not fixed."""

    @cached_property
    def backend(self) -> Any:
        """The `tokenizers.Tokenizer` with its post-processor, which few rows need."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.text)

    def encode(self, texts: Sequence[str], *, with_special_tokens: bool = False) -> list[list[int]]:
        """Return the ids of each text."""
        if with_special_tokens:
            found = self.backend.encode_batch_fast(list(texts), add_special_tokens=True)
            return [encoding.ids for encoding in found]
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[Any]:
        """Return the ids of each text as an array of int32.

        Raises:
            RuleError: they are not the tokenizer's own.
        """
        return self._encode(texts, CHECKED_EVERY)

    def _encode(self, texts: Sequence[str], checked_every: int | None) -> list[Any]:
        import numpy

        made = [self.words.encode(text) for text in texts] if self.words else [None] * len(texts)
        left = [place for place, ids in enumerate(made) if ids is None]
        checked = [
            place for place in range(0, len(texts), CHECKED_EVERY) if made[place] is not None
        ]
        encoded = self.plain.encode_batch_fast(
            [texts[place] for place in (*left, *checked)], add_special_tokens=False
        )
        own = {
            place: numpy.array(encoding.ids, numpy.int32)
            for place, encoding in zip((*left, *checked), encoded, strict=True)
        }
        out = [numpy.frombuffer(ids, numpy.int32) if ids is not None else None for ids in made]
        for place in checked:
            _check_equal(out[place], own[place], texts[place])
        for place in left:
            out[place] = own[place]
        return out

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[Any, Offsets]]:
        """Return the ids of each text as an array of int32, and where its tokens stand.

        Raises:
            RuleError: they are not the tokenizer's own.
        """
        if self.sizes is None:
            return self._encode_slowly(texts)
        out: list[Any] = []
        for text, ids in zip(texts, self._encode(texts, None), strict=True):
            offsets = offsets_by_size(text, self.sizes[ids])
            out.append((ids, offsets) if offsets is not None else None)
        checked = range(0, len(texts), CHECKED_EVERY)
        again = sorted({*checked, *(place for place, found in enumerate(out) if found is None)})
        for place, (ids, offsets) in zip(
            again, self._encode_slowly([texts[place] for place in again]), strict=True
        ):
            if out[place] is None:
                out[place] = ids, offsets
            else:
                _check_equal(out[place][0], ids, texts[place])
                _check_places(out[place][1], offsets, texts[place])
        return out

    def _encode_slowly(self, texts: Sequence[str]) -> list[tuple[Any, Offsets]]:
        import numpy

        return [
            (numpy.array(encoding.ids, numpy.int32), offsets_in_characters(encoding.offsets))
            for encoding in self.plain.encode_batch(list(texts), add_special_tokens=False)
        ]

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, None where the vocabulary lacks it."""
        found: int | None = self.plain.token_to_id(token)
        return found

    def opening(self) -> list[int]:
        """Return the ids that the tokenizer puts before a text: BOS, or none."""
        ids: list[int] = self.backend.encode("a", add_special_tokens=True).ids
        bare: list[int] = self.plain.encode("a", add_special_tokens=False).ids
        return ids[: next(n for n in range(len(ids)) if ids[n : n + len(bare)] == bare)]

    def ender_ids(self) -> frozenset[int]:
        """Return the ids of the tokens that may end a turn."""
        found = (self.token_id(token) for token in self.enders)
        return frozenset(token for token in found if token is not None)

    def size(self) -> int:
        """Return one more than the highest id."""
        return 1 + max(self.plain.get_vocab(with_added_tokens=True).values())

    def template(self, text: str) -> Template:
        """Return a chat template with this tokenizer's special tokens."""
        return Template(text, self.variables, self.enders)


def load_encoder(directory: Path, label: str) -> Encoder:
    """Return the tokenizer of a model directory; `label` is for messages.

    Raises:
        RuleError: there is none, or none that gives offsets.
    """
    with tempfile.TemporaryDirectory() as settled:
        settle(directory, label, Path(settled))
        return open_encoder(Path(settled))


def settle(directory: Path, label: str, out: Path) -> None:
    """Write down what Transformers makes of a model directory's tokenizer.

    It takes Transformers seconds to be imported and to find that out; to read it takes none.

    Raises:
        RuleError: there is no tokenizer, or none that gives offsets.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise RuleError(
            "the model's tokenizer cannot be loaded",
            code="E0831",
            where=Place(label),
            why=str(error).splitlines()[0],
            fix="the model's directory needs tokenizer.json and tokenizer_config.json",
        ) from error
    if not tokenizer.is_fast:
        raise RuleError(
            "the model's tokenizer has no fast form, so where a token stands is not known",
            code="E0831",
            where=Place(label),
            fix="save it as tokenizer.json: `AutoTokenizer.from_pretrained(…).save_pretrained(…)`",
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    text = backend.to_str()
    described = json.loads(text)
    sizes = byte_lengths(described)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {token for token in (tokenizer.eos_token,) if token}
    templates = tokenizer.chat_template or {}
    about = {
        "templates": {"default": templates} if isinstance(templates, str) else templates,
        "variables": dict(tokenizer.special_tokens_map),
        "enders": sorted(special, key=lambda token: (-len(token), token)),
        "bos_id": tokenizer.bos_token_id,
        "eos_id": tokenizer.eos_token_id,
        "spelling": spelling(described) if is_of_words(text) else None,
        "has_sizes": sizes is not None,
    }
    (out / _BACKEND).write_text(text, "utf-8")
    (out / _ABOUT).write_text(json.dumps(about, ensure_ascii=False), "utf-8")
    (out / _SIZES).write_bytes(array("i", sizes or []).tobytes())
    if not _is_vocabulary(directory / "tokenizer.json", backend):
        # Transformers made it of other files, or added tokens that stand in its configuration.
        (out / VOCABULARY).write_text(_without_post_processor(text).to_str(), "utf-8")


def _is_vocabulary(file: Path, backend: Any) -> bool:
    from tokenizers import Tokenizer

    vocabulary = backend.get_vocab(with_added_tokens=True)
    return file.exists() and bool(Tokenizer.from_file(str(file)).get_vocab() == vocabulary)


def _without_post_processor(text: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.post_processor = None
    return tokenizer


def open_encoder(settled: Path) -> Encoder:
    """Return the tokenizer that `settle` wrote down."""
    import numpy

    text = (settled / _BACKEND).read_text("utf-8")
    about = json.loads((settled / _ABOUT).read_text("utf-8"))
    plain = _without_post_processor(text)
    sizes = numpy.frombuffer((settled / _SIZES).read_bytes(), numpy.int32).astype(numpy.int64)
    return Encoder(
        text=text,
        plain=plain,
        templates=about["templates"],
        variables=about["variables"],
        enders=tuple(about["enders"]),
        bos_id=about["bos_id"],
        eos_id=about["eos_id"],
        words=None if about["spelling"] is None else words_of(about["spelling"], plain),
        sizes=sizes if about["has_sizes"] else None,
    )


def _check_equal(made: Any, own: Any, text: str) -> None:
    """Check ids against the tokenizer's own.

    Raises:
        RuleError: they differ.
    """
    if made.tolist() != own.tolist():
        raise _differs("other ids", text)


def _check_places(made: Offsets, own: Offsets, text: str) -> None:
    """Check that tokens stand for the same characters.

    Raises:
        RuleError: they do not.
    """
    import numpy

    # A token that is a part of a character stands, by the tokenizer, for all of it.
    places = numpy.arange(len(text) + 1) if made.characters is None else made.characters
    starts = numpy.searchsorted(places, made.starts, "right") - 1
    ends = numpy.searchsorted(places, made.ends, "left")
    if starts.tolist() != own.starts.tolist() or ends.tolist() != own.ends.tolist():
        raise _differs("tokens in other places", text)


def _differs(what: str, text: str) -> RuleError:
    return RuleError(
        f"the fast encoder gives {what} than the tokenizer; nothing was written",
        code="E0838",
        why=f"in the text {json.dumps(text[:80], ensure_ascii=False)}",
        fix="this is a fault of ftbuild: please report it with this text and the model's name",
    )
