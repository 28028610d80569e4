"""A card stays a card whatever a source is called."""

from huggingface_hub import ModelCard

from surefoot.maths.objectives import preset
from surefoot.rewards.hub import model_card
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.policy_card import policy_card

NAME = "good\n---\nlicense: mit\n---\n# other\r\n| a | `b`"
PLAIN = r"good --- license: mit --- # other \| a \| 'b'"


def test_a_name_with_newlines_in_a_sources_card() -> None:
    text = model_card("linear", NAME, None, None, 'me/"it"\nimport os', {"covariance": "x |\n| y"})
    card = ModelCard(text)
    assert card.data.to_dict() == ModelCard(model_card("linear", "x", None, None, "me/it")).data.to_dict()
    lines = text.splitlines()
    assert lines[5] == f"# {PLAIN}"
    assert r'source = load_source("me/\"it\"\nimport os")' in lines
    assert r"| covariance of the weights | x \| \| y |" in lines


def test_a_name_with_newlines_in_a_policys_card() -> None:
    source = FunctionMembers(lambda prompts, completions: [[0.0, 1.0]] * len(prompts), 2, NAME)
    text = policy_card(source, preset("mean"), None, 0.1, [])
    assert f"| reward source | `{PLAIN}`, 2 members |" in text.splitlines()
