"""Secrets are known by name or by looks, at any depth; what only sounds like one stays."""

from typing import Any

import pytest

from surefoot.records import claim_directory, make_record
from surefoot.redaction import REDACTED, holds_secret, redacted

TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    "name",
    [
        *("hub_token", "token", "push_to_hub_token", "HF_TOKEN", "api_key", "OPENAI_API_KEY", "x-api-key", "apikey"),
        *("password", "db_password", "client_secret", "aws_secret_access_key", "credentials", "Authorization"),
    ],
)
def test_secret_by_name(name: str) -> None:
    assert redacted({"a": [{name: "xyz"}]}) == {"a": [{name: REDACTED}]}
    assert holds_secret({"a": [{name: "xyz"}]})


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 5, "budget_tokens": 7, "token_parameter": "max_tokens", "key_variable": "OPENAI_API_KEY"},
        {"pad_token": "<pad>", "eos_token": "</s>", "key": "0123abcd", "secretary": "x", "monkey": "y"},
        {"hub_token": None, "token": True, "note": "a risk-averse user at https://host/a@b"},
        {"credentials": {"world": "even"}, "seeds": (1, 2)},
    ],
)
def test_no_secret(values: dict[str, Any]) -> None:
    assert redacted(values) == values
    assert not holds_secret(values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"use {TOKEN} now", f"use {REDACTED} now"),
        ("sk-proj-abcdefgh12345678", REDACTED),
        ("https://me:pass@host:80/v1", f"https://{REDACTED}@host:80/v1"),
    ],
)
def test_secret_by_looks(text: str, said: str) -> None:
    assert redacted([text]) == [said]
    assert redacted(redacted([text])) == [said]


def test_records_and_claims_hold_none(tmp_path: Any) -> None:
    """A run goes on with another token: it is no part of what a directory is bound to."""
    record = make_record("x", {"hub_token": "t1", "beta": 1}, seed=0, data_hash=None, metrics={"token": "word"})
    assert record["config"] == {"hub_token": REDACTED, "beta": 1}
    assert record["metrics"] == {"token": "word"}
    with claim_directory(tmp_path / "run", "x", {"hub_token": "t1", "beta": 1}) as folder:
        assert "t1" not in (folder / "run.json").read_text()
    with claim_directory(tmp_path / "run", "x", {"hub_token": "t2", "beta": 1}):
        pass
