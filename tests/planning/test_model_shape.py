import json
from pathlib import Path

import pytest
from benchmarks.memory import SMALL, Case, compare
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from surefoot.errors import ConfigError, ModelError
from surefoot.planning.model_shape import model_shape, shape_of


@pytest.mark.parametrize(
    ("size", "parameters"), [("7B", 7_615_616_512), ("32b", 32_763_876_352), ("70B", 70_553_706_496)]
)
def test_named_sizes_have_their_published_parameters(size: str, parameters: int) -> None:
    shape = model_shape(size)
    assert shape.parameters == parameters
    assert shape.layers * shape.layer_parameters + shape.root_parameters == parameters


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_models_shape_is_that_of_its_weights(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        shape = model_shape(str(path))
        assert shape.parameters == sum(v.numel() for v in AutoModelForCausalLM.from_config(config).parameters())
        assert (shape.tied, shape.kv_heads, shape.head_dim, shape.layers) == (tied, 2, 4, 3)


def test_an_unknown_size_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown model size '34B'; the nearest known one is 32B"):
        model_shape("34B")


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a Llama-like decoder"):
        shape_of(AutoConfig.for_model("gpt2", n_layer=1, n_embd=8, n_head=2), "gpt2")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        model_shape(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(ModelError, match="not a config that transformers knows"):
        model_shape(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_planned_memory_is_within_15_percent_of_what_is_measured(case: Case) -> None:
    found = compare(case)
    errors = {name: row["error"] for name, row in found["phases"].items()}
    assert all(abs(error) < 0.15 for error in errors.values()), errors
    assert all(abs(row["above"]) < 0.15 for row in found["phases"].values() if row["above"] is not None)
    assert abs(found["peak_error"]) < 0.15
