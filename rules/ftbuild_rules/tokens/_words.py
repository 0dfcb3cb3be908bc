"""Byte-level BPE, each word once: the ids of the tokenizer, several times as fast.

Such a tokenizer cuts a text at its added tokens, cuts what is between into words by a regular
expression, and makes ids of each word by itself. So a word's ids can be kept, and a text is a
search for words, a look-up for each, and one join of bytes. Words that are new are encoded by the
tokenizer's own model. Which characters are letters, digits and spaces must be certain, so a text
with characters beyond Latin, Greek, Cyrillic, punctuation, symbols and emoji is not taken; and a
tokenizer is taken only where it gives the same ids for probes of all of these characters.

"Hi there<|im_end|>" -> "Hi", " there", "<|im_end|>" -> 0x…, 0x…, 0x… -> [15, 612, 2]
"""

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_BLOCKS = (
    (0x0000, 0x024F),  # Latin
    (0x0370, 0x03FF),  # Greek
    (0x0400, 0x04FF),  # Cyrillic
    (0x2000, 0x206F),  # punctuation
    (0x20A0, 0x20BF),  # currency
    (0x2190, 0x23FF),  # arrows, mathematics, technical
    (0x2500, 0x27BF),  # boxes, shapes, dingbats
    (0xFE0F, 0xFE0F),  # the mark of emoji
    (0x1F300, 0x1F64F),  # emoji
    (0x1F680, 0x1F6FF),
)
# Of these, letters that equal an ASCII letter where case is ignored: regular expressions differ.
_FOLDED = frozenset("\u0130\u0131\u017f")
_SPACES = frozenset(
    "\t\n\x0b\x0c\r \x85\xa0\u2028\u2029\u202f\u205f" + "".join(map(chr, range(0x2000, 0x200B)))
)

_MAX_WORDS = 200_000
_MAX_WORD_CHARACTERS = 64
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"


@dataclass(frozen=True)
class Words:
    """A tokenizer whose words are encoded once."""

    find_ascii: Callable[[str], list[str]]
    """The words of a text of ASCII alone: small classes of characters are found faster."""
    find: Callable[[str], list[str]]
    split: Callable[[str], list[str]]
    """At added tokens, which stand at the odd places."""
    ids: "_Ids"

    def encode(self, text: str) -> bytes | None:
        """Return the ids of a text as int32; None where it is not certain what its words are."""
        find = self.find_ascii
        if not text.isascii():
            if _uncertain().search(text):
                return None
            find = self.find
        words: list[str] = []
        for place, part in enumerate(self.split(text)):
            if place & 1:
                words.append(part)
            elif part:
                words += find(part)
        return b"".join(map(self.ids.__getitem__, words))


class _Ids(dict[str, bytes]):
    """The ids of each word, as int32; it forgets them all when there are too many."""

    def __init__(self, model: Any, added: Mapping[str, int]) -> None:
        super().__init__(_added_ids(added))
        self._added = added
        self._model = model

    def __missing__(self, word: str) -> bytes:
        spelled = word.encode().decode("latin-1").translate(_alphabet())
        found = _as_bytes(token.id for token in self._model.tokenize(spelled))
        if len(word) <= _MAX_WORD_CHARACTERS:
            if len(self) >= _MAX_WORDS:
                self.clear()
                self.update(_added_ids(self._added))
            self[word] = found
        return found


def _as_bytes(ids: Iterator[int]) -> bytes:
    from array import array

    return array("i", ids).tobytes()


def _added_ids(added: Mapping[str, int]) -> dict[str, bytes]:
    return {token: _as_bytes(iter([number])) for token, number in added.items()}


@functools.lru_cache(maxsize=16)
def is_of_words(text: str) -> bool:
    """Say whether the ids of a tokenizer, given as its tokenizer.json, are made word by word.

    It is not enough that its settings say so: probes must have the tokenizer's own ids.
    """
    from tokenizers import Tokenizer

    described = json.loads(text)
    if _pattern(described, _ascii()) is None:
        return False
    tokenizer = Tokenizer.from_str(text)
    tokenizer.post_processor = None
    found = spelling(described)
    return _agrees(words_of(found, tokenizer), tokenizer, _longest_first(found["added"]))


def spelling(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return as JSON how a tokenizer is made of words; `described` is its tokenizer.json."""
    narrow, wide = (_pattern(described, characters) for characters in (_ascii(), _characters()))
    assert narrow is not None
    assert wide is not None
    added = {token["content"]: token["id"] for token in described["added_tokens"]}
    return {"narrow": narrow, "wide": wide, "added": added}


def words_of(spelled: Mapping[str, Any], tokenizer: Any) -> Words:
    """Return the words of a tokenizer that is made of them, as `spelling` describes it."""
    added = spelled["added"]
    parts = f"({'|'.join(map(re.escape, _longest_first(added)))})" if added else "(?!)()"
    return Words(
        _finder(spelled["narrow"]),
        _finder(spelled["wide"]),
        re.compile(parts).split,
        _Ids(tokenizer.model, added),
    )


def _longest_first(added: Iterable[str]) -> list[str]:
    """Return the added tokens as the tokenizer looks for them."""
    return sorted(added, key=lambda token: (-len(token), token))


def _finder(pattern: str) -> Callable[[str], list[str]]:
    return re.compile(pattern).findall


def byte_lengths(described: Mapping[str, Any]) -> list[int] | None:
    """Return how many bytes of a text each id stands for; None where that is not fixed."""
    model = described["model"]
    if model["type"] != "BPE" or (described.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    spelled = {**model["vocab"]}
    added = {token["content"]: token["id"] for token in described["added_tokens"]}
    sizes = [0] * (1 + max((*spelled.values(), *added.values())))
    for token, number in spelled.items():
        sizes[number] = len(token)
    for token, number in added.items():
        sizes[number] = len(token.encode())
    return sizes


def _pattern(described: Mapping[str, Any], characters: Sequence[str]) -> str | None:
    """Return the regular expression for the words of a tokenizer.json, None where it has none."""
    model = described["model"]
    is_plain = model["type"] == "BPE" and not any(
        model.get(key)
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    )
    normalizer = described.get("normalizer")
    is_whole = normalizer is None or normalizer == {"type": "NFC"}
    is_apart = not any(
        token["lstrip"] or token["rstrip"] or token["single_word"]
        for token in described["added_tokens"]
    )
    if not (is_plain and is_whole and is_apart):
        return None
    before = described.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", []) if before.get("type") == "Sequence" else [before]
    kinds = [step.get("type") for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    if not steps[-1].get("use_regex", True):
        return _split_pattern(steps[0], characters) if kinds == ["Split", "ByteLevel"] else None
    space, letter, digit = (_class(category, characters) for category in ("s", "L", "N"))
    tail = rf"| ?[^{space}{letter}{digit}]+|"
    if kinds == ["ByteLevel"]:
        rest = rf" ?[{digit}]+{tail}[{space}]+(?![^{space}])|[{space}]+"
        return f"{_CONTRACTIONS}| ?[{letter}]+|{rest}"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        # Digits are cut off first: spaces before one are at the end of what is left of it.
        rest = rf"[{digit}]{tail}[{space}]+(?![^{space}{digit}])|[{space}]+"
        return f"{_CONTRACTIONS}| ?[{letter}]+|{rest}"
    return None


def _split_pattern(step: Mapping[str, Any], characters: Sequence[str]) -> str | None:
    """Return the pattern of a `Split` in Python's words, None where it cannot be said in them."""
    written = step.get("pattern", {}).get("Regex")
    if written is None or step.get("behavior") != "Isolated" or step.get("invert"):
        return None
    out: list[str] = []
    is_class = False
    for found in re.finditer(r"\\p\{(\w+)\}|\\(.)|(.)", written, re.DOTALL):
        category, escaped, plain = found.groups()
        if category is not None or escaped == "s":
            members = _class(category or "s", characters)
            out.append(members if is_class else f"[{members}]")
        elif escaped == "S" and not is_class:
            out.append(f"[^{_class('s', characters)}]")
        elif escaped is not None:
            if escaped.isalpha() and escaped not in "rnt":
                return None
            out.append(f"\\{escaped}")
        else:
            is_class = plain == "[" or (is_class and plain != "]")
            out.append(plain)
    try:
        re.compile("".join(out))
    except re.error:
        return None
    return "".join(out)


@functools.cache
def _characters() -> tuple[str, ...]:
    """Return the characters whose sort is certain: NFC leaves them as they are, too."""
    return tuple(
        character
        for first, last in _BLOCKS
        for character in map(chr, range(first, last + 1))
        if unicodedata.category(character) != "Cn"
        and not unicodedata.combining(character)
        and unicodedata.is_normalized("NFC", character)
        and character not in _FOLDED
    )


@functools.cache
def _uncertain() -> re.Pattern[str]:
    return re.compile(f"[^{_ranges(_characters())}]")


@functools.cache
def _ascii() -> tuple[str, ...]:
    return tuple(character for character in _characters() if character.isascii())


def _class(category: str, characters: Sequence[str]) -> str:
    """Return those characters of a category of Unicode (`L`, `Lu`, …, `s`), as in a class."""
    if category == "s":
        return _ranges([character for character in characters if character in _SPACES])
    return _ranges([c for c in characters if unicodedata.category(c).startswith(category)])


def _ranges(characters: Sequence[str]) -> str:
    runs: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs)


@functools.cache
def _alphabet() -> dict[int, int]:
    """Return the character by which byte-level BPE spells each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{byte: byte for byte in shown}, **{b: 256 + n for n, b in enumerate(hidden)}}


_SURROUNDED = "{0}a{0} a{0}{0} {0}1{0} 1{0}.{0} .{0}  {0}\n\n {0}'s{0}'{0}\n{0}{0}{0}"
_ODD = (
    "it's I'll WE'RE they've'd 'm 't 'S' ''s",
    "  two   three \n\n\n four\r\n\r\n five\t\tsix \n",
    "1234567 12 345.678,90 a1b22c333 -1 +2 (3) 4%",
    "x = y[0]; // …!? (\"quoted\") <tag attr='v'/> {{a}} $100 #tag @user",
    "CamelCase snake_case UPPER lower Mixed123Numbers",
    "   ",
    "\n",
    "…\u00a0\u2003 x \u00a0y",
)


def _agrees(words: Words, tokenizer: Any, added: Sequence[str]) -> bool:
    """Say whether the probes have the tokenizer's own ids."""
    probes = [_SURROUNDED.format(character) for character in _characters()]
    probes += ["".join(one + other for other in _ascii()) for one in _ascii()]
    probes += [*_ODD, *(" ".join(reversed(text.split(" "))) for text in _ODD)]
    probes += [
        f"a {token}{one}b{token} {token}{token}\n" for token in added[:64] for one in " \n'!1"
    ]
    encoded = tokenizer.encode_batch_fast(probes, add_special_tokens=False)
    return all(
        words.encode(text) == _as_bytes(encoding.ids)
        for text, encoding in zip(probes, encoded, strict=True)
    )
