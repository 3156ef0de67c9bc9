"""A tiny Llama with random weights and a byte-level tokenizer, made on the spot.

No hub, no download: real engines need a model directory, and this one is written in a few seconds. The same seed gives
the same weights. They are drawn wider than usual (0.08), because a freshly initialised Llama answers almost the same
token whatever it reads, and equal answers would then prove nothing about the KV cache. Knows nothing of Larder.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

MAX_MODEL_TOKENS = 2048
VOCABULARY = 512
WEIGHT_STD = 0.08
PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
SPECIAL_TOKENS = [PAD, BOS, EOS, "<|im_start|>", "<|im_end|>"]  # ids 0 to 4
CORPUS = [
    "the quick brown fox jumps over the lazy dog. " * 20,
    "hello world, a key value cache store for language models. " * 20,
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(path: Path) -> None:
    """Write the model and its tokenizer into the directory `path`, as vLLM reads them (1.4 M parameters, bf16)."""
    disable_progress_bar()  # of 3 MB
    path.mkdir(parents=True, exist_ok=True)
    _tokenizer().save_pretrained(path)
    _model().save_pretrained(path)


def draw_weights(model: PreTrainedModel, std: float) -> None:
    """Draws all weights from a seed, except norms, which stay ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, std, generator=generator)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)
    fast.chat_template = CHAT_TEMPLATE
    fast.model_max_length = MAX_MODEL_TOKENS
    return fast


def _model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_MODEL_TOKENS,
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config)
    draw_weights(model, WEIGHT_STD)
    return model.to(torch.bfloat16)


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
