"""How each family writes a conversation, put together without Jinja: what templates are held to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chat_kit import SPECIAL

MORE_SPECIAL = [
    "<|im_sep|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end|>", "<|user|>",
    "<|system|>", "<|assistant|>", "<end_of_turn>", "<start_of_turn>",
    "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend▁of▁sentence\uff5c>",
    "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>",
    "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]",
]  # fmt: skip
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


@dataclass(frozen=True)
class Form:
    """How a family writes a conversation; `{}` is the place of the text."""

    user: str
    prompt: str
    """Opens an answer."""
    says: str
    after: str = ""
    """Follows an answer, if another message comes."""
    end: str | None = None
    """Follows the last answer; None: as the others."""
    system: str | None = None
    """None: the family has no system message."""
    folds: bool = False
    """The system message stands within the first question."""
    no_system: str = ""
    """In the place of a system message that is not given."""
    bos: str = ""
    trims: bool = False


def turns(head: str, tail: str, **settings: Any) -> Form:
    """Return the form of a family in which all turns look alike; `{role}` is the role."""
    user, system, prompt = (head.format(role=r) for r in ("user", "system", "assistant"))
    return Form(
        user=f"{user}{{}}{tail}",
        prompt=settings.pop("prompt", prompt),
        system=settings.pop("system", f"{system}{{}}{tail}"),
        says=settings.pop("says", f"{{}}{tail.rstrip()}"),
        after=tail[len(tail.rstrip()) :],
        **settings,
    )


def mistral(space: str) -> Form:
    return Form(
        user=f"[INST]{space}{{}}[/INST]",
        prompt="",
        says=f"{space}{{}}</s>",
        system=f"[SYSTEM_PROMPT]{space}{{}}[/SYSTEM_PROMPT]",
        bos="<s>",
    )


def folded(user: str, says: str, *, trims: bool = False) -> Form:
    return Form(user, "", says, system="{}\n\n", folds=True, bos="<s>", trims=trims)


HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"
FORMS = {
    "alpaca": Form(
        "### Instruction:\n{}\n\n", "### Response:\n", "{}</s>", "\n\n", "",
        system="{}\n\n", no_system=ALPACA, bos="<s>",
    ),
    "chatml": turns("<|im_start|>{role}\n", "<|im_end|>\n"),
    "command-r": Form(
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "{}<|END_OF_TURN_TOKEN|>",
        system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        bos="<s>", trims=True,
    ),
    "deepseek-v2": Form(
        "User: {}\n\n", "Assistant:", " {}</s>", system="{}\n\n", bos="<s>"
    ),
    "deepseek-v3": Form(
        "<\uff5cUser\uff5c>{}", "<\uff5cAssistant\uff5c>", "{}<\uff5cend▁of▁sentence\uff5c>",
        system="{}", bos="<s>",
    ),
    "falcon": Form(
        "\n\nUser: {}", "\n\nAssistant:", " {}</s>", system="{}", trims=True
    ),
    "falcon3": Form(
        "<|user|>\n{}\n", "<|assistant|>\n", "{}</s>", "\n", "", system="<|system|>\n{}\n"
    ),
    "gemma": Form(
        "<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n", "{}<end_of_turn>",
        "\n", bos="<s>", trims=True,
    ),
    "gemma3": Form(
        "<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n", "{}<end_of_turn>",
        "\n", system="{}\n\n", folds=True, bos="<s>", trims=True,
    ),
    "granite": turns("<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n"),
    "llama2": folded("<s>[INST] {} [/INST]", " {} </s>", trims=True),
    "llama3": turns(HEADER, "<|eot_id|>", bos="<s>", trims=True),
    "llama3.1": turns(
        HEADER, "<|eot_id|>", bos="<s>", trims=True,
        system=HEADER.format(role="system") + DATES + "{}<|eot_id|>",
        no_system=HEADER.format(role="system") + DATES + "<|eot_id|>",
    ),
    "mistral-v1": folded(" [INST] {} [/INST]", " {}</s>"),
    "mistral-v3": folded("[INST] {}[/INST]", " {}</s>"),
    "mistral-v3-tekken": folded("[INST]{}[/INST]", "{}</s>"),
    "mistral-v7": mistral(" "),
    "mistral-v7-tekken": mistral(""),
    "openchat": Form(
        "GPT4 Correct User: {}<|end_of_turn|>", "GPT4 Correct Assistant:", " {}<|end_of_turn|>",
        system="GPT4 Correct System: {}<|end_of_turn|>", bos="<s>",
    ),
    "phi3": turns("<|{role}|>\n", "<|end|>\n", end="\n</s>"),
    "phi4": turns("<|im_start|>{role}<|im_sep|>", "<|im_end|>"),
    "plain": Form("{}", "", "{}</s>", system="{}"),
    "qwen2.5": turns(
        "<|im_start|>{role}\n", "<|im_end|>\n", no_system=f"{QWEN}<|im_end|>\n"
    ),
    "qwen3": turns("<|im_start|>{role}\n", "<|im_end|>\n"),
    "vicuna": Form(
        "USER: {} ", "ASSISTANT:", " {}</s>", system="{} ", no_system=VICUNA, bos="<s>"
    ),
    "zephyr": turns("<|{role}|>\n", "</s>\n"),
}  # fmt: skip
ALSO = {
    "deepseek": "deepseek-v3", "gemma2": "gemma", "gpt-j": "plain", "llama3.2": "llama3.1",
    "llama3.3": "llama3.1", "mixtral": "mistral-v1", "phi3.5": "phi3", "pythia": "plain",
}  # fmt: skip
# Whose system message or question keeps white space that the rest of the family trims.
UNTRIMMED_SYSTEM = ("command-r", "gemma3")
NO_THOUGHT = "<think>\n\n</think>\n\n"


def says(name: str, text: str, *, is_last: bool) -> str:
    """Return what the assistant says, its end token included."""
    form = FORMS[name]
    text = text.strip() if form.trims or name == "mistral-v3" else text
    if name == "qwen3" and is_last:
        text = NO_THOUGHT + text.lstrip("\n")
    return form.says.replace("{}", text)


def written(name: str, system: str | None, pairs: Sequence[tuple[str, str]]) -> str:
    """Return a whole conversation as the family writes it."""
    form = FORMS[name]
    head = form.no_system
    if system is not None:
        assert form.system is not None
        trims = form.trims and name not in (*UNTRIMMED_SYSTEM, "llama2")
        head = form.system.replace("{}", system.strip() if trims else system)
    if name == "llama2" and system is not None:
        head = f"<<SYS>>\n{system}\n<</SYS>>\n\n"
    text = form.bos if name != "llama2" else ""
    text += "" if form.folds else head
    for number, (question, answer) in enumerate(pairs):
        if form.trims and not (name == "llama2" and number == 0 and head):
            question = question.strip()
        if form.folds and number == 0:
            question = head + question
            question = question.strip() if name == "llama2" else question
        is_last = number == len(pairs) - 1
        text += form.user.replace("{}", question) + form.prompt
        text += says(name, answer, is_last=is_last)
        text += form.after if form.end is None or not is_last else form.end
    return text


def pieces(name: str, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Return for each answer what stands before it, what is said, and the end token of it.

    The last one holds what follows the last answer.
    """
    form, whole, at = FORMS[name], written(name, None, pairs), 0
    out = []
    for number, (_, answer) in enumerate(pairs):
        said = says(name, answer, is_last=number == len(pairs) - 1)
        start = whole.index(form.prompt + said, at) + len(form.prompt)
        end = next(token for token in [*SPECIAL, *MORE_SPECIAL] if said.endswith(token))
        out.append((whole[at:start], said.removesuffix(end), end))
        at = start + len(said)
    return [*out, (whole[at:], "", "")]


def ids_of(text: str) -> list[int]:
    """Return the ids of the byte tokenizer."""
    names = sorted([*SPECIAL, *MORE_SPECIAL], key=len, reverse=True)
    numbers = {token: 256 + n for n, token in enumerate([*SPECIAL, *MORE_SPECIAL])}
    out: list[int] = []
    for part in re.split(f"({'|'.join(re.escape(token) for token in names)})", text):
        out += [numbers[part]] if part in numbers else part.encode()
    return out


def conversation(system: str | None, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for pair in pairs:
        messages += [
            {"role": role, "content": content}
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
    return messages
