"""What touches the private methods of TRL's DPO (TRL 1.16 to 2): each pair's weights enter its loss."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, Value
from trl import DPOTrainer

from surefoot.rewards.trunk.special_tokens import without_bos
from surefoot.training.preference_weights import WEIGHTS

__all__ = ["PreferenceBridge"]


class _WithWeights:
    """TRL's collator, with the pairs' weights beside its tensors: (2 · pairs,), chosen sides first."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.inner(examples)
        if WEIGHTS[0] in examples[0]:
            batch["weights"] = torch.tensor([example[side] for side in WEIGHTS for example in examples])
        return batch


class PreferenceBridge(DPOTrainer):
    """Weighs the log-ratios of TRL's DPO: −log σ(β[w_c ℓ_c − w_r ℓ_r]).

    A log-ratio is a sum of the tokens' log-probabilities, so weighing them weighs it: while TRL computes the loss, a
    hook multiplies each row of log-probabilities, the policy's and the reference's, by the row's weight. What TRL logs
    as `logps/…` and `rewards/…` is weighted too. The literal form adds its constant w to the policy's sum.
    """

    data_collator: Any
    _signature_columns: list[str] | None

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        self.data_collator = _WithWeights(self.data_collator)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, *rest: Any, **keywords: Any) -> Any:
        """TRL's; text prompts that begin with bos get no second one."""
        if isinstance(dataset, Dataset) and dataset.features.get("prompt") == Value("string"):
            tokenizer = getattr(processing_class, "tokenizer", processing_class)
            dataset = dataset.map(lambda row: {"prompt": without_bos(row["prompt"], tokenizer)})
        return super()._prepare_dataset(dataset, processing_class, *rest, **keywords)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*(self._signature_columns or []), *WEIGHTS]))

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Unweighted (TRL's own); weights enter when the loss is computed."""
        return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k != "weights"})

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        rest = {name: value for name, value in inputs.items() if name != "weights"}
        if "weights" not in inputs:
            return super()._compute_loss(model, rest, return_outputs)
        weights = inputs["weights"]
        for name, part in zip(("ref_chosen_logps", "ref_rejected_logps"), weights.chunk(2), strict=True):
            if name in rest:
                rest[name] = rest[name] * part.to(rest[name])
        policy = self.accelerator.unwrap_model(model)
        watched = {id(module): module for module in (policy, self.ref_model) if module is not None}
        calls: list[Any] = []

        def weigh(module: Any, given: Any, output: Any) -> Any:
            calls.append(module)
            scaled = output.log_probs * weights[:, None].to(output.log_probs)
            if self.args.objective == "literal" and len(calls) == 1:  # the policy's; TRL calls it first
                scaled = torch.cat([scaled[:, :-1], scaled[:, -1:] + weights[:, None].to(scaled)], dim=1)
            output["log_probs"] = scaled
            return output

        handles = [module.register_forward_hook(weigh) for module in watched.values()]
        try:
            result = super()._compute_loss(model, rest, return_outputs)
        finally:
            for handle in handles:
                handle.remove()
        expected = 1 if self.precompute_ref_logps else 2
        if len(calls) != expected:
            raise RuntimeError(
                f"expected {expected} forwards in the loss of DPO, saw {len(calls)}; this version of TRL is not "
                "supported"
            )
        return result
