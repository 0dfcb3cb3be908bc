"""`tiny_model`: a Llama of a few thousand random weights with a tokenizer of its own.

A rule of this project, written with the same SDK as the standard ones. It stands in for a base
model from elsewhere, so that the example builds in seconds and without a network:

    [base_model.base]
    source = "hf:HuggingFaceTB/SmolLM2-135M-Instruct"
"""

from ftbuild.api import Context, Field, Inputs, Model, Params, Source, rule

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class TinyModelInputs(Inputs):
    """What the tokenizer learns from."""

    text: Source
    """Text files; JSON Lines will do as well."""


class TinyModelParams(Params):
    """How large it is."""

    hidden_size: int = Field(64, ge=8)
    """Width of the layers."""
    layers: int = Field(2, ge=1)
    """How many layers there are."""
    vocabulary: int = Field(400, ge=260)
    """Size of the tokenizer's vocabulary."""
    seed: int = 0
    """Of the random weights."""


@rule(output=Model, pins=("torch", "transformers", "tokenizers"), preload=("torch", "transformers"))
def tiny_model(ctx: Context, inputs: TinyModelInputs, params: TinyModelParams) -> None:
    """Train a tokenizer on a text and draw random weights for it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(params.seed)
    size = _save_tokenizer(ctx, inputs, params)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=params.hidden_size,
        intermediate_size=2 * params.hidden_size,
        num_hidden_layers=params.layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(ctx.out)


def _save_tokenizer(ctx: Context, inputs: TinyModelInputs, params: TinyModelParams) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=params.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [file.path.read_text(encoding="utf-8") for file in inputs.text.files]
    tokenizer.train_from_iterator([line for text in texts for line in text.splitlines()], trainer)
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
    saved.chat_template = TEMPLATE
    saved.save_pretrained(ctx.out)
    return len(saved)
