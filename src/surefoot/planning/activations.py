"""Activation memory of a Llama-like decoder: bytes saved for the backward, and working memory of the forward.

Derived from the operations in `modeling_llama.py` (Qwen2's differ in biases alone) and what autograd saves of each, in
the manner of Korthikanti et al., arXiv:2205.05198, section 4.1; their GPT layer has other operations, so its
34 + 5as/h doesn't hold here. All functions give bytes, per token unless they say otherwise. Symbols: h hidden, i
intermediate, q width of all query heads, k width of all key heads, s sequence length, c bytes of the compute dtype.
"""

from __future__ import annotations

from surefoot.planning.shapes import MemoryRun, ModelShape

__all__ = ["final_bytes", "forward_bytes", "head_backward", "head_forward", "layer_backward", "layer_saved"]

TILE_TOKENS, TILE_WORDS = 4096, 32768
"""Tile of TRL's fused output head (trl.kernels.chunked_logprob), which never keeps all logits at once."""
_TORCH_FORWARD, _TORCH_BACKWARD = 3.0, 7.25
"""fp32 copies of a tile where there is no Triton: z, exp, their product; y, z, log p, p, grad, mask, two terms."""


def layer_saved(shape: ModelShape, run: MemoryRun) -> int:
    """Bytes per token that one decoder layer saves for its backward.

    Trained in full, in fp32 or bf16: two norms, each with its input in fp32 (4h), its normed input and its output
    (2ch); queries, keys, values and output (4cq; keys and values are repeated to q where there is a mask); gate,
    silu(gate), up and their product (4ci). Under autocast the norms stay fp32 (8h each) and every linear layer keeps
    a bf16 copy of its own (3 and 2 × 2h). A frozen layer with LoRA keeps no inputs of frozen weights.
    """
    return _norms(shape, run) + _attention(shape, run) + _mlp(shape, run)


def _norms(shape: ModelShape, run: MemoryRun) -> int:
    h, c = shape.hidden, run.compute
    if run.lora_rank:
        copies = 2 if run.lora_dropout or c < 4 else 1  # adapters compute in fp32, each on a copy of its own
        mask = 2 * (4 if run.device == "cpu" else 1) if run.lora_dropout else 0
        return 2 * 4 * h + copies * 4 * h + mask * h
    if run.autocast:
        return 2 * 8 * h + 5 * 2 * h
    return 2 * (4 + 2 * c) * h


def _attention(shape: ModelShape, run: MemoryRun) -> int:
    c, q, k = run.compute, shape.queries, shape.keys
    sums = 4 * shape.heads
    if run.attention == "flash":
        return c * (2 * q + 2 * k) + sums
    if run.attention == "sdpa":
        return c * 4 * q + sums + c * run.length  # the mask in the compute dtype, one for each layer
    weights = 4 + (c if c < 4 else 0)  # softmax in fp32, and its copy in the compute dtype
    return c * 4 * q + weights * shape.heads * run.length


def _mlp(shape: ModelShape, run: MemoryRun) -> int:
    return run.compute * (3 if run.lora_rank else 4) * shape.intermediate


def layer_backward(shape: ModelShape, run: MemoryRun) -> int:
    """Bytes per token of gradients (2i and 2h) during the backward of a layer's MLP, besides what is saved."""
    return run.compute * (2 * shape.intermediate + 2 * shape.hidden)


def forward_bytes(
    shape: ModelShape, compute: int, keys: int, context: float = 1.0, attention: str = "sdpa", residual: int = 0
) -> int:
    """Bytes per token of working memory of a forward without gradients.

    The embeddings, the layer's input, the residual and the norm's output (4h), the rotation's cosines and sines, and
    either three of the MLP's widths, or queries and their result, keys and values as they are and as repeated, and the
    mask.

    Args:
        compute: bytes of a number.
        keys: that each token may look at.
        residual: bytes of a number between the layers, if others: 4 under autocast.
        context: keys for each token of the forward, more than 1 where some of them come from a cache.
    """
    common = 4 * shape.hidden + 2 * shape.head_dim
    attended = 2 * shape.queries + 2 * shape.keys + context * 2 * shape.queries + keys
    if attention == "eager":
        attended += 2 * shape.heads * keys
    return round((residual or compute) * common + compute * max(3 * shape.intermediate, attended))


def final_bytes(shape: ModelShape, run: MemoryRun) -> int:
    """Bytes per token of the last norm: input in fp32, normed input, output, and a copy without the last token."""
    return (4 + 3 * run.compute) * shape.hidden if not run.autocast else (4 + 3 * 4) * shape.hidden


def _tile(shape: ModelShape, run: MemoryRun, tokens: int, copies: float) -> int:
    rows = min(tokens, TILE_TOKENS)
    torch_copies = copies * 4 * rows * min(shape.vocabulary, TILE_WORDS) if run.device == "cpu" else 0
    return run.compute * rows * TILE_WORDS + round(torch_copies)


def _scored(run: MemoryRun) -> int:
    """Number of tokens of the output head: on a GPU the completions', on a CPU all but the first."""
    return run.batch * (run.length - 1 if run.device == "cpu" else run.completion)


def head_forward(shape: ModelShape, run: MemoryRun) -> int:
    """Bytes of the output head's forward: one tile of logits, and the hidden states that it is given."""
    return _tile(shape, run, _scored(run), _TORCH_FORWARD)


def head_backward(shape: ModelShape, run: MemoryRun) -> int:
    """Bytes of the output head's backward: one tile, and fp32 gradients of hidden states and weight, unsharded."""
    tokens = _scored(run)
    weight = 0 if run.lora_rank else 4 * shape.matrix
    return _tile(shape, run, tokens, _TORCH_BACKWARD) + 4 * tokens * shape.hidden + weight
