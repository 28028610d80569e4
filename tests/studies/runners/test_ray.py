"""A study on a real Ray cluster of two nodes, one of which is killed while its cells run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import RunError
from surefoot.studies.run import run_study
from surefoot.studies.runners.ray import RayRunner

from ..test_run import small
from . import tasks

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its log files and sockets to the collector
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # two nodes of one machine would need one token
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    )
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_a_node_that_dies_loses_nothing(cluster: Any, study_folder: Path) -> None:
    second = cluster.add_node(num_cpus=1)
    config = small(["vanilla", "mean", "variance_aware"], [0, 1])
    killed: list[int] = []

    def watch(stage: str, done: int, total: int) -> None:
        running = len(list(study_folder.glob("work/*")))
        if stage == "policies" and running == 2 and not killed:
            killed.append(done)
            cluster.remove_node(second, allow_graceful=False)

    outcome = run_study(config, study_folder, title="ray", runner=RayRunner(cluster.address), on_progress=watch)
    assert killed, "no cell was running on both nodes when the node was to be killed"
    assert killed[0] < 18
    assert (outcome.finished, outcome.failed) == (6, 0)
    records = [json.loads(path.read_text()) for path in (study_folder / "cells").glob("*.json")]
    places = [(record["method"], record["seed"]) for record in records]
    assert sorted(places) == sorted((m, s) for m in ("vanilla", "mean", "variance_aware") for s in (0, 1))


def test_results_keep_their_order_and_a_lost_worker_is_said_plainly(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = RayRunner(cluster.address, retries=1)
    assert runner(tasks.square, [(3,), (1,), (2,)]) == [(9, "1"), (1, "1"), (4, "1")]
    monkeypatch.chdir(tmp_path)  # after the cluster has started elsewhere
    assert runner(os.getcwd, [()]) == [str(tmp_path)]
    with pytest.raises(RunError, match="lost more often than 1 times"):
        runner(tasks.die, [(0,)])


def test_an_absent_cluster_is_said_plainly() -> None:
    with pytest.raises(RunError, match="can't reach the Ray cluster"):
        RayRunner("127.0.0.1:1")(tasks.square, [(1,)])
