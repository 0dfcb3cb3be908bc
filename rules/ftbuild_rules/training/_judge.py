"""Reward models as rewards of `grpo`: a score for the ids of prompt and completion together."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ftbuild.api import Place, RewardModel, RuleError
from ftbuild_rules.models._files import TEMPLATE_NAME
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.quantization._load import HEAD_NAMES, load_network
from ftbuild_rules.training._lora import BASE_NAME, CONFIG_NAME
from ftbuild_rules.training._shards import TokenRows, template_digest

_HEAD = "ForSequenceClassification"


@dataclass(frozen=True)
class Judge:
    """A reward model and the model whose weights it needs besides its own."""

    model: RewardModel
    base: Base | None

    @property
    def name(self) -> str:
        """Return how figures and messages call it."""
        return self.model.label or "reward_model"

    @cached_property
    def network(self) -> Any:
        """Load the network, in float32."""
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()  # a base has no head of its own
        network = load_network(
            transformers.AutoModelForSequenceClassification,
            self.model if self.base is None else self.base,
            new_layers=HEAD_NAMES,
            dtype=torch.float32,
            num_labels=1,
        )
        if self.base is not None:
            from peft import PeftModel

            network = PeftModel.from_pretrained(network, self.model.path)
        return network.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def scores(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """Return the score of each text, given as ids.

        One by one: beside a longer text, a score would differ in its last digits.
        """
        import torch

        found = []
        for ids in texts:
            ids_1T = torch.tensor([list(ids)], device=self.network.device)
            with torch.no_grad():
                logits = self.network(input_ids=ids_1T, attention_mask=ids_1T * 0 + 1).logits
            found.append(float(logits[0, 0]))
        return found


def make_judge(
    model: RewardModel, rows: TokenRows, bases: Sequence[Base], *, other_template: bool
) -> Judge:
    """Return a reward model ready to judge, if it reads the same ids as the policy `bases[0]`.

    Raises:
        RuleError: E0916: its base is none of `bases`, or it reads other ids.
    """
    if (model.path / CONFIG_NAME).exists():
        task = json.loads((model.path / CONFIG_NAME).read_bytes())["task_type"]
        base = _base_of(model, bases)
        known = base.path
    else:
        names = json.loads((model.path / "config.json").read_bytes()).get("architectures") or [""]
        task = "SEQ_CLS" if names[0].endswith(_HEAD) else names[0]
        base, known = None, model.path
    label = model.label or "reward_model"
    if task != "SEQ_CLS":
        raise _unfit(
            f"`{label}` does not score a whole text",
            f"it is a model for {task}",
            "name a target of the rule `reward_model`",
        )
    if _file(known, "tokenizer.json") != _file(bases[0].path, "tokenizer.json"):
        raise _unfit(
            f"`{label}` has another tokenizer than `{bases[0].label or 'model'}`",
            "the ids of a completion would mean other texts to it",
            "train the reward model on the model that is trained here",
        )
    own = _file(model.path, TEMPLATE_NAME) or _file(known, TEMPLATE_NAME)
    given = rows.template or ""
    if not other_template and template_digest(own.decode()) != template_digest(given):
        raise _unfit(
            f"`{label}` was trained on another chat template than the prompts' of `{rows.label}`",
            "it would judge texts of a form that it has never seen",
            "tokenize both with one template, or set `other_template = true`",
        )
    return Judge(model, base)


def _base_of(model: RewardModel, bases: Sequence[Base]) -> Base:
    wanted = json.loads((model.path / BASE_NAME).read_bytes()).get("base")
    for base in bases:
        if base.digest == wanted:
            return base
    names = " and ".join(f"`{base.label or 'model'}`" for base in bases)
    raise _unfit(
        f"`{model.label or 'reward_model'}` is an adapter of another model than {names}",
        f"its base has the digest {wanted}",
        "name its base as `reward_base`",
    )


def _unfit(what: str, why: str, fix: str) -> RuleError:
    return RuleError(what, code="E0916", where=Place(path="reward_models"), why=why, fix=fix)


def _file(folder: Any, name: str) -> bytes:
    path = folder / name
    found: bytes = path.read_bytes() if path.exists() else b""
    return found


def closing_ids(tokenizer: Any, template: str | None, ends: Sequence[int]) -> list[int]:
    """Return what the chat template puts after the end of an answer, such as a newline.

    A reward model has seen it behind each completion, and a completion that is generated ends
    before it.
    """
    if template is None:
        return []
    told = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(told, chat_template=template, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    last = max((place for place, each in enumerate(ids) if each in ends), default=len(ids))
    return ids[last + 1 :]


def end_ids(model: Base, tokenizer: Any) -> list[int]:
    """Return the ids that end a completion of `model`, as TRL finds them."""
    found: list[Any] = [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        if (model.path / name).exists():
            given = json.loads((model.path / name).read_bytes()).get("eos_token_id")
            found += given if isinstance(given, list) else [given]
            break
    return sorted({each for each in found if each is not None})
