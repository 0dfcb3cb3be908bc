"""An Ollama Modelfile: the weights, the chat template in Ollama's words, where an answer ends.

Source: https://docs.ollama.com/modelfile
"""

import json
from pathlib import Path
from typing import Any

_SYSTEM, _USER = "ftbuild-system", "ftbuild-user"


def modelfile(model: Path, weights: str) -> str:
    """Return the Modelfile for the file `weights` made of the model in the directory `model`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    lines = [f"FROM ./{weights}"]
    template = _go_template(tokenizer) if tokenizer.chat_template else None
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    if tokenizer.eos_token:
        lines.append(f"PARAMETER stop {json.dumps(tokenizer.eos_token, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _go_template(tokenizer: Any) -> str | None:
    """Return the chat template for one turn in Go's language; None where it is no plain frame.

    Read off from what it renders: text before and after the system's and the user's words.
    """
    user = {"role": "user", "content": _USER}
    try:
        alone = _render(tokenizer, [user])
        both = _render(tokenizer, [{"role": "system", "content": _SYSTEM}, user])
    except Exception:  # a template may raise what it likes, for a role that it does not take
        return None
    before, _, after = alone.partition(_USER)
    frame = both.removesuffix(before + _USER + after)
    if frame == both or frame.count(_SYSTEM) != 1 or alone.count(_USER) != 1:
        return None  # a default system message, say: Ollama knows some such templates by itself
    system = frame.replace(_SYSTEM, "{{ .System }}")
    prompt = f"{before}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}"
    return f"{{{{ if .System }}}}{system}{{{{ end }}}}{prompt}"


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text
