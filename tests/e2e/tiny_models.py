"""Models of a few hundred kilobytes beside the demo's Llama: one that hears, one with latent attention, an adapter."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from demo.tiny_model import MAX_MODEL_TOKENS, VOCABULARY, WEIGHT_STD, draw_weights

AUDIO_TOKENS = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
AUDIO_S = 2
SAMPLES_A_S = 16_000


def make_audio_model(path: Path, *, tokenizer: Path) -> None:
    """A Qwen2-Audio whose answers depend on what it hears: 25 tokens a second."""
    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    fast.add_tokens(AUDIO_TOKENS, special_tokens=True)
    extractor = WhisperFeatureExtractor(feature_size=16, n_fft=400)
    Qwen2AudioProcessor(extractor, fast, audio_token=AUDIO_TOKENS[0]).save_pretrained(path)
    config = Qwen2AudioConfig(
        audio_config={
            "d_model": 64,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "max_source_positions": extractor.nb_max_frames // 2,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(fast),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": MAX_MODEL_TOKENS,
        },
        audio_token_index=fast.convert_tokens_to_ids(AUDIO_TOKENS[0]),
        dtype="float32",
    )
    _save(Qwen2AudioForConditionalGeneration(config), path, std=0.3)
    tensors = load_file(path / "model.safetensors")
    named = {name.replace("model.model.", "model."): tensor for name, tensor in tensors.items()}
    save_file(named, path / "model.safetensors", metadata={"format": "pt"})


def make_latent_model(path: Path, *, tokenizer: Path) -> None:
    """A DeepSeek-V2 of two dense layers: multi-head latent attention."""
    config = DeepseekV2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        first_k_dense_replace=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=64,
        max_position_embeddings=MAX_MODEL_TOKENS,
        dtype="bfloat16",
    )
    _save(DeepseekV2ForCausalLM(config).to(torch.bfloat16), path, std=WEIGHT_STD)
    for file in [*tokenizer.glob("tokenizer*"), *tokenizer.glob("chat_template*")]:
        shutil.copy(file, path)


def make_adapter(path: Path, model: Path, *, seed: int) -> None:
    """An adapter for the attention of the demo's Llama, strong enough to show; the seed is its training."""
    path.mkdir(parents=True, exist_ok=True)
    rank, generator = 4, torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        module, _, last = name.rpartition(".")
        if last == "weight" and module.endswith(("q_proj", "k_proj", "v_proj")):
            rows, columns = weight.shape
            inner = f"base_model.model.{module}"
            tensors[f"{inner}.lora_A.weight"] = 0.3 * torch.randn(rank, columns, generator=generator)
            tensors[f"{inner}.lora_B.weight"] = 0.3 * torch.randn(rows, rank, generator=generator)
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config))


def change_tensor(model: Path, name: str) -> None:
    """Change one number of one tensor in place: the file keeps its size and its place."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    before = file.stat().st_size
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] += 8
    save_file(tensors, file, metadata={"format": "pt"})
    assert file.stat().st_size == before


def _save(model: PreTrainedModel, path: Path, *, std: float) -> None:
    draw_weights(model, std)
    model.save_pretrained(path)
