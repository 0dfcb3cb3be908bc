"""What an artifact may be, which files each kind must hold, and which parts it has.

A rule's inputs are typed by these classes; in a manifest such an input is a label. At run
time the rule gets an instance: where the files are, and their digest.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

from ftbuild.digest import Digest


@dataclass(frozen=True)
class Artifact:
    """A rule's output: a read-only directory of files."""

    path: Path
    digest: Digest
    label: str = ""
    """Who made it, for messages only: it is in no key and must reach no output."""

    kind: ClassVar[str] = "artifact"
    must_hold: ClassVar[tuple[str, ...]] = ()
    """Patterns; an artifact of this kind has a file for each of them."""


class Dataset(Artifact):
    """Rows in their normal form: shards `data/train-00000.arrow` and so on."""

    kind = "dataset"
    must_hold = ("data/*.arrow",)


class Tokens(Artifact):
    """Token ids and labels: shards `data/train-00000.arrow` and so on.

    `tokens.json` names their form: `sft` (columns input_ids, labels, seq_lengths if packed),
    `preference` (prompt_ids, chosen_ids, rejected_ids), `unpaired` (prompt_ids, completion_ids,
    label), `stepwise` (input_ids, labels), `prompts` (prompt_ids, metadata: JSON as text).
    """

    kind = "tokens"
    must_hold = ("data/*.arrow",)


class Model(Artifact):
    """A directory that Transformers' `from_pretrained` loads."""

    kind = "model"
    must_hold = ("config.json", "*.safetensors")


class QuantizedModel(Artifact):
    """A model whose weights are stored in few bits, with its `quantization_config`."""

    kind = "quantized_model"
    must_hold = ("config.json", "*.safetensors")


class Adapter(Artifact):
    """A directory that PEFT loads, for one base model."""

    kind = "adapter"
    must_hold = ("adapter_config.json", "adapter_model.safetensors")


class RewardModel(Artifact):
    """A model, or an adapter with its head, that gives a score to a text."""

    kind = "reward_model"
    must_hold = ("*.safetensors",)


class Report(Artifact):
    """Figures and texts about other artifacts: `report.json` and what it names."""

    kind = "report"
    must_hold = ("report.json",)


class File(Artifact):
    """Any files; what a shell command leaves."""

    kind = "file"


KINDS: tuple[type[Artifact], ...] = (
    Dataset,
    Tokens,
    Model,
    QuantizedModel,
    Adapter,
    RewardModel,
    Report,
    File,
)

KINDS_BY_NAME = {kind.kind: kind for kind in KINDS}


@dataclass(frozen=True)
class Part:
    """Some files of an artifact, as an input of its own: its digest alone is in the key.

    Used as `model: Annotated[Model, TOKENIZER]`.
    """

    name: str
    patterns: tuple[str, ...]

    def holds(self, path: str) -> bool:
        """Say whether the file `path` of an artifact belongs to this part."""
        return any(fnmatchcase(path, pattern) for pattern in self.patterns)


TOKENIZER = Part(
    "tokenizer",
    (
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/*",
    ),
)
"""All that turns text into ids, and not a byte of the weights."""


def missing_files(kind: type[Artifact], paths: list[str]) -> list[str]:
    """Return the patterns of `kind` for which `paths` has no file."""
    return [
        pattern
        for pattern in kind.must_hold
        if not any(fnmatchcase(path, pattern) for path in paths)
    ]
