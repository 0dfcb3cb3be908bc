"""The tokenizer of a model: the one seam through which text becomes ids.

Ids are those of `AutoTokenizer` on the same directory; its Rust core is called in batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftbuild.api import Place, RuleError
from ftbuild_rules.templates._render import Template

Offsets = list[tuple[int, int]]


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, ready for batches."""

    backend: Any
    """The `tokenizers.Tokenizer` as Transformers set it up."""
    plain: Any
    """The same without a post-processor: it adds no token, and its offsets are not trimmed."""
    templates: dict[str, str]
    """The tokenizer's own chat templates; the usual one is `default`."""
    variables: dict[str, str]
    enders: tuple[str, ...]
    bos_id: int | None
    eos_id: int | None

    def encode(self, texts: Sequence[str], *, with_special_tokens: bool = False) -> list[list[int]]:
        """Return the ids of each text."""
        encoder = self.backend if with_special_tokens else self.plain
        found = encoder.encode_batch_fast(list(texts), add_special_tokens=with_special_tokens)
        return [encoding.ids for encoding in found]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        """Return the ids of each text, and the characters that each token stands for."""
        found = self.plain.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in found]

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
    from tokenizers import Tokenizer
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
    plain = Tokenizer.from_str(backend.to_str())
    plain.post_processor = None
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {token for token in (tokenizer.eos_token,) if token}
    templates = tokenizer.chat_template or {}
    return Encoder(
        backend=backend,
        plain=plain,
        templates={"default": templates} if isinstance(templates, str) else templates,
        variables=dict(tokenizer.special_tokens_map),
        enders=tuple(sorted(special, key=lambda token: (-len(token), token))),
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
    )
