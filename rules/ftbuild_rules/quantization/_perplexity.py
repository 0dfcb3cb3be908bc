"""The perplexity of a model before and after it was quantized, on the same rows.

Both are loaded as `evaluate` loads them, whole and in float32, one after the other. Four digits
are kept: the figures stand in the artifact, and further ones may differ between processors.
"""

import math
from dataclasses import replace
from typing import Any

from ftbuild.api import Context, Model, QuantizedModel, RuleError, Tokens
from ftbuild_rules.evaluation._answers import load_answerer
from ftbuild_rules.evaluation._measures import loss_figures
from ftbuild_rules.quantization._dequantize import Base
from ftbuild_rules.training._shards import TokenRows, read_tokens, require_fit


def eval_rows(data: Tokens, model: Model, samples: int) -> TokenRows:
    """Return the first rows to measure on.

    Raises:
        RuleError: they are no rows to train on, or of another vocabulary.
    """
    rows = read_tokens(data, "sft", rule="quantize")
    require_fit(rows, model)
    return replace(rows, table=rows.table.slice(0, samples))


def perplexities(
    ctx: Context, rows: TokenRows, original: Model, quantized: QuantizedModel
) -> dict[str, Any]:
    """Return the perplexity of both, and on how many rows and tokens it was measured.

    Raises:
        RuleError: E0946: the loss of one is not finite.
    """
    before, _ = _perplexity(ctx, rows, original, "the model")
    after, tokens = _perplexity(ctx, rows, quantized, "the quantized model")
    return {
        "perplexity_before": before,
        "perplexity_after": after,
        "rows": rows.num_rows,
        "tokens": tokens,
    }


def _perplexity(ctx: Context, rows: TokenRows, model: Base, who: str) -> tuple[float, int]:
    figures = loss_figures(ctx, load_answerer(model, None, "float32"), rows)
    if not math.isfinite(figures["loss"]):
        raise RuleError(
            f"the loss of {who} on `eval_data` is {figures['loss']}",
            code="E0946",
            fix="look at the model by `generate`: its weights are broken",
        )
    return float(f"{figures['perplexity']:.4g}"), int(figures["tokens"])
