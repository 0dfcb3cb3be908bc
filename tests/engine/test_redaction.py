"""What counts as a secret, and what does not."""

import pytest

from ftbuild.redaction import Redactor, holds_secret, of_environment

NONE = Redactor(())


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at https://user:pass@host/x", "at https://…@host/x"),
        ("at https://token@host/x and", "at https://…@host/x and"),
        ("postgresql://u:p%40ss@db:5432/x", "postgresql://…@db:5432/x"),
        ("https://h/x?a=1&token=abc&b=2", "https://h/x?a=1&token=…&b=2"),
        ("https://b.s3.host/x?X-Amz-Signature=ab12&y=1", "https://b.s3.host/x?X-Amz-Signature=…&y=1"),
        ("key hf_" + "a1" * 12 + ".", "key …."),
        ("ghp_" + "Z9" * 18, "…"),
        ("AKIA" + "A1" * 8, "…"),
        ("ed25519-private:" + "A" * 43 + "=", "…"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret(text: str, clean: str) -> None:
    assert NONE.text(text) == clean
    assert len(NONE.masked(text)) == len(text)
    assert holds_secret(text) is not None or "token@" in text


@pytest.mark.parametrize(
    "text",
    [
        "https://host/path@version?page=2",
        "hf:org/name@main",
        "mail me@example.org",
        "//package:target",
        "sha256 " + "0a" * 32,
        "<|im_start|>user\n{{ message }}",
        "token = 3 and secret = 4",
        "hf_short",
        "keyboard?key=1",
    ],
)
def test_what_does_not(text: str) -> None:
    assert NONE.text(text) == text
    assert holds_secret(text) is None


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "plain words")
    monkeypatch.setenv("DATABASE", "postgresql://me:hunter22@db/x")
    monkeypatch.setenv("MODE", "production")
    monkeypatch.setenv("RANDOM_ONE", "a1b2c3d4e5f6a7b8")
    monkeypatch.setenv("SHORT_TOKEN", "on")
    monkeypatch.setenv("TOKEN_FILE", "/run/secrets/token")
    text = "plain words, hunter22, production, a1b2c3d4e5f6a7b8, on, /run/secrets/token"
    clean = "…, …, production, a1b2c3d4e5f6a7b8, on, /run/secrets/token"
    assert of_environment().text(text) == clean
    declared = of_environment(["RANDOM_ONE", "MODE"])
    assert declared.text(text) == clean.replace("a1b2c3d4e5f6a7b8", "…")
    assert declared.value({"a": ["hunter22", 1, None]}) == {"a": ["…", 1, None]}
