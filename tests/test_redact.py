"""What is secret is masked, and what is not stays as it is."""

from __future__ import annotations

import pytest

from otel_ml import redact

GITHUB = "ghp_" + "a1B2" * 9
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "name",
    [
        "password", "DB_PASSWORD", "PGPASSWORD", "db.passwd", "--api-key", "apiKey", "X-Api-Key", "HF_TOKEN", "token",
        "accessToken", "AUTHTOKEN", "client_secret", "AWS_SECRET_ACCESS_KEY", "SENTRY_DSN", "Authorization", "Cookie",
        "OTEL_EXPORTER_OTLP_HEADERS", "db-pass", "mysql_pwd", "GOOGLE_APPLICATION_CREDENTIALS", "+wandb.api_key",
    ],
)  # fmt: skip
def test_secret_names(name: str) -> None:
    """Names that people give to secrets are known, however they are written."""
    assert redact.is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "", "lr", "max_tokens", "tokenizer", "--eos-token", "pad_token", "num_token", "key", "sort_key", "image_key",
        "author", "forward_pass", "bypass", "passes", "compass", "seed", "OTEL_SERVICE_NAME", "monkey",
    ],
)  # fmt: skip
def test_plain_names(name: str) -> None:
    """Words of training and text are not taken for secrets."""
    assert not redact.is_secret(name)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["train.py", "--api-key=abc", "--lr", "0.1"], ["train.py", "--api-key=****", "--lr", "0.1"]),
        (["--token", "abc", "--steps", "3"], ["--token", "****", "--steps", "3"]),
        (["--use-auth-token", "--epochs", "3"], ["--use-auth-token", "--epochs", "3"]),
        (["env", "HF_TOKEN=a b c", "python"], ["env", "HF_TOKEN=****", "python"]),
        (["+wandb.api_key=abc", "model.lr=1"], ["+wandb.api_key=****", "model.lr=1"]),
        (["-H", "Authorization: Basic YWxhZGRpbg=="], ["-H", "Authorization: ****"]),
        (["--db=postgres://ada:pw@db/x", "--max_tokens=5"], ["--db=postgres://****@db/x", "--max_tokens=5"]),
        (['{"api_key": "abc", "lr": 1}'], ['{"api_key": "****", "lr": 1}']),
        (["--password"], ["--password"]),
        (["-c", "connect(password='a b')"], ["-c", "connect(password='****')"]),
    ],
)
def test_command_lines(before: list[str], after: list[str]) -> None:
    """A command line keeps its words and their places; only the secrets in it are masked."""
    assert redact.argv(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("postgres://ada:pw@db:5432/x", "postgres://****@db:5432/x"),
        ("cannot open redis://:pa/ss@cache:6379/0", "cannot open redis://****@cache:6379/0"),
        ("https://1f2e@o1.ingest.sentry.io/42", "https://****@o1.ingest.sentry.io/42"),
        ("http://host:8080/a@b http://host/x@y", "http://host:8080/a@b http://host/x@y"),
        ("Authorization: Bearer abc, lr=1", "Authorization: ****, lr=1"),
        ("got bearer abcdefghij back", "got bearer **** back"),
        ("authorization=Basic%20abc,tenant=x", "authorization=****,tenant=x"),
        ("{'api_key': 'x y', 'lr': 1}", "{'api_key': '****', 'lr': 1}"),
        ("run --token abc --lr 3", "run --token **** --lr 3"),
        ("WANDB_API_KEY='a b' HF_TOKEN=c d", "WANDB_API_KEY='****' HF_TOKEN=**** d"),
        ("https://s3/x?X-Amz-Signature=aa&part=1", "https://s3/x?X-Amz-Signature=****&part=1"),
        (f"remote: {GITHUB} was refused", "remote: **** was refused"),
        (f"session {JWT}.", "session ****."),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nrest",
            "-----BEGIN RSA PRIVATE KEY-----****-----END RSA PRIVATE KEY-----\nrest",
        ),
        ("ValueError: login failed: password=abc, lr=1", "ValueError: login failed: password=****, lr=1"),
        ('{"message": "token: abc", "step": "3"}', '{"message": "token: ****", "step": "3"}'),
        ("ValueError: max_tokens: 5, loss=nan at step 3", "ValueError: max_tokens: 5, loss=nan at step 3"),
        ("Größe der Eingabe: (3, 4)", "Größe der Eingabe: (3, 4)"),
        ("", ""),
    ],
)
def test_messages(before: str, after: str) -> None:
    """Messages, headers and URLs keep everything but their secrets, and masking twice changes nothing."""
    assert redact.text(before) == after
    assert redact.text(after) == after


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=1", "****"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://ada:pw@collector:4318", "http://****@collector:4318"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=a,api_key=b", "team=a,api_key=****"),
        ("HF_TOKEN", "", ""),
    ],
)
def test_values(name: str, before: str, after: str) -> None:
    """A variable is masked whole where its name is secret, else only what is secret in it; empty stays empty."""
    assert redact.value(name, before) == after


@pytest.mark.parametrize("hostile", ["a", "a-", "://", "http://:", "a='", "a: ", "'", '"', "a    ", "\\'", "eyJ"])
def test_long_messages_end(hostile: str) -> None:
    """A megabyte of anything is looked through in linear time: the test's own timeout is the judge."""
    message = hostile * (1_000_000 // len(hostile))
    assert redact.text(message) == message
