"""What verl 0.9 lacks to train on a CPU: a platform, and a rollout that samples with transformers.

For examples and tests. verl imports it by VERL_USE_EXTERNAL_MODULES=cpu_platform, with this folder on PYTHONPATH. The
platform and the rollout go into verl's own registries. Four of its assumptions about GPUs are replaced besides, at the
end of the file. One worker only; nothing here is fast.
"""

import contextlib
import os
import types

import ray
import torch
import verl.utils.model
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_base import PlatformBase
from verl.workers.rollout import base as rollout_base
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

from surefoot.engines.micro_batches import MicroBatches


def _device_module() -> types.ModuleType:
    """Functions that torch.cuda has, doing nothing."""
    module = types.ModuleType("cpu_device")
    ignored = ("synchronize", "empty_cache", "set_device", "reset_peak_memory_stats", "manual_seed")
    for name in (*ignored, "manual_seed_all", "ipc_collect", "current_stream"):
        setattr(module, name, lambda *_, **__: None)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, lambda *_, **__: 0)
    module.current_device = lambda: 0
    module.device_count = lambda: 1
    module.is_available = lambda: True
    module.mem_get_info = lambda *_, **__: (8 << 30, 16 << 30)
    module.get_rng_state = lambda *_, **__: torch.get_rng_state()
    module.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    module.get_device_name = lambda *_, **__: "cpu"
    return module


@platform_manager.PlatformRegistry.register("cpu")
class CpuPlatform(PlatformBase):
    """A CPU that stands for one GPU: Ray counts a logical one."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _device_module()

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def set_device(self, device_index):
        pass

    def synchronize(self, device_index=None):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings):
        pass

    def empty_cache(self):
        pass

    def get_device_capability(self, device_index=0):
        return (None, None)

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg):
        yield

    def profiler_start(self):
        pass

    def profiler_stop(self):
        pass

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def cudart(self):
        return None


platform_manager._current_platform = None
platform_manager.set_platform(CpuPlatform())


class SamplingServer:
    """Samples with transformers, in a process of its own; requests that wait are one batch."""

    def __init__(self, model_path, response_length, seed=0):
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
        self.response_length, self.version = response_length, 0
        self.batches = MicroBatches(self._sample, 64)

    async def generate(self, request_id, prompt_ids, sampling_params, **_):
        temperature = float(sampling_params.get("temperature", 1.0))
        most = sampling_params.get("max_tokens") or self.response_length
        tokens, log_probs = await self.batches((list(prompt_ids), temperature, most))
        done = {"stop_reason": "completed", "num_preempted": 0, "extra_fields": {"global_steps": self.version}}
        return TokenOutput(token_ids=tokens, log_probs=log_probs, **done)

    @torch.no_grad()
    def _sample(self, rows):
        """(tokens, their log-probabilities) of each row (prompt, temperature, most)."""
        prompts, temperatures, most = zip(*rows, strict=True)
        if len({*temperatures}) > 1 or len({*most}) > 1:
            return [self._sample([row])[0] for row in rows]
        how = {"do_sample": True, "temperature": temperatures[0], "top_k": 0, "top_p": 1.0}
        given = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        out = self.model.generate(
            **given,
            **(how if temperatures[0] > 0 else {"do_sample": False}),
            max_new_tokens=most[0],
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = out.sequences[:, given["input_ids"].shape[1] :]
        known = torch.log_softmax(torch.stack(out.logits, dim=1).float() / max(temperatures[0], 1e-8), dim=-1)
        log_probs = known.gather(2, tokens[..., None])[..., 0]
        ended = (tokens == self.tokenizer.eos_token_id).cumsum(dim=1)
        lengths = ((ended == 0).sum(dim=1) + (ended[:, -1] > 0)).tolist()  # with the end token
        return [(t[:n].tolist(), p[:n].tolist()) for t, p, n in zip(tokens, log_probs, lengths, strict=True)]

    async def load(self, weights, global_steps=None):
        self.model.load_state_dict({name: value.float() for name, value in weights.items()})
        self.version = global_steps or 0

    async def nothing(self, *_, **__):
        return None

    wake_up = sleep = abort_all_requests = resume_generation = clear_kv_cache = nothing
    release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


class SamplingReplica(RolloutReplica):
    """Starts the server and names it, as verl's replicas of vLLM do."""

    async def launch_servers(self):
        name = f"sampling_server_{self.replica_rank}"
        actor = ray.remote(num_cpus=0)(SamplingServer).options(name=name)
        server = actor.remote(self.model_config.path, self.config.response_length, self.config.seed)
        self.servers, self._server_handle, self._server_address = [server], server, name


class SamplingAdapter(BaseRollout):
    """In the training worker: gives the server the policy's weights."""

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, global_steps=None, **_):
        state = {}
        if hasattr(weights, "__aiter__"):
            async for name, value in weights:
                state[name] = value.detach().cpu().clone()
        else:
            for name, value in weights:
                whole = value.full_tensor() if hasattr(value, "full_tensor") else value
                state[name] = whole.detach().cpu().clone()
        await ray.get_actor("sampling_server_0").load.remote(state, global_steps)


RolloutReplicaRegistry.register("transformers_cpu", lambda: SamplingReplica)
rollout_base._ROLLOUT_REGISTRY[("transformers_cpu", "async")] = "cpu_platform.SamplingAdapter"

# 1. verl asks for the backends "cpu:gloo,<device>:<backend>", which names the CPU twice here.
_init_process_group = torch.distributed.init_process_group


def _init_once(backend=None, *args, **kwargs):
    return _init_process_group("cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


torch.distributed.init_process_group = _init_once

# 2. verl's FSDP engines are registered for cuda and npu: take cuda's class.
os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")


# 3. verl's critic asks for flash attention whatever the configuration says.
def _value_model(local_path, torch_dtype, model_config, trust_remote_code):
    return AutoModelForTokenClassification.from_pretrained(
        local_path, dtype=torch_dtype, config=model_config, attn_implementation="sdpa"
    )


verl.utils.model.load_valuehead_model = _value_model

# 4. FSDP2's CPU offload, which verl gives the reference, pins memory.
torch.Tensor.pin_memory = lambda self, *_, **__: self
