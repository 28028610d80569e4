"""Verifiers: what they accept, what they refuse to run, and the limits of completions' code."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import ConfigError, DataError
from surefoot.rewards.kinds.criteria.config import CriteriaConfig
from surefoot.rewards.kinds.criteria.criterion import Criterion
from surefoot.rewards.kinds.criteria.unit_tests import code_of, passes
from surefoot.rewards.kinds.criteria.verifiers import Verifiers


def decided(criterion: Criterion, completion: Any, functions: Any = None, **settings: Any) -> float:
    verifiers = Verifiers(CriteriaConfig(**settings), functions)
    verifiers.check([criterion])
    return verifiers.answers(["p"], [completion], [[criterion]])[0][0]


def exact(*answers: str, extract: str | None = None) -> Criterion:
    return Criterion("x", kind="exact_match", answers=answers, extract=extract)


@pytest.mark.parametrize(
    ("criterion", "completion", "met"),
    [
        (exact("Paris"), "  paris. ", 1),
        (exact("Paris"), "Paris, France", 0),
        (exact("Paris", "Paris, France"), "Paris,  france", 1),
        (exact("1000"), "1,000.0", 1),
        (exact("12"), "1,2", 0),
        (exact("-3"), "−3", 1),
        (exact("1" * 40), "1" * 39 + "2", 0),
        (exact("42", extract="last_number"), "First 41, then 42.", 1),
        (exact("41", extract="last_number"), "First 41, then 42.", 0),
        (exact("42", extract="last_number"), "none", 0),
        (exact(r"\frac{1}{2}", extract="boxed"), r"so \boxed{3}, or rather $\boxed{\frac{1}{2}}$", 1),
        (exact("B", extract="last_line"), "A or B?\n\n**B**\n \n", 1),
        (exact("B", extract="after_answer"), "The answer is: B", 1),
        (exact("7", extract="mine"), "x=5 x=7 y=9", 1),
    ],
)
def test_exact_match(criterion: Criterion, completion: str, met: int) -> None:
    assert decided(criterion, completion, patterns={"mine": r"x=(\d)"}) == met
    assert decided(criterion, [{"role": "assistant", "content": completion}], patterns={"mine": r"x=(\d)"}) == met


def test_a_pattern_is_named_in_the_settings_and_never_brought_by_data() -> None:
    with pytest.raises(ConfigError, match=r"names '\(a\+\)\+\$', but patterns of the settings are after"):
        decided(exact("a", extract="(a+)+$"), "a" * 50)
    with pytest.raises(ConfigError, match="patterns: 'mine' is no regular expression"):
        Verifiers(CriteriaConfig(patterns={"mine": "("}))


def function(name: str) -> Criterion:
    return Criterion("f", kind="function", function=name)


def test_functions(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text("def short(prompt, completion):\n    return len(completion) < 5\n")
    named = {"short": f"{tmp_path / 'checks.py'}:short"}
    verifiers = Verifiers(CriteriaConfig(functions=named), {"half": lambda prompt, completion: 0.5})
    rows = verifiers.answers(["p", "p"], ["abc", "abcdef"], [[function("short"), function("half")]] * 2)
    assert rows == [[1.0, 0.5], [0.0, 0.5]]
    unknown = Verifiers(CriteriaConfig(), {"none": lambda prompt, completion: None})
    assert math.isnan(unknown.answers(["p"], ["c"], [[function("none")]])[0][0])


def test_functions_that_fail_are_named() -> None:
    def broken(prompt: Any, completion: Any) -> float:
        raise KeyError(f"secret {completion}")

    with pytest.raises(DataError, match="row 0: function 'f' of a criterion failed: KeyError") as error:
        decided(function("f"), "c", {"f": broken})
    assert "secret" not in str(error.value)
    with pytest.raises(DataError, match="gave 3; give a number from 0 to 1"):
        decided(function("f"), "c", {"f": lambda prompt, completion: 3})


def test_data_can_t_name_a_file_to_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(p, c): return 1\n")
    with pytest.raises(ConfigError, match="but functions of the settings are none; add it there"):
        decided(function(f"{tmp_path / 'evil.py'}:f"), "c")
    with pytest.raises(ConfigError, match="unit_tests, which runs code of completions on this"):
        decided(Criterion("t", kind="unit_tests", tests="assert f() == 1"), f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert not (tmp_path / "ran").exists()


def test_the_code_of_a_completion() -> None:
    assert code_of("Some\n```python\na = 1\n```\nthen\n```\nb = 2\n```\n") == "b = 2\n"
    assert code_of("a = 1") == "a = 1"


TESTS = "assert add(1, 2) == 3"
GOOD = "Here:\n```python\ndef add(a, b):\n    print('noise')\n    return a + b\n```"


def run(code: str, tests: str = TESTS, seconds: float = 5.0) -> bool:
    return passes(code, tests, seconds, 512)


def test_unit_tests_pass_and_fail() -> None:
    assert run(GOOD)
    assert not run(GOOD.replace("+", "-"))
    assert not run("no code at all")
    criterion = Criterion("t", kind="unit_tests", tests=TESTS)
    assert decided(criterion, GOOD, run_code=True) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "x = bytearray(2**31)\ndef add(a, b): return a + b",
        "open('large', 'wb').write(bytes(2**22))\ndef add(a, b): return a + b",
        "raise SystemExit",
    ],
)
def test_an_early_end_is_no_pass(code: str) -> None:
    assert not run(code)


def test_no_environment_and_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    assert run("import os", "assert 'MY_API_KEY' not in os.environ\nassert os.listdir('.') == []")
    assert run("import os", f"assert os.getcwd() != {str(tmp_path)!r}\nopen('mine', 'w').write('x')")
    assert list(tmp_path.iterdir()) == []


def test_time_is_limited_and_children_are_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    forks = f"import os, time\nif os.fork() == 0:\n    open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    start = time.monotonic()
    assert not run("while True: pass", seconds=1.0)
    assert not run(forks, seconds=1.5)
    assert time.monotonic() - start < 8
    if pid.exists():  # root alone can fork
        time.sleep(0.1)
        state = Path(f"/proc/{pid.read_text()}/stat")
        assert not state.exists() or state.read_text().split(") ")[1][0] == "Z"
    if os.getuid() != 0:
        assert not pid.exists()
