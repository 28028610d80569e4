"""A row's reward and variance are those of the objective, alone or in a batch, in process or from a server."""

import threading
from typing import Any

import pytest
import torch

from surefoot.data.messages import is_cut
from surefoot.engines.row_scorer import RowScorer, as_texts, open_source
from surefoot.engines.row_weights import VARIANCE
from surefoot.engines.settings import EngineSettings
from surefoot.errors import ConfigError, DataError, RowError, VarianceError
from surefoot.maths.objectives import aggregate
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.serving.settings import ServeArguments
from tests.engines.conftest import PROMPTS

ROWS = [(PROMPTS[0], "red cat"), (PROMPTS[1], "blue dog and"), (PROMPTS[0], "a")]


def settings(made: Any, **changes: Any) -> Any:
    given = {"source": str(made.source_path), "anchor_file": str(made.anchors), "device": "cpu"}
    return EngineSettings(**given | changes)


def three(*, calibrated: Any = True, unscored: Any = ()) -> Any:
    """Three members that read the lengths of words; None for the texts that they leave unscored."""

    def function(prompts: Any, completions: Any) -> Any:
        nothing = [float("nan")] * 3
        return [
            nothing if text in unscored else [float(len(text)), 1.0 + len(text) % 5, 0.5 * len(text)]
            for text in completions
        ]

    source = FunctionMembers(function, 3, "three")
    if calibrated:
        source.calibrate(source.score(["p"] * 9, [f"{'x' * n}" for n in range(1, 10)]))
    return source


@pytest.mark.parametrize("preset", ["variance_aware", "lcb", "mean"])
def test_rewards_are_the_objectives(made: Any, preset: Any) -> None:
    held = settings(made, preset=preset)
    scored = RowScorer.open(held)(ROWS)
    prompts, completions = [row[0] for row in ROWS], [row[1] for row in ROWS]
    anchors = AnchorStore.load(made.anchors).of(prompts)
    estimate = made.source.estimate(made.source.score(prompts, completions), anchors)
    expected = aggregate(estimate, held.objective)
    assert [row.reward for row in scored] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [row.variance for row in scored] == pytest.approx(estimate.variance.tolist(), rel=1e-5)


def test_other_rows_change_nothing(made: Any) -> None:
    score = RowScorer.open(settings(made))
    together = score(ROWS)
    alone = [score([row])[0] for row in ROWS]
    assert [row.reward for row in together] == pytest.approx([row.reward for row in alone], abs=1e-5)
    assert [row.variance for row in together] == pytest.approx([row.variance for row in alone], rel=1e-4)


def test_fields_carry_members() -> None:
    score = RowScorer(three(), EngineSettings(anchor="calibration"))
    (row,) = score([("p", "four")])
    fields = row.fields()
    assert fields["score"] == row.reward
    assert row.variance is not None
    assert fields[VARIANCE] == row.variance > 0
    members = [fields[f"surefoot_member_{k}"] for k in range(3)]
    assert sum(members) / 3 == pytest.approx(fields["surefoot_mean"])


def test_refused(made: Any) -> None:
    with pytest.raises(ConfigError, match="anchor_file is missing"):
        RowScorer.open(settings(made, anchor_file=None))
    with pytest.raises(DataError, match="has no anchor"):
        RowScorer.open(settings(made))([("a prompt without anchor ", "cat")])
    with pytest.raises(ConfigError, match="isn't calibrated"):
        RowScorer(three(calibrated=False), EngineSettings(anchor="calibration"))
    with pytest.raises(RowError, match=r"row 1.*no reward"):
        RowScorer(three(unscored=("bad",)), EngineSettings(anchor="calibration"))([("p", "good"), ("p", "bad")])
    with pytest.raises(ConfigError, match=r"give surefoot\.source"):
        open_source(EngineSettings())
    with pytest.raises(ConfigError, match="SUREFOOT_NO_KEY, which holds no key"):
        open_source(EngineSettings(url="http://127.0.0.1:1", key_variable="SUREFOOT_NO_KEY"))


def test_weights_need_a_variance() -> None:
    one = FunctionMembers(lambda prompts, completions: [[float(len(text))] for text in completions], 1, "one")
    with pytest.raises(VarianceError, match="one member"):
        RowScorer(one, EngineSettings(anchor="calibration"))([("p", "four")])
    (row,) = RowScorer(one, EngineSettings(preset="vanilla", anchor="calibration"))([("p", "four")])
    assert (row.reward, row.variance) == (4.0, None)
    assert VARIANCE not in row.fields()


def test_served_source_gives_the_same(made: Any) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
    from surefoot.serving.app import create_app

    app = create_app(made.source, ServeArguments(reward_source="given"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        served = RowScorer.open(settings(made, source=None, url=f"http://127.0.0.1:{port}"))(ROWS)
    finally:
        server.should_exit = True
        thread.join()
    own = RowScorer.open(settings(made))(ROWS)
    for name in ("reward", "mean", "variance"):
        mine = torch.tensor([getattr(row, name) for row in own])
        theirs = torch.tensor([getattr(row, name) for row in served])
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5)


def test_texts() -> None:
    user = [{"role": "user", "content": "hi "}]
    assert as_texts(user, "there", True, "text") == ("hi ", "there")
    prompt, completion = as_texts(user, "there", True, "messages")
    assert (prompt, completion) == (user, [{"role": "assistant", "content": "there"}])
    for texts in ("text", "messages"):
        assert not is_cut(as_texts(user, "there", True, texts)[1])
        assert is_cut(as_texts(user, "there", False, texts)[1])
    with pytest.raises(DataError, match="one message, got one of 2"):
        as_texts(user * 2, "there", True, "text")
