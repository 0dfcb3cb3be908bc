"""What config.json says of a quantized model, as Transformers reads it."""

import re
from typing import Any

from ftbuild_rules.quantization._layers import Layers


def quantized_config(config: dict[str, Any], params: Any, layers: Layers) -> dict[str, Any]:
    """Return the model's settings with those of the quantization, by the params of `quantize`."""
    from transformers import BitsAndBytesConfig

    if params.dtype != "auto":
        config = {key: value for key, value in config.items() if key != "torch_dtype"}
        config["dtype"] = params.dtype
    if params.method == "gptq":
        settings = {
            "bits": params.bits,
            "checkpoint_format": "gptq",
            "desc_act": params.act_order,
            "format": "gptq",
            "group_size": params.group_size,
            "lm_head": False,
            "meta": {"damp_percent": params.damping, "quantizer": ["ftbuild"]},
            "method": "gptq",
            "pack_dtype": "int32",
            "quant_method": "gptq",
            "sym": True,
        }
        if layers.skipped:
            patterns = [f"-:{re.escape(name)}" for name in layers.skipped]
            settings["dynamic"] = {pattern: {} for pattern in patterns}
        return {**config, "quantization_config": settings}
    settings = BitsAndBytesConfig(
        load_in_8bit=params.method == "int8",
        load_in_4bit=params.method != "int8",
        llm_int8_threshold=params.outlier_threshold,
        llm_int8_skip_modules=list(layers.skipped) or None,
        bnb_4bit_compute_dtype=params.compute_dtype,
        bnb_4bit_quant_type=params.method if params.method != "int8" else "fp4",
        bnb_4bit_use_double_quant=params.double_quantization,
    ).to_dict()
    return {**config, "quantization_config": settings}
