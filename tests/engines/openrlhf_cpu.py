"""What OpenRLHF needs a GPU for, on a CPU: empty vllm and flash_attn, a sampler in vLLM's place, untrained models.

Everything else in a run by `main` is OpenRLHF's own: `train_ppo_ray`, its trainer, dataset, samples generator, agent
executor with its HTTP client, `Actor` (log-probabilities), experience maker and `compute_reward`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

_EMPTY = {
    "vllm/__init__.py": "__version__ = '0.29.0'\nclass SamplingParams:\n"
    "    def __init__(self, **named):\n        self.__dict__.update(named)\n",
    "vllm/inputs.py": "TokensPrompt = dict\n",
    "vllm/utils.py": "random_uuid = None\n",
    "flash_attn/__init__.py": "",
    "flash_attn/bert_padding.py": "index_first_axis = pad_input = rearrange = unpad_input = None\n",
    "flash_attn/utils/__init__.py": "",
    "flash_attn/utils/distributed.py": "all_gather = None\n",
}
"""The names that OpenRLHF imports at module level, without what they do; by file."""


def write_stand_ins(folder: Path) -> Path:
    """Write the empty packages of vllm and flash_attn, where they aren't installed; the folder goes on the path."""
    for name, text in _EMPTY.items():
        if find_spec(name.partition("/")[0]) is None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    return folder


class Models:
    """In `RayActorGroup`'s place: a model's forward in the calling process. `fit` moves it at random.

    Args:
        path: of the language model, which is loaded at its first use.
        of: "policy", "reference" or "critic".
    """

    def __init__(self, path: str, of: str) -> None:
        self.path, self.of = path, of
        self.saved: list[dict[str, Any]] = []
        self._actor: Any = None

    @property
    def actor(self) -> Any:
        """OpenRLHF's, which computes log-probabilities."""
        from openrlhf.models import Actor

        self._actor = self._actor or Actor(self.path, attn_implementation="eager")
        return self._actor

    def async_init_model_from_pretrained(self, *arguments: Any) -> list[Any]:
        return []

    def async_run_method_batch(self, method_name: str, **columns: list[Any]) -> list[Any]:
        import ray

        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [ray.put([getattr(self, method_name)(**row)]) for row in rows]

    def async_run_method(self, method_name: str, **named: Any) -> list[Any]:
        import ray

        return [ray.put(getattr(self, method_name)(**named))]

    def async_save_model(self) -> list[Any]:
        return []

    @torch.no_grad()
    def forward(self, sequences: Any, action_mask: Any, attention_mask: Any, **images: Any) -> Any:
        if self.of == "critic":
            return 0.1 * torch.arange(action_mask.shape[1]).expand(action_mask.shape) * action_mask
        return self.actor(sequences, action_mask, attention_mask)

    def append(self, experience: Any) -> None:
        """Print the figures that OpenRLHF would log."""
        if self.of == "policy":
            names = ("surefoot_weight", "surefoot_kl", "surefoot_beta", "surefoot_max_error")
            print({name: experience.info[name].flatten().tolist() for name in names}, flush=True)  # noqa: T201

    @torch.no_grad()
    def fit(self, kl_ctl: float = 0.0) -> dict[str, float]:
        if self.of == "policy":
            self.move(0.1)
        return {}

    @torch.no_grad()
    def move(self, by: float) -> None:
        """Add noise to the model's weights, so that its KL isn't 0."""
        for parameter in self.actor.parameters():
            parameter.add_(by * torch.randn_like(parameter))

    def broadcast_to_vllm(self) -> None: ...

    def save_checkpoint(self, **named: Any) -> None:
        self.saved.append(named)

    def get_checkpoint_states(self) -> Any:
        return self.saved[-1]["client_states"]


def sampler(path: str) -> Callable[..., Any]:
    """vLLM's `generate` by transformers: token ids and sampling parameters to an object with `outputs`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)

    @torch.no_grad()
    def generate(ids: list[int], parameters: Any) -> Any:
        tokens = model.generate(
            torch.tensor([ids]),
            do_sample=True,
            max_new_tokens=parameters.max_tokens,
            min_new_tokens=1,
            pad_token_id=tokenizer.pad_token_id,
        )[0, len(ids) :].tolist()
        reason = "stop" if tokens[-1] == tokenizer.eos_token_id else "length"
        output = SimpleNamespace(token_ids=tokens, finish_reason=reason, logprobs=None, text=tokenizer.decode(tokens))
        return SimpleNamespace(outputs=[output])

    return generate


class Sampler:
    """In vLLM's engine's place, for one rollout."""

    def __init__(self, path: str) -> None:
        self._generate = sampler(path)

    async def generate(self, ids: list[int], parameters: Any, multi_modal_data: Any = None) -> Any:
        return self._generate(ids, parameters)


def engines(count: int, tensor_parallel_size: int, path: str, *rest: Any, **named: Any) -> list[Any]:
    """In `create_vllm_engines`' place: OpenRLHF's actor and executor, with `Sampler` for vLLM's engine."""
    import ray
    from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    class CpuRolloutActor(RolloutRayActor.__ray_metadata__.modified_class):  # type: ignore[misc]
        async def __init__(self, path: str, url: list[str]) -> None:  # type: ignore[misc]
            self.executor, self._sampler = SingleTurnAgentExecutor(url), Sampler(path)

        async def generate(self, ids: list[int], parameters: Any, multi_modal_data: Any = None) -> Any:
            return await self._sampler.generate(ids, parameters)

        def get_num_unfinished_requests(self) -> int:
            return 0

    return [ray.remote(CpuRolloutActor).options(num_cpus=0).remote(path, named["remote_rm_url"]) for _ in range(count)]


def group(path: str, num_nodes: int, gpus: int, kind: Any, **named: Any) -> Models:
    """In `RayActorGroup`'s place, by the actor's class; the path is the policy's."""
    names = {"PolicyModelActor": "policy", "ReferenceModelActor": "reference", "CriticModelActor": "critic"}
    return Models(path, names[kind.__ray_metadata__.class_name])


def main(words: list[str]) -> int:
    """`surefoot openrlhf` with the stand-ins."""
    import openrlhf.trainer.ray
    import openrlhf.trainer.ray.launcher

    from surefoot.cli.main import main as surefoot

    openrlhf.trainer.ray.create_vllm_engines = engines
    openrlhf.trainer.ray.launcher.RayActorGroup = partial(group, words[words.index("--actor.model_name_or_path") + 1])
    return surefoot(["openrlhf", *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
