"""Models that judge: a language model whose output layer gives way to a new head of one or two.

A whole one is a Transformers directory; one with `lora` holds the files of an adapter, in which
PEFT keeps the head too, beside `base.json`.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from ftbuild.api import Inputs, Model, Place, QuantizedModel, RewardModel, RuleError, Tokens
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.quantization._load import HEAD_NAMES, load_network
from ftbuild_rules.training import _loop, _policy, _run
from ftbuild_rules.training._lora import CONFIG_NAME, lora_config


@dataclass(frozen=True)
class Head:
    """What a judge tells."""

    task: Literal["SEQ_CLS", "TOKEN_CLS"]
    """Of a whole text, or of each of its tokens."""
    num_labels: int
    rule: str


class HeadInputs(Inputs):
    """What a judge is trained on."""

    model: Model | QuantizedModel
    """The base model, whose weights stay as they are when an adapter is trained."""
    adapter: RewardModel | None = None
    """Continue this one, trained by the same rule with `lora` on the same model."""
    quantized_from: Model | None = None
    """What `model` was quantized from, for `lora.init = "loftq"`."""
    data: Tokens
    """What to train on."""
    eval_data: Tokens | None = None
    """What to measure the loss on after each epoch."""


def require_adapter(adapter: RewardModel | None, head: Head) -> None:
    """Refuse to continue what is no adapter of this rule.

    Raises:
        RuleError: E0908.
    """
    if adapter is None:
        return
    path = adapter.path / CONFIG_NAME
    task = json.loads(path.read_bytes())["task_type"] if path.exists() else None
    if task == head.task:
        return
    why = "it holds all weights" if task is None else f"it is an adapter for {task}"
    raise RuleError(
        f"`{adapter.label or 'adapter'}` is no adapter that `{head.rule}` made",
        code="E0908",
        where=Place(path=CONFIG_NAME),
        why=f"{why}; an adapter for {head.task} is needed",
        fix=f"name a target of the rule `{head.rule}` that has a `lora` table",
    )


def load_judge(run: _run.Run, head: Head) -> Any:
    """Return the model to train, with its head and, if one is trained, its adapter.

    The weights of a new head are drawn with the seed set by `make_deterministic`.
    """
    import transformers

    classes = {
        "SEQ_CLS": transformers.AutoModelForSequenceClassification,
        "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    }

    def load(model: Base, dtype: Any, attention: str) -> Any:
        return load_network(
            classes[head.task],
            model,
            dtype=dtype,
            attn_implementation=attention,
            num_labels=head.num_labels,
            new_layers=HEAD_NAMES,
        )

    transformers.utils.logging.set_verbosity_error()  # a new head is meant
    model = _policy.load_policy(run, load)
    if run.params.lora is not None:
        from peft import get_peft_model

        name = next(name for name in HEAD_NAMES if hasattr(model, name))
        model = get_peft_model(
            model,
            lora_config(run.params.lora, task=head.task, heads=(name,), rows=run.token_rows),
        )
    for parameter in model.parameters():
        if parameter.requires_grad:  # a head beside coarse frozen weights
            parameter.data = parameter.data.float()
    return model


def save_judge(run: _run.Run, model: Any, head: Head) -> None:
    """Write what was trained, with what makes plain Transformers load the head too.

    Raises:
        RuleError: E0913: a value is not finite, or nothing was learned.
    """
    labels = [f"LABEL_{number}" for number in range(head.num_labels)]
    settings = {
        "architectures": [type(model).__name__],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        # The score of a text is read at its last token that is no padding.
        "pad_token_id": model.config.get_text_config().pad_token_id,
    }
    _loop.save(run, model, settings=settings)
