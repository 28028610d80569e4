"""The GPU example end to end, with a Qwen3 of its architecture and settings, random and tiny, on made-up chats."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import surefoot
from surefoot.cli.main import main
from tests.models import WORDS

EXAMPLES = Path(surefoot.__file__).parents[2] / "examples"
CHAT = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def tiny_qwen(folder: Path) -> Path:
    words = ["<pad>", "<|im_end|>", "<|im_start|>", "user", "assistant", *WORDS]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chats(path: Path) -> Path:
    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = {
        "prompt": [said("user", f"the {WORDS[i % 10]} {WORDS[i % 7]}") for i in range(40)],
        "chosen": [said("assistant", f"{WORDS[i % 9]} cat") for i in range(40)],
        "rejected": [said("assistant", f"dog {WORDS[(i + 4) % 9]} and") for i in range(40)],
    }
    Dataset.from_dict(rows).to_parquet(path)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the variance of .lora. (is nearly the same|has a reliability)")
def test_the_qwen_example_runs_at_a_tiny_size(tmp_path: Path) -> None:
    model, data = tiny_qwen(tmp_path / "qwen"), chats(tmp_path / "chats.parquet")
    reward = yaml.safe_load((EXAMPLES / "qwen_ultrafeedback_reward.yaml").read_text())
    small = {
        "model_name_or_path": str(model), "dataset_name": str(data), "dataset_train_split": None,
        "dataset_test_split": None, "held_out": 0.3, "output_dir": str(tmp_path / "reward"), "max_length": 64,
    }  # fmt: skip
    config = tmp_path / "reward.yaml"
    config.write_text(yaml.safe_dump({k: v for k, v in (reward | small).items() if v is not None}))
    words = ["rloo", "--config", str(EXAMPLES / "qwen_ultrafeedback.yaml"), "--model_name_or_path", str(model)]
    words += ["--dataset_name", str(data), "--reward_config", str(config), "--output_dir", str(tmp_path / "out")]
    words += ["--dtype", "float32", "--bf16", "false", "--use_cpu", "true", "--per_device_train_batch_size", "4"]
    words += ["--num_generations", "4", "--max_completion_length", "6", "--max_steps", "2", "--save_steps", "2"]
    words += ["--logging_steps", "1", "--report_to", "none", "--calibration_prompts", "3"]
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["metrics"]["steps"] == 2
    assert record["metrics"]["end"]["weight/effective_sample_size"] > 0
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    members = sorted((tmp_path / "reward" / "source" / "members").iterdir())
    assert len(members) == reward["members"]
