"""Load a model for computing with it, whether quantized or not."""

from typing import Any

from ftbuild.api import QuantizedModel, RewardModel, RuleError
from ftbuild_rules.models._trusted import runs_own_code
from ftbuild_rules.quantization._dequantize import Base

HEAD_NAMES = ("score", "classifier")
"""What Transformers calls the layer that scores a text or its tokens, by architecture."""


def load_network(
    kind: Any, model: Base | RewardModel, *, new_layers: tuple[str, ...] = (), **settings: Any
) -> Any:
    """Return the network of an artifact; its path is where it came from.

    `kind` is a class of Transformers' such as `AutoModelForCausalLM`; `new_layers` are those that
    it has and the artifact has not.

    Raises:
        RuleError: E0955: it has no such attention.
    """
    if isinstance(model, QuantizedModel) and new_layers:
        settings["config"] = _with_whole(model, new_layers, settings.pop("num_labels"))
    try:
        network = kind.from_pretrained(
            model.path,
            **settings,
            local_files_only=True,
            trust_remote_code=runs_own_code(model.path),
        )
    except ValueError as error:
        if "does not support an attention implementation" not in str(error):
            raise
        raise RuleError(
            f"`{model.label or 'model'}` has no attention `{settings['attn_implementation']}`",
            code="E0955",
            fix='set `attention = "eager"`',
        ) from error
    if isinstance(model, QuantizedModel):
        for module in network.modules():
            # On CPUs that have AVX512-BF16, bitsandbytes would round the scales to bfloat16 in
            # the first evaluation and go on with those: other numbers than on other CPUs, and
            # than those of a training that was not evaluated.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    return network


def _with_whole(model: QuantizedModel, new_layers: tuple[str, ...], num_labels: int) -> Any:
    """Return the settings by which new layers are not taken for quantized ones."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.path, num_labels=num_labels, local_files_only=True)
    skipped = config.quantization_config.get("llm_int8_skip_modules") or ["lm_head"]
    config.quantization_config["llm_int8_skip_modules"] = [*skipped, *new_layers]
    return config
