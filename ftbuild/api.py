"""All that the author of a rule imports."""

from pydantic import Field

from ftbuild.digest import Digest, canonical_json, hash_bytes, hash_file, hash_value
from ftbuild.errors import Place, RuleError
from ftbuild.imported import Imported, ImportProblem, Key, Note, Table
from ftbuild.kinds import (
    TOKENIZER,
    Adapter,
    Artifact,
    Dataset,
    File,
    Model,
    Part,
    QuantizedModel,
    Report,
    RewardModel,
    Tokens,
)
from ftbuild.outside import Function, Source, SourceFile, Variable
from ftbuild.rule import (
    AttributeProblem,
    Command,
    Context,
    Fragment,
    Inputs,
    Params,
    Piece,
    rule,
)
from ftbuild.view import View

__all__ = [
    "TOKENIZER",
    "Adapter",
    "Artifact",
    "AttributeProblem",
    "Command",
    "Context",
    "Dataset",
    "Digest",
    "Field",
    "File",
    "Fragment",
    "Function",
    "ImportProblem",
    "Imported",
    "Inputs",
    "Key",
    "Model",
    "Note",
    "Params",
    "Part",
    "Piece",
    "Place",
    "QuantizedModel",
    "Report",
    "RewardModel",
    "RuleError",
    "Source",
    "SourceFile",
    "Table",
    "Tokens",
    "Variable",
    "View",
    "canonical_json",
    "hash_bytes",
    "hash_file",
    "hash_value",
    "rule",
]
