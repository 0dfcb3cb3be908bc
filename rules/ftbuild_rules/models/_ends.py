"""What a merge does to the two ends of a model: shared embeddings, and those of another size.

A model may use its input embedding as output layer too. An adapter that changes one of them and
not the other makes two weights of the one. An adapter that was trained with added tokens holds
whole embeddings of another size, and the merged model takes that size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftbuild.api import Place, RuleError
from ftbuild_rules.models._adapter_delta import WEIGHTS_NAME, Deltas
from ftbuild_rules.models._safetensors import StoredTensor, TensorSpec

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
OUTPUTS = ("lm_head.weight", "embed_out.weight")
_OUTPUT = OUTPUTS[0]


@dataclass(frozen=True)
class Ends:
    """How the ends of the merged model differ from the base's."""

    added: Mapping[str, TensorSpec]
    """The output layer that has to be written of its own, by the file it goes to."""
    resized: Mapping[str, TensorSpec]
    """Weights that get another number of rows, by name."""
    settings: Mapping[str, Any]
    """What changes in `config.json`."""

    @property
    def new(self) -> dict[str, TensorSpec]:
        """All weights that the base has not, or not in that shape, by name."""
        return {**self.resized, **{spec.name: spec for spec in self.added.values()}}


def ends(
    deltas: Sequence[Deltas],
    stored: Mapping[str, tuple[StoredTensor, ...]],
    config: Mapping[str, Any],
) -> Ends:
    """Return what becomes of the embeddings and the output layer.

    Raises:
        RuleError: E0931: the shared embedding is not found; E0934: sizes do not fit.
    """
    specs = {t.spec.name: t.spec for tensors in stored.values() for t in tensors}
    resized = _resized(deltas, specs)
    settings: dict[str, Any] = {}
    if resized:
        settings["vocab_size"] = next(iter(resized.values())).shape[0]
    added = _untied(deltas, stored, config)
    if added:
        settings["tie_word_embeddings"] = False
        added = {
            file: TensorSpec(
                spec.name, spec.dtype, (settings.get("vocab_size", spec.shape[0]), *spec.shape[1:])
            )
            for file, spec in added.items()
        }
    return Ends(added, resized, settings)


def _resized(deltas: Sequence[Deltas], specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    found: dict[str, TensorSpec] = {}
    for each in deltas:
        for name, delta in each.by_name.items():
            spec = specs.get(name)
            if (
                delta.replacement is None
                or spec is None
                or not name.endswith((*EMBEDDINGS, *OUTPUTS))
            ):
                continue
            shape = delta.replacement.spec.shape
            if shape != spec.shape and shape[1:] == spec.shape[1:]:
                found[name] = TensorSpec(name, spec.dtype, shape)
    if not found:
        return {}
    both = [name for name in specs if name.endswith((*EMBEDDINGS, *OUTPUTS))]
    sizes = {name: found[name].shape[0] if name in found else specs[name].shape[0] for name in both}
    if len(set(sizes.values())) > 1 or len(deltas) > 1:
        raise RuleError(
            "the adapter's vocabulary does not fit the model: "
            + ", ".join(f"`{name}` has {size} rows" for name, size in sorted(sizes.items())),
            code="E0934",
            where=Place(path=WEIGHTS_NAME),
            fix="merge it by itself, with both embeddings in it"
            if len(deltas) > 1
            else "save input embedding and output layer both in the adapter (`modules_to_save`)",
        )
    return found


def _untied(
    deltas: Sequence[Deltas],
    stored: Mapping[str, tuple[StoredTensor, ...]],
    config: Mapping[str, Any],
) -> dict[str, TensorSpec]:
    changed = [
        name
        for each in deltas
        for name in each.by_name
        if name.endswith((*EMBEDDINGS, _OUTPUT)) and not each.keeps_tying
    ]
    names = {t.spec.name for tensors in stored.values() for t in tensors}
    is_tied = config.get("tie_word_embeddings", False) and _OUTPUT not in names
    if not changed or not is_tied:
        return {}
    for name, tensors in stored.items():
        for tensor in tensors:
            if tensor.spec.name.endswith(EMBEDDINGS):
                return {name: TensorSpec(_OUTPUT, tensor.spec.dtype, tensor.spec.shape)}
    raise RuleError(
        f"the adapter changes `{changed[0]}`, which the model shares between input and output",
        code="E0931",
        fix="train without `modules_to_save` and without adapting embeddings",
    )
