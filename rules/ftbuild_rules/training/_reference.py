"""Reference log-probabilities as an artifact: what it holds, and when it may be used.

`data/train-00000.arrow` has a row for each row of the tokens: `chosen_logps` and
`rejected_logps` (or `logps`) in nats, summed over a completion, and `*_shared_logps` over as many
tokens as the shorter completion has. `kl.arrow` has the mismatched completions of `kto`, in its
order. `reference.json` names what they were computed from, by digest: for any other tokens,
model or adapter the numbers mean nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftbuild.api import Adapter, Artifact, AttributeProblem, File, Place, RuleError, Tokens
from ftbuild_rules.data._arrow import read_table, shard_paths
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.training import _settings
from ftbuild_rules.training._lora import CONFIG_NAME, MOVES_BASE, Lora
from ftbuild_rules.training._settings import TrainingInputs, TrainingParams

INDEX_NAME = "reference.json"
KL_NAME = "kl.arrow"


class ReferencedInputs(TrainingInputs):
    """What a method with a reference trains on."""

    reference: File | None = None
    """Log-probabilities of the reference, by `reference_logprobs` on the same tokens, model and
    adapter. Without it they are computed here, in each step."""
    eval_reference: File | None = None
    """The same for `eval_data`."""


@dataclass(frozen=True)
class Reference:
    """What the numbers were computed from."""

    tokens: str
    model: str
    adapter: str | None
    dtype: str
    kl: dict[str, int] | None
    """`batch_size` and `seed` of the order in which `kto` needs them."""

    @classmethod
    def of(
        cls,
        inputs: tuple[Base, Artifact | None, Tokens],
        *,
        dtype: str,
        kl: dict[str, int] | None = None,
    ) -> "Reference":
        """Return the description for a model, an adapter or None, and tokens."""
        model, adapter, tokens = inputs
        return cls(
            tokens.digest, model.digest, None if adapter is None else adapter.digest, dtype, kl
        )


def check(kinds: Mapping[str, tuple[str, ...]], params: TrainingParams) -> None:
    """Refuse attributes that exclude each other, and half of a reference.

    Raises:
        AttributeProblem: there are such.
    """
    _settings.check(kinds, params)
    if params.lora is not None:
        require_start_of_base(params.lora)
    if params.lora is not None and "reference" not in kinds:
        require_unmoved(params.lora)
    if "eval_reference" in kinds and not {"reference", "eval_data"} <= set(kinds):
        raise AttributeProblem(
            "eval_reference",
            "`eval_reference` belongs to `eval_data`, and to `reference` for `data`",
            "name all three, or remove it",
        )
    if {"reference", "eval_data"} <= set(kinds) and "eval_reference" not in kinds:
        raise AttributeProblem(
            "reference",
            "with `reference` no reference model is loaded, so `eval_data` needs `eval_reference`",
            "add a `reference_logprobs` target on `eval_data` and name it as `eval_reference`",
        )


def moves_base(lora: Lora) -> str | None:
    """Return the setting of an adapter that changes weights of its base, if there is one."""
    if lora.bias != "none":
        return f'bias = "{lora.bias}"'
    return f'init = "{lora.init}"' if lora.init in MOVES_BASE else None


def require_start_of_base(lora: Lora) -> None:
    """Refuse an adapter that does not begin as its base, where the reference is that beginning.

    Raises:
        AttributeProblem: it is such a one.
    """
    if lora.init == "loftq":
        raise AttributeProblem(
            "lora",
            '`lora.init = "loftq"` begins as another model than the base, which is the reference '
            "here",
            "train it by `sft` first, and name that as `adapter`; or begin in another way",
        )


def require_unmoved(lora: Lora) -> None:
    """Refuse adapters without which the base is no longer what it was before the first step.

    Raises:
        AttributeProblem: it is such a one.
    """
    if moved := moves_base(lora):
        raise AttributeProblem(
            "lora",
            f"`lora.{moved}` changes weights of the base, which is the reference here",
            "begin in another way, or name a `reference_logprobs` target as `reference`",
        )


def require_still_base(
    adapter: Adapter | None,
    given: File | None,
    *,
    fix: str = "add a `reference_logprobs` target and name it as `reference`",
) -> None:
    """Refuse to continue an adapter that trains biases of the base, which the reference shares.

    Raises:
        RuleError: E0909.
    """
    if adapter is None or given is not None:
        return
    settings = json.loads((adapter.path / CONFIG_NAME).read_bytes())
    if settings.get("bias", "none") != "none":
        raise RuleError(
            f"`{adapter.label or 'adapter'}` trains biases of the base, and the reference has "
            "the same ones: it would move along",
            code="E0909",
            where=Place(path=CONFIG_NAME),
            fix=fix,
        )


def read_reference(given: File, wanted: Reference) -> Any:
    """Return the table of log-probabilities, if they are those of what is `wanted`.

    Raises:
        RuleError: E0909: they are of something else, or there are none.
    """
    require_reference(given, wanted)
    return read_table(shard_paths(given.path)[0])


def read_kl(given: File) -> Any:
    """Return the log-probabilities of the mismatched completions, in the order of `kto`."""
    return read_table(given.path / KL_NAME).column("kl_logps")


def require_reference(given: File, wanted: Reference) -> None:
    """Refuse log-probabilities that mean nothing here.

    Raises:
        RuleError: E0909.
    """
    label = given.label or "reference"
    path = given.path / INDEX_NAME
    if not path.exists():
        raise RuleError(
            f"`{label}` holds no reference log-probabilities",
            code="E0909",
            where=Place(path=label),
            fix="name a target of the rule `reference_logprobs`",
        )
    found = json.loads(path.read_bytes())
    for name, what in (
        ("tokens", "other tokens"),
        ("model", "another model"),
        ("adapter", "another adapter"),
    ):
        if found[name] != getattr(wanted, name):
            raise _error(
                label,
                f"`{label}` was computed with {what}: its numbers have no meaning here",
                f"it has the digest {found[name]}; here it is {getattr(wanted, name)}",
                f"give `reference_logprobs` the same `{'data' if name == 'tokens' else name}`",
            )
    if found["dtype"] != wanted.dtype:
        raise _error(
            label,
            f"`{label}` was computed in {found['dtype']}, and this trains in {wanted.dtype}",
            "their difference would count as a preference",
            f'set `dtype = "{wanted.dtype}"` there',
        )
    if wanted.kl is not None and found["kl"] != wanted.kl:
        size, seed = wanted.kl["batch_size"], wanted.kl["seed"]
        raise _error(
            label,
            f"`{label}` lacks the mismatched completions that `kto` compares in this order",
            f"they follow from `batch_size` and `seed`; it was made with {found['kl']}",
            f"set `kl_batch_size = {size}` and `seed = {seed}` there",
        )


def _error(label: str, what: str, why: str, fix: str) -> RuleError:
    return RuleError(what, code="E0909", where=Place(path=label), why=why, fix=fix)
