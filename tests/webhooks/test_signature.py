from __future__ import annotations

import sys
from typing import Any

import pytest
from django.views.debug import ExceptionReporter

from kapso_connect.webhooks import registration
from kapso_connect.webhooks.signature import is_valid, sign

BODY = b'{"phone_number_id": "1"}'


def test_signature_is_hmac_sha256_in_hex() -> None:
    # RFC 4231, test case 2
    assert (
        sign(b"what do ya want for nothing?", "Jefe")
        == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@pytest.mark.parametrize("change", [str, str.upper, lambda s: f" {s} "])
def test_upper_case_and_padding_are_accepted(change) -> None:
    assert is_valid(BODY, change(sign(BODY, "s3cret")), ["s3cret"])


def test_any_of_several_secrets_is_accepted() -> None:
    for secret in ("old", "new"):
        assert is_valid(BODY, sign(BODY, secret), ["old", "new"])


@pytest.mark.parametrize(
    "signature",
    ["", "0" * 64, "é" * 64, "\ud800", sign(BODY, "other"), sign(BODY + b" ", "s3cret")],
)
def test_anything_else_is_refused(signature: str) -> None:
    assert not is_valid(BODY, signature, ["s3cret"])


def test_without_secrets_nothing_is_valid() -> None:
    assert not is_valid(BODY, sign(BODY, ""), [])


def test_secret_that_is_not_utf8_in_the_environment_is_its_bytes() -> None:
    secret = b"caf\xe9".decode("utf-8", "surrogateescape")  # as os.environ decodes it
    assert is_valid(BODY, sign(BODY, secret), [secret])


@pytest.mark.parametrize(
    "call",
    [
        lambda secret: sign("not bytes", secret),
        lambda secret: is_valid("not bytes", "0" * 64, [secret]),
        lambda secret: registration._post(None, "not bytes", secret),
        lambda secret: registration.verify_secrets(b"not a text", [secret]),
    ],
)
def test_error_reports_do_not_show_the_secret(call: Any) -> None:
    secret = "s3cr3t-of-the-webhook"
    try:
        call(secret)
    except Exception:
        reporter = ExceptionReporter(None, *sys.exc_info())
    # The frame of this test has the secret, too.
    frames = [f for f in reporter.get_traceback_frames() if f["filename"] != __file__]
    assert frames
    assert secret not in repr([frame["vars"] for frame in frames])
