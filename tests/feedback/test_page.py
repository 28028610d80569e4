"""The page's server: what it shows and hides, whom it refuses, and each answer on disk before the next pair."""

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from surefoot.feedback.answers import open_answers, read_answers
from surefoot.feedback.page import listen, make_app, shown_left
from surefoot.feedback.pairs import Pair, pair_id

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
TOKEN = "t0ken"
_TEXTS = [
    ("first prompt", "apples <script>document.title='run'</script>", "pears"),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
     [{"role": "assistant", "content": "hello"}], [{"role": "assistant", "content": "hey"}]),
    ("third prompt", "plums", "figs"),
]  # fmt: skip
PAIRS = [Pair(pair_id(*texts), *texts) for texts in _TEXTS]  # type: ignore[arg-type]


class Client:
    """Requests with every header under control."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(self, path: str, body: Any = None, **headers: str | None) -> tuple[int, Any, dict[str, str]]:
        usual = {"Host": f"127.0.0.1:{self.port}"}
        if body is not None:
            usual |= {"Content-Type": "application/json", "X-Surefoot-Token": TOKEN}
        usual |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[misc]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest("GET" if body is None else "POST", path, skip_host=True)
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        for name, value in usual.items():
            if value is not None:
                connection.putheader(name, value.encode())
        if body is not None:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        values = json.loads(text) if reply.headers["content-type"].startswith("application/json") else text
        return reply.status, values, {name.lower(): value for name, value in reply.headers.items()}

    def post(self, path: str, **values: Any) -> Any:
        status, reply, _ = self.send(path, {"annotator": "ann", **values})
        return reply if status == 200 else (status, reply["error"])

    def answer(self, pair: Pair, choice: str, annotator: str = "ann", **values: Any) -> Any:
        return self.post("/answer", pair=pair.id, answer=choice, seconds=1.25, annotator=annotator, **values)


@contextmanager
def served(file: Path, seed: int = 0) -> Iterator[Client]:
    with open_answers(file, PAIRS, seed) as answers, listen() as listening:
        port = listening.getsockname()[1]
        app = make_app(PAIRS, answers, TOKEN, port, seed)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield Client(port)
        finally:
            server.should_exit = True
            thread.join(20)


def test_answers_are_on_disk_when_the_next_pair_comes_and_nothing_tells_rewards_or_sides(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with served(file) as client:
        state = client.post("/next")
        assert set(state) == {"pair", "done", "of"}
        assert set(state["pair"]) == {"id", "prompt", "left", "right"}
        assert (state["done"], state["of"], state["pair"]["id"]) == (0, 3, PAIRS[0].id)
        left = shown_left(PAIRS[0].id, "ann", 0)
        assert state["pair"]["left"] == [{"role": "", "text": getattr(PAIRS[0], left)}]
        state = client.answer(PAIRS[0], "left", strength=2)
        (held,) = read_answers(file)
        assert (held.choice, held.left, held.strength, held.seconds) == (left, left, 2, 1.25)
        assert state["pair"]["prompt"][0] == {"role": "system", "text": "Be brief."}
        assert client.answer(PAIRS[1], "tie")["pair"]["id"] == PAIRS[2].id
        assert client.answer(PAIRS[2], "skip") == {"pair": None, "done": 3, "of": 3}
        assert [answer.choice for answer in read_answers(file)] == [left, "tie", "skip"]
        assert client.post("/undo")["pair"]["id"] == PAIRS[2].id
        assert client.post("/undo")["pair"]["id"] == PAIRS[1].id
        assert client.post("/next")["done"] == 1


def test_the_same_answer_twice_counts_once_and_another_is_refused(tmp_path: Path) -> None:
    with served(tmp_path / "answers.jsonl") as client:
        first = client.answer(PAIRS[0], "left")
        assert client.answer(PAIRS[0], "left") == first
        status, told = client.answer(PAIRS[0], "right")
        assert (status, "undo it" in told) == (409, True)
        assert len(read_answers(tmp_path / "answers.jsonl")) == 1


def test_annotators_don_t_see_each_others_answers_and_sides_differ_between_them(tmp_path: Path) -> None:
    with served(tmp_path / "answers.jsonl") as client:
        client.answer(PAIRS[0], "left")
        assert client.post("/next", annotator="bob")["pair"]["id"] == PAIRS[0].id
        assert client.post("/undo", annotator="bob")["done"] == 0
        assert client.post("/next")["done"] == 1
    sides = [shown_left(f"pair {i}", name, 0) for i in range(500) for name in ("ann", "bob")]
    assert 440 < sides.count("a") < 560  # four standard errors about a half
    assert 200 < sum(a != b for a, b in zip(sides[::2], sides[1::2], strict=True)) < 300


def test_a_restart_goes_on_where_the_answers_end_and_shows_the_same_sides(tmp_path: Path) -> None:
    with served(tmp_path / "answers.jsonl") as client:
        client.answer(PAIRS[0], "left")
        before = client.post("/next")
    with served(tmp_path / "answers.jsonl") as client:
        assert client.post("/next") == before


def test_who_lacks_the_token_or_comes_from_elsewhere_is_refused(tmp_path: Path) -> None:
    who = {"annotator": "ann"}
    with served(tmp_path / "answers.jsonl") as client:
        port = client.port
        assert client.send("/next", who)[0] == 200
        assert client.send("/next", who, Origin=f"http://localhost:{port}", Host=f"localhost:{port}")[0] == 200
        for headers, status in (
            ({"X_Surefoot_Token": None}, 403),
            ({"X_Surefoot_Token": "guess"}, 403),
            ({"Host": f"evil.example:{port}"}, 421),  # DNS rebinding
            ({"Host": "127.0.0.1"}, 421),
            ({"Host": None}, 400),
            ({"Origin": "http://evil.example"}, 403),  # another site
            ({"Origin": "null"}, 403),
            ({"Content_Type": "text/plain"}, 415),  # what a form may send without asking first
        ):
            assert client.send("/next", who, **headers)[0] == status, headers  # type: ignore[arg-type]
        for path in ("/", "/?token=guess"):
            assert client.send(path)[0] == 403
        assert client.send(f"/next?token={TOKEN.encode().hex()}")[0] == 403
        assert client.send("/docs")[0] == client.send("/openapi.json")[0] == 403
    assert read_answers(tmp_path / "answers.jsonl") == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b"[]", 422),
        ({"annotator": " ", "pair": "x", "answer": "left", "seconds": 1}, 422),
        ({"annotator": "ann", "pair": "x", "answer": "left", "seconds": 1}, 404),
        ({"annotator": "ann", "pair": PAIRS[0].id, "answer": "up", "seconds": 1}, 422),
        ({"annotator": "ann", "pair": PAIRS[0].id, "answer": "left", "seconds": -1}, 422),
        (b'{"annotator": "ann", "pair": "x", "answer": "tie", "seconds": NaN}', 422),
        ({"annotator": "a" * 5000}, 413),
    ],
)
def test_answers_that_can_t_be_are_refused(body: Any, status: int, tmp_path: Path) -> None:
    with served(tmp_path / "answers.jsonl") as client:
        assert client.send("/answer", body)[0] == status
    assert read_answers(tmp_path / "answers.jsonl") == []


def test_the_page_loads_nothing_from_elsewhere_and_may_run_its_own_script_alone(tmp_path: Path) -> None:
    with served(tmp_path / "answers.jsonl") as client:
        status, page, headers = client.send(f"/?token={TOKEN}")
        again = client.send(f"/?token={TOKEN}")[2]["content-security-policy"]
    assert status == 200
    assert re.findall(r"""(?:src|href)=["']?(?!data:,)[^"'>\s]+""", page) == []
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    (nonce,) = set(re.findall(r"nonce-([\w-]+)", policy))
    assert page.count(f'nonce="{nonce}"') == 2
    assert policy != again  # a nonce is used once
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_two_windows_at_once_write_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with served(file) as client:
        threads = [
            threading.Thread(target=client.answer, args=(pair, "tie", f"name {i}")) for i in range(6) for pair in PAIRS
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        time.sleep(0.05)
    assert len(read_answers(file)) == 18
