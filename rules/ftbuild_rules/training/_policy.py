"""The network that is trained: loaded, and with the adapter that it continues."""

from typing import Any, Protocol

from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.quantization._load import load_network
from ftbuild_rules.training._quantized import keep_precision
from ftbuild_rules.training._run import Run
from ftbuild_rules.training._start import weigh_directions


class LoadModel(Protocol):
    """How a method loads its network: what it is, its type, its attention."""

    def __call__(self, model: Base, dtype: Any, attention: str) -> Any: ...


def load_base(model: Base, dtype: Any, attention: str) -> Any:
    """Return the causal language model of an artifact; its path is where it came from."""
    from transformers import AutoModelForCausalLM

    return load_network(AutoModelForCausalLM, model, dtype=dtype, attn_implementation=attention)


def load_policy(run: Run, load: LoadModel = load_base) -> Any:
    """Return the model to train: with the adapter to continue, else as it is."""
    import torch

    frozen = run.inputs.adapter is not None or run.params.lora is not None
    launch = run.params.launch
    # What is trained stays float32; frozen weights may be as coarse as the computation, but where
    # they are sharded together with those they must be of one type.
    is_mixed = launch is not None and launch.strategy == "fsdp"
    dtype = getattr(torch, run.params.dtype) if frozen and not is_mixed else torch.float32
    model = load(run.inputs.model, dtype, run.params.attention)
    if run.inputs.adapter is None:
        weigh_directions(run, model)
        return model
    from peft import PeftModel

    policy = PeftModel.from_pretrained(model, run.inputs.adapter.path, is_trainable=True)
    keep_precision(policy)
    return policy
