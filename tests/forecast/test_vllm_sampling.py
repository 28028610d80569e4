"""Candidates from a server's `/v1/completions`: what is asked, what is made of the answers, and what is refused."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from surefoot.data.messages import is_cut
from surefoot.errors import ConfigError, DataError, ModelError
from surefoot.forecast.candidates import draw_candidates, read_candidates
from surefoot.forecast.run import ForecastArguments
from surefoot.forecast.vllm_sampling import KEY, VllmServer
from tests.models import WORDS, save_policy

PROMPTS = [f"the {word} " for word in WORDS[:3]]
HOW: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0.7, "seed": 3}


class Served(ThreadingHTTPServer):
    """Answers with the request's seed; every third completion is cut off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.status, self.body = 200, b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Served

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/completions"
        self.server.asked.append(request)
        self.server.keys.append(self.headers["Authorization"])
        reason = "length" if request["seed"] % 3 == 0 else "stop"
        choice = {"text": f"cat {request['seed']}", "finish_reason": reason}
        body = self.server.body or json.dumps({"choices": [choice]}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Served]:
    served = Served()
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("served") / "policy")


def test_each_completion_is_asked_for_by_tokens_and_plain_sampling(
    server: Served, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "secret")
    tokenizer = AutoTokenizer.from_pretrained(policy)
    texts = VllmServer(server.url, "policy").draw(tokenizer, PROMPTS, 4, **HOW)
    plain = {"model": "policy", "max_tokens": 5, "temperature": 0.7, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
    assert all(plain.items() <= request.items() for request in server.asked)
    assert {request["repetition_penalty"] for request in server.asked} == {1.0}
    assert sorted(tokenizer.decode(request["prompt"]) for request in server.asked) == sorted(
        tokenizer.decode(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS for _ in range(4)
    )
    assert len({request["seed"] for request in server.asked}) == len(texts) == 12
    assert set(server.keys) == {"Bearer secret"}
    by_text = {f"cat {request['seed']}": request for request in server.asked}
    for i, text in enumerate(texts):  # each in the place of its prompt
        assert isinstance(text, str)
        assert tokenizer.decode(by_text[text]["prompt"]) == tokenizer.decode(tokenizer(PROMPTS[i // 4])["input_ids"])
        assert is_cut(text) == (by_text[text]["seed"] % 3 == 0)
    assert 0 < sum(map(is_cut, texts)) < 12


def test_seeds_depend_on_seed_and_prompt_alone(server: Served, policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy)
    served = VllmServer(server.url, "policy")
    texts = served.draw(tokenizer, PROMPTS, 2, **HOW)
    assert served.draw(tokenizer, PROMPTS[::-1], 2, **HOW) == texts[4:] + texts[2:4] + texts[:2]
    assert served.draw(tokenizer, PROMPTS[:1], 2, **(HOW | {"seed": 4})) != texts[:2]


def test_candidates_are_kept(server: Served, policy: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"max_completion_length": 5, "vllm_server_base_url": server.url, "prompts_per_batch": 2}
    file = draw_candidates(str(policy), PROMPTS, 8, tmp_path, **how)
    prompts, completions = read_candidates(str(file))
    assert prompts == [prompt for prompt in PROMPTS for _ in range(8)]
    assert len(set(completions)) == 24
    asked = len(server.asked)
    file.unlink()
    draw_candidates(str(policy), PROMPTS, 8, tmp_path, **how)
    assert len(server.asked) == asked


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (400, {"error": {"message": "no such field"}}, ModelError, "no such field"),
        (422, {"error": {"message": "too long"}}, DataError, "too long"),
        (200, {"choices": []}, ModelError, "is it `vllm serve`"),
        (200, [1], ModelError, "is it `vllm serve`"),
    ],
)
def test_what_is_refused(
    server: Served, policy: Path, status: int, body: Any, error: type[Exception], words: str
) -> None:
    server.status, server.body = status, json.dumps(body).encode()
    with pytest.raises(error, match=words):
        VllmServer(server.url, "policy").draw(AutoTokenizer.from_pretrained(policy), PROMPTS[:1], 1, **HOW)


def test_a_page_of_html_names_vllm(server: Served, policy: Path) -> None:
    server.body = b"<html>"
    with pytest.raises(ModelError, match="is it `vllm serve`"):
        VllmServer(server.url, "policy").draw(AutoTokenizer.from_pretrained(policy), PROMPTS[:1], 1, **HOW)


def test_a_file_of_completions_needs_no_server() -> None:
    with pytest.raises(ConfigError, match="vllm_server_base_url draws"):
        ForecastArguments("out", "source", completions="c.jsonl", vllm_server_base_url="http://x:1").check()
