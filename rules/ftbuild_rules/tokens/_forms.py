"""What the rows of each normal form of a dataset become, and which attributes mean something there.

| form of the dataset | of the tokens | columns |
| --- | --- | --- |
| messages, text, segments, tokenized | sft | input_ids, labels (seq_lengths if packed) |
| preference | preference | prompt_ids, chosen_ids, rejected_ids |
| unpaired | unpaired | prompt_ids, completion_ids, label |
| stepwise | stepwise | input_ids, labels: 1 or 0 where a right or wrong step ends |
| prompts | prompts | prompt_ids, metadata |
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ftbuild_rules.tokens._masks import MASKED
from ftbuild_rules.tokens._preference import preference_rows
from ftbuild_rules.tokens._prompts import prompt_rows
from ftbuild_rules.tokens._sft import Overflow, Tally, Task, sft_rows
from ftbuild_rules.tokens._stepwise import stepwise_rows
from ftbuild_rules.tokens._unpaired import unpaired_rows

TEMPLATES = (
    "chat_template",
    "chat_template_jinja",
    "default_system_message",
    "template_variables",
)
MASKS = ("train_on", "last_turn_only", "train_on_reasoning", "train_on_tool_calls")
STEPS = ("step_separator", "train_on_last_step_only")
_ALL_MASKS = (*MASKS, "train_on_inputs")

Make = Callable[[Task, Sequence[tuple[int, dict[str, Any]]], Tally], Iterator[tuple[int, Any]]]


@dataclass(frozen=True)
class TokenForm:
    """What rows of one normal form become."""

    name: str
    """As `tokens.json` says it."""
    columns: tuple[str, ...]
    make: Make
    """Yields a row's number and a value for each column, row by row, in their order."""
    uses_template: bool
    unused: tuple[str, ...]
    """Attributes that mean nothing for these rows."""
    why: str
    no_overflow: tuple[Overflow, ...] = ()
    """What cannot be done to a row that is too long."""
    why_overflow: str = ""

    def num_trained(self, row: Sequence[Any]) -> int:
        """Return how many tokens of a row are trained on."""
        import numpy

        by_name = dict(zip(self.columns, row, strict=False))
        if "labels" in by_name:
            return int(numpy.count_nonzero(numpy.asarray(by_name["labels"]) != MASKED))
        answers = ("chosen_ids", "rejected_ids", "completion_ids")
        return sum(len(by_name[name]) for name in answers if name in by_name)

    def num_tokens(self, row: Sequence[Any]) -> int:
        """Return how many tokens a row has."""
        by_name = zip(self.columns, row, strict=False)
        return sum(len(value) for name, value in by_name if name.endswith("_ids"))


_SFT = ("input_ids", "labels")
_HALF = "the second half of an answer is no answer to the prompt"

FORMS = {
    "messages": TokenForm("sft", _SFT, sft_rows, True, STEPS, ""),
    "text": TokenForm(
        "sft",
        _SFT,
        sft_rows,
        False,
        (*_ALL_MASKS, *TEMPLATES, "eot_tokens", *STEPS),
        "all of a text is trained on",
    ),
    "segments": TokenForm(
        "sft",
        _SFT,
        sft_rows,
        False,
        (*MASKS, *TEMPLATES, *STEPS),
        "segments are one plain text, and each says whether it is trained on",
    ),
    "tokenized": TokenForm(
        "sft",
        _SFT,
        sft_rows,
        False,
        (*_ALL_MASKS, "train_on_eot", *TEMPLATES, *STEPS),
        "ids and labels are taken as they are",
    ),
    "preference": TokenForm(
        "preference",
        ("prompt_ids", "chosen_ids", "rejected_ids"),
        preference_rows,
        True,
        (*_ALL_MASKS, "train_on_eot", "packing", *STEPS),
        "of a preference pair the two answers are trained on",
        ("split",),
        _HALF,
    ),
    "unpaired": TokenForm(
        "unpaired",
        ("prompt_ids", "completion_ids", "label"),
        unpaired_rows,
        True,
        (*_ALL_MASKS, "train_on_eot", "packing", *STEPS),
        "the answer to each prompt is trained on",
        ("split",),
        _HALF,
    ),
    "stepwise": TokenForm(
        "stepwise",
        _SFT,
        stepwise_rows,
        False,
        (*_ALL_MASKS, "train_on_eot", "eot_tokens", "packing", *TEMPLATES),
        "the texts are plain, and a label stands where each step ends",
        ("split",),
        "the second half of a solution lacks its problem",
    ),
    "prompts": TokenForm(
        "prompts",
        ("prompt_ids", "metadata"),
        prompt_rows,
        True,
        (*_ALL_MASKS, "train_on_eot", "eot_tokens", "packing", *STEPS),
        "the model answers these prompts itself",
        ("split", "truncate"),
        "half of a prompt is another prompt",
    ),
}
