"""manage.py kapso_webhook: a running sandbox on one side, a running site on the other."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from pytest_django.live_server_helper import LiveServer

from kapso_connect.kapso.client import KapsoClient
from kapso_connect.models import Connection, Customer, WebhookEvent
from kapso_connect.testing import Sandbox, webhook_payload
from kapso_connect.webhooks import registration
from kapso_connect.webhooks.payloads import NOT_AN_OBJECT, SAMPLE_NUMBER
from kapso_connect.webhooks.views import WRONG_SIGNATURE

from ..factories import CREATED, SECRET, WEBHOOK, listening, payload_for, post
from ..faulty_server import FaultyServer, answer, hung
from ..proofs.support import Site, delivery, environment, new_database
from .conftest import add_webhook, run_command

pytest_plugins = ("tests.sandbox.support",)

NEW = "a-new-secret-nobody-may-see"


@pytest.fixture
def here(live_server: LiveServer, sandbox: Sandbox, configure: Any) -> str:
    """The webhook's address at a running site that knows the sandbox."""
    configure(PUBLIC_URL=live_server.url)
    return f"{live_server.url}{WEBHOOK}"


def run(*arguments: str) -> str:
    output = run_command("kapso_webhook", *arguments)
    assert SECRET not in output
    assert NEW not in output
    return output


def fails(*arguments: str, status: int = 1) -> str:
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    assert caught.value.returncode == status
    assert SECRET not in str(caught.value)
    assert NEW not in str(caught.value)
    return str(caught.value)


def webhooks(sandbox: Sandbox) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in sandbox.state()["webhooks"]}


def writes(sandbox: Sandbox) -> list[str]:
    return [row["method"] for row in sandbox.requests() if row["method"] != "GET"]


# Registering and repairing


def test_a_missing_webhook_is_registered_once(here: str, sandbox: Sandbox) -> None:
    assert "Create a webhook" in run("--yes")
    (webhook,) = webhooks(sandbox).values()
    assert webhook["url"] == here
    assert webhook["secret_key"] == SECRET
    assert tuple(webhook["events"]) == registration.SUBSCRIBED_EVENTS
    assert (webhook["active"], webhook["payload_version"]) == (True, "v2")
    assert "Nothing to change" in run("--dry-run")
    assert "Nothing to change" in run()
    assert writes(sandbox) == ["POST"]


def test_the_events_are_those_of_the_documentation() -> None:
    page = Path("docs/how-to/webhook.md").read_text()
    assert set(re.findall(r"^- `(whatsapp\.\S+)`", page, re.M)) == set(
        registration.SUBSCRIBED_EVENTS
    )
    assert registration.TEST_EVENT in registration.SUBSCRIBED_EVENTS


def test_dry_run_changes_nothing_and_exits_with_3(here: str, sandbox: Sandbox) -> None:
    with pytest.raises(CommandError) as caught:
        run("--dry-run", "--test")
    assert caught.value.returncode == 3
    assert writes(sandbox) == []


WRONG = {
    "paused": ({"active": False}, "active: no -> yes", {"active": True}),
    "payload": ({"payload_version": "v1"}, "v1 -> v2", {"payload_version": "v2"}),
    "no-payload": ({"payload_version": None}, "none -> v2", {"payload_version": "v2"}),
    "secret": (
        {"secret_key": "another"},
        "secret: a secret that is not in",
        {"secret_key": SECRET},
    ),
}


@pytest.mark.parametrize(("wrong", "said", "right"), WRONG.values(), ids=WRONG)
def test_only_what_is_wrong_is_changed(
    here: str, sandbox: Sandbox, wrong: dict[str, Any], said: str, right: dict[str, Any]
) -> None:
    pk = add_webhook(sandbox, here, **wrong)
    assert said in run("--yes")
    assert right.items() <= webhooks(sandbox)[pk].items()
    patch = sandbox.requests()[-1]
    assert patch["body"] == {"whatsapp_webhook": right}
    assert "Nothing to change" in run()


def test_missing_events_are_added_and_chosen_ones_stay(here: str, sandbox: Sandbox) -> None:
    pk = add_webhook(sandbox, here, events=["project.event", CREATED])
    run("--yes")
    events = webhooks(sandbox)[pk]["events"]
    assert events[:2] == ["project.event", CREATED]
    assert set(events) == {*registration.SUBSCRIBED_EVENTS, "project.event"}


@pytest.mark.parametrize("almost", ["https", "no-slash", "upper"])
def test_url_that_is_almost_right_is_corrected(
    here: str, sandbox: Sandbox, configure: Any, almost: str
) -> None:
    configure(PUBLIC_URL="http://crm.example.com")
    wrong = {
        "https": "https://crm.example.com:443/whatsapp/webhook/",
        "no-slash": "http://crm.example.com/whatsapp/webhook",
        "upper": "http://CRM.example.com:80/whatsapp/webhook/",
    }[almost]
    pk = add_webhook(sandbox, wrong)
    run("--yes")
    assert list(webhooks(sandbox)) == [pk]
    assert webhooks(sandbox)[pk]["url"] == "http://crm.example.com/whatsapp/webhook/"


def test_webhooks_of_other_sites_are_not_changed(here: str, sandbox: Sandbox) -> None:
    number = sandbox.add_number()["phone_number_id"]
    others = [
        add_webhook(sandbox, "https://other.example/whatsapp/webhook/", active=False),
        add_webhook(sandbox, here.replace("/whatsapp/", "/bot/")),
        add_webhook(sandbox, re.sub(r":\d+/", ":1/", here)),
        add_webhook(sandbox, f"{here[:-1]}s/"),
        add_webhook(sandbox, here, kind="meta", phone_number_id=number, secret_key="s", events=[]),
        add_webhook(
            sandbox,
            here,
            phone_number_id=number,
            secret_key="s",
            events=["whatsapp.message.received"],
        ),
    ]
    before = webhooks(sandbox)
    out = run("--yes")
    assert {pk: webhooks(sandbox)[pk] for pk in others} == before
    assert out.count("Not changed") == len(others)
    assert len(webhooks(sandbox)) == len(others) + 1


def test_urls_are_shown_without_possible_secrets(here: str, sandbox: Sandbox) -> None:
    for other in range(12):
        add_webhook(sandbox, f"https://u:pw-{NEW}@hooks{other}.example/{NEW}?key={NEW}")
    add_webhook(sandbox, f"{here}?key={NEW}".replace("//", f"//u:{NEW}@"))
    out = run("--yes")
    assert f"url: {here}?... -> {here}" in out
    assert "to hooks11.example" in out
    assert "to hooks1.example" not in out
    assert "Not changed: 2 more" in out


def test_confirmation_may_take_longer_than_the_budget(
    here: str, sandbox: Sandbox, configure: Any, monkeypatch: Any
) -> None:
    configure(API_BUDGET=1)

    def think(prompt: str) -> str:
        time.sleep(1.2)
        return "y"

    monkeypatch.setattr("builtins.input", think)
    assert "Done: created" in run()


def test_a_webhook_can_be_adopted(here: str, sandbox: Sandbox) -> None:
    pk = add_webhook(sandbox, "https://old.example/whatsapp/webhook/")
    run("--yes", "--adopt", pk)
    assert {pk: row["url"] for pk, row in webhooks(sandbox).items()} == {pk: here}
    assert "has no webhook nobodys" in fails("--yes", "--adopt", "nobodys")


def test_one_of_several_is_kept_with_the_events_of_all(here: str, sandbox: Sandbox) -> None:
    idle = add_webhook(sandbox, here, active=False)
    extra = add_webhook(sandbox, here, events=["project.event"])
    kept = add_webhook(sandbox, here)
    out = run("--yes")
    assert "delivered more than once" in out
    rows = webhooks(sandbox)
    assert {pk: rows[pk]["active"] for pk in rows} == {idle: False, extra: False, kept: True}
    assert set(rows[kept]["events"]) == {*registration.SUBSCRIBED_EVENTS, "project.event"}
    assert "Nothing to change" in (again := run())
    assert "more than once" not in again


def test_of_two_webhooks_the_one_with_our_secret_is_kept(here: str, sandbox: Sandbox) -> None:
    right = add_webhook(sandbox, here)
    wrong = add_webhook(sandbox, here, secret_key="another")
    assert "It arrived" in run("--yes", "--test")
    assert webhooks(sandbox)[right]["active"]
    assert not webhooks(sandbox)[wrong]["active"]


def test_unconfirmed_creation_is_found(here: str, sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"match": "^POST", "kind": "apply_then_500", "times": 1}])
    assert "Done: created" in run("--yes")
    assert len(webhooks(sandbox)) == 1


def test_failed_creation_is_reported(here: str, sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"match": "^POST", "kind": "status", "status": 500}])
    assert "check before you repeat it" in (said := fails("--yes"))
    assert "Run the command again" in said
    sandbox.faults(api=[{"match": "^POST", "kind": "status", "status": 402}])
    assert "plan does not include" in fails("--yes")
    assert sandbox.requests()[-1]["method"] == "POST"


@pytest.mark.parametrize(
    ("reply", "changed"), [("y", True), ("YES ", True), ("n", False), ("", False)]
)
def test_changes_are_made_after_confirmation(
    here: str, sandbox: Sandbox, monkeypatch: Any, reply: str, changed: bool
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: reply)
    if changed:
        run()
    else:
        assert fails() == "Nothing was changed."
    assert len(webhooks(sandbox)) == changed


@pytest.mark.parametrize("stdin", [io.StringIO(), None], ids=["empty", "closed"])
def test_without_a_terminal_nothing_is_changed(
    here: str, sandbox: Sandbox, monkeypatch: Any, stdin: Any
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert "use --yes" in fails()
    assert writes(sandbox) == []


def test_a_secret_that_kapso_hides_is_set_on_request_only(configure: Any) -> None:
    hidden = {
        "id": "1",
        "url": "http://crm.example.com/whatsapp/webhook/",
        "kind": "kapso",
        "events": registration.SUBSCRIBED_EVENTS,
        "active": True,
        "payload_version": "v2",
    }
    with FaultyServer() as kapso:
        configure(API_BASE_URL=kapso.url, PUBLIC_URL="http://crm.example.com")
        for masked in (None, "whs_********"):
            rows = {"data": [{**hidden, "secret_key": masked}], "meta": {"total_pages": 1}}
            kapso.will(answer(200, rows))
            assert "signed with a secret that Kapso does not show" in run()
            with pytest.raises(CommandError, match="would be changed"):
                run("--dry-run", "--set-secret")


def test_quoted_errors_of_kapso_contain_no_secret(here: str, configure: Any) -> None:
    with FaultyServer() as kapso:
        configure(API_BASE_URL=kapso.url)
        rows: dict[str, Any] = {"data": [], "meta": {"total_pages": 1}}
        kapso.will(answer(200, rows), answer(422, {"error": f"{SECRET} is {SECRET}, too weak"}))
        assert "*** is ***, too weak" in fails("--yes")


def test_a_secret_the_running_site_refuses_is_not_set(sandbox: Sandbox, configure: Any) -> None:
    with FaultyServer() as site:
        site.will(answer(401, {"error": WRONG_SIGNATURE}))
        configure(PUBLIC_URL=site.url)
        pk = add_webhook(sandbox, f"{site.url}{WEBHOOK}", secret_key="another")
        assert "running with a different WEBHOOK_SECRET" in (said := fails("--yes"))
        assert said.endswith("Nothing was changed.")
        assert webhooks(sandbox)[pk]["secret_key"] == "another"


def test_site_that_does_not_answer_is_a_warning(sandbox: Sandbox, configure: Any) -> None:
    configure(PUBLIC_URL="http://127.0.0.1:9")
    pk = add_webhook(sandbox, f"http://127.0.0.1:9{WEBHOOK}", active=False)
    assert "Warning: No answer from http://127.0.0.1:9" in run("--yes")
    assert webhooks(sandbox)[pk]["active"]


def test_signature_check_stores_nothing(here: str, caplog: Any) -> None:
    assert registration.check_signature(here, SECRET).accepted is True
    assert registration.check_signature(here, NEW).accepted is False
    assert not WebhookEvent.objects.exists()
    refused = [row for row in caplog.records if "webhook.refused" in str(vars(row).values())]
    assert [vars(row)["status"] for row in refused] == [401]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"PUBLIC_URL": ""}, "PUBLIC_URL'] is not set"),
        ({"PUBLIC_URL": "crm.example.com"}, "is not a URL"),
        ({"PUBLIC_URL": "https://[::1"}, "is not a URL"),
        ({"PUBLIC_URL": "https://"}, "is not a URL"),
        ({"WEBHOOK_SECRET": ""}, "WEBHOOK_SECRET'] is not set"),
        ({"API_KEY": ""}, "no API key is set"),
        ({"API_KEY": "wrong"}, "refused the API key"),
        ({"API_KEY": 1}, "must be a string"),
    ],
    ids=str,
)
def test_invalid_settings_are_reported(
    sandbox: Sandbox, configure: Any, keys: dict[str, Any], words: str
) -> None:
    configure(**keys)
    assert words in fails("--yes")


def test_missing_urlconf_is_reported(sandbox: Sandbox, settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.sites.bare_urls"
    assert "is not in the URLconf" in fails()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://crm.example.com", "only to https"),
        ("https://localhost", "private network"),
        ("https://10.0.0.7:8000", "private network"),
        ("https://[::1]", "private network"),
        ("https://crm.internal", "private network"),
        ("https://crm", "private network"),
    ],
)
def test_an_address_that_kapso_cannot_deliver_to_is_not_registered(
    configure: Any, url: str, words: str
) -> None:
    configure(API_BASE_URL="https://api.kapso.ai", PUBLIC_URL=url)
    found = registration.WebhookInspection(f"{url}{WEBHOOK}", None, (), ())
    with pytest.raises(ImproperlyConfigured, match=words):
        registration.plan(found)


def test_a_public_https_address_is_fine(configure: Any) -> None:
    configure(API_BASE_URL="https://api.kapso.ai", PUBLIC_URL="https://8.8.8.8")
    assert registration.plan(
        registration.WebhookInspection(f"https://8.8.8.8{WEBHOOK}", None, (), ())
    )


def test_a_new_secret_is_all_that_is_printed() -> None:
    first, second = run("--new-secret"), run("--new-secret")
    assert re.fullmatch(r"[\w-]{64}\n", first)
    assert first != second


def test_verbosity_0_prints_nothing(here: str) -> None:
    assert run("--yes", "--test", "--verbosity", "0") == ""


@pytest.mark.slow
def test_output_that_the_terminal_cannot_encode(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.set_webhook("https://bäckerei\u202e.example/")
    command = [sys.executable, "-m", "django", "kapso_webhook", "--dry-run", "--no-color"]
    variables = {"KAPSO_PROOF_API_URL": sandbox.url, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        command, env=environment("sqlite://:memory:", **variables), capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert r"b\xe4ckerei\x202e.example" in done.stdout


# A test delivery


def test_a_test_delivery_arrives_and_connects_nothing(here: str, sandbox: Sandbox) -> None:
    with listening() as heard:
        assert "It arrived after" in run("--yes", "--test")
        assert "It arrived after" in run("--test")
    assert heard == []
    rows = WebhookEvent.objects.all()
    assert {(row.event, row.status) for row in rows} == {(registration.TEST_EVENT, "ignored")}
    assert len(rows) == 2
    assert not Customer.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("event", registration.SUBSCRIBED_EVENTS)
def test_samples_of_kapso_are_stored_and_change_nothing(event: str) -> None:
    customer = Customer(kapso_id="c-1", external_customer_id="acme")
    with listening() as heard:
        sample = webhook_payload(event, customer, SAMPLE_NUMBER)
        assert post(sample, event=event).status_code == 200
        assert post(payload_for(customer, "1", test=True), event=event).status_code == 200
    assert heard == []
    assert not Customer.objects.exists()
    assert not Connection.objects.exists()
    reasons = {(row.status, row.last_error) for row in WebhookEvent.objects.all()}
    assert reasons == {("ignored", "A test delivery; it changes nothing.")}


@pytest.mark.django_db
def test_only_true_marks_a_test_delivery(sandbox: Sandbox) -> None:
    customer = Customer(kapso_id="c-1", external_customer_id="acme")
    post(payload_for(customer, "1", test="no"))
    assert Connection.objects.get().is_connected


ACCEPTED = answer(400, {"error": NOT_AN_OBJECT})


@pytest.mark.slow
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([answer(404)], "nothing is there (404)"),
        ([answer(301, headers={"Location": "https://w.example/?s=1"})], "(301) to https://w.exam"),
        ([answer(403, b"<h1>no</h1>")], "something in front of it refuses (403)"),
        ([answer(401, {"error": "who?"})], "something in front of it refuses (401)"),
        ([answer(401, {"error": WRONG_SIGNATURE})], "running with a different WEBHOOK_SECRET"),
        ([answer(400, b"<h1>Bad Request</h1>")], "ALLOWED_HOSTS"),
        ([answer(500)], "it fails (500)"),
        ([answer(200, b"[" * 100_000)], "it answers 200"),
        ([answer(200, ["welcome"])], "it answers 200"),
        ([hung()], "the site did not answer in time"),
        ([ACCEPTED, answer(503)], "answers a delivery with 503"),
        ([ACCEPTED, hung()], "does not answer a delivery"),
        ([ACCEPTED, answer(200)], "in a different database"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_missing_delivery_is_explained(
    sandbox: Sandbox, configure: Any, monkeypatch: Any, replies: list[Any], words: str
) -> None:
    monkeypatch.setattr(registration, "SITE_TIMEOUT", 0.5)
    sandbox.faults(drop=True)
    with FaultyServer() as site:
        site.will(*replies)
        configure(PUBLIC_URL=site.url)
        add_webhook(sandbox, f"{site.url}{WEBHOOK}")
        assert words in (said := fails("--test", "--timeout", "1"))
    assert "did not arrive within 1 seconds" in said
    assert "s=1" not in said


@pytest.mark.django_db
def test_site_without_a_server_is_explained(sandbox: Sandbox, configure: Any) -> None:
    configure(PUBLIC_URL="http://127.0.0.1:9")
    out = io.StringIO()
    with pytest.raises(CommandError, match="could not connect to the site"):
        call_command("kapso_webhook", "--yes", "--test", "--timeout", "1", stdout=out)
    assert "Done: created" in out.getvalue()


def test_delivery_that_kapso_does_not_send_is_explained(here: str, sandbox: Sandbox) -> None:
    sandbox.faults(drop=True)
    add_webhook(sandbox, here)
    assert "Kapso does not reach it" in fails("--test", "--timeout", "1")
    probe = WebhookEvent.objects.get()
    assert (probe.event, probe.status) == ("kapso_connect.probe", "ignored")


def test_unavailable_database_is_reported(here: str) -> None:
    def away(*args: Any) -> None:
        raise OperationalError(f"password {NEW} refused")

    with connection.execute_wrapper(away):
        assert "database of these settings cannot be read" in fails("--yes", "--test")


# Rotation


def test_one_secret_is_not_rotated(here: str, sandbox: Sandbox, settings: Any) -> None:
    add_webhook(sandbox, here, secret_key="another")
    assert "Make it a list" in fails("--rotate", "--yes")
    assert writes(sandbox) == ["POST"]


def test_a_rotation_needs_a_webhook(here: str) -> None:
    assert "run without --rotate first" in fails("--rotate", "--yes")


def test_a_rotation_ends_with_what_to_do_next(here: str, sandbox: Sandbox, configure: Any) -> None:
    pk = add_webhook(sandbox, here)
    configure(WEBHOOK_SECRET=[NEW, SECRET])
    assert "Nothing to change" in run()
    assert "remove the old one" in run("--rotate", "--yes")
    assert webhooks(sandbox)[pk]["secret_key"] == NEW
    again = run("--rotate")
    assert "Nothing to change" in again
    assert "It arrived" in again
    configure(WEBHOOK_SECRET=[NEW])
    assert "remove the old one" not in run("--rotate")


def test_every_process_of_the_site_must_accept_the_new_secret_first(
    sandbox: Sandbox, configure: Any
) -> None:
    refused = answer(401, {"error": WRONG_SIGNATURE})
    with FaultyServer() as site:
        configure(PUBLIC_URL=site.url, WEBHOOK_SECRET=[NEW, SECRET])
        pk = add_webhook(sandbox, f"{site.url}{WEBHOOK}")
        site.will(*[ACCEPTED] * (registration.VERIFICATIONS - 1), refused)
        assert "Secret 1 of WEBHOOK_SECRET" in fails("--rotate", "--yes")
        assert site.connections == registration.VERIFICATIONS
        site.will(*[ACCEPTED] * registration.VERIFICATIONS, refused)
        assert "Secret 2 of WEBHOOK_SECRET" in (said := fails("--rotate", "--yes"))
        assert said.endswith("Nothing was changed.")
        assert webhooks(sandbox)[pk]["secret_key"] == SECRET


@pytest.mark.parametrize(
    ("request_line", "state"),
    [
        (rf"POST .*{WEBHOOK}", "Nothing was changed."),
        ("PATCH .*/webhooks/", "may sign with the new secret or with the old one"),
        ("POST .*/webhooks/[^/]+/test", "Kapso signs with the new secret"),
    ],
    ids=["verifying", "changing", "testing"],
)
def test_interrupted_rotation_reports_its_state_and_can_be_finished(
    here: str, sandbox: Sandbox, configure: Any, monkeypatch: Any, request_line: str, state: str
) -> None:
    pk = add_webhook(sandbox, here)
    configure(WEBHOOK_SECRET=[NEW, SECRET])
    send = requests.Session.send

    def interrupted(session: Any, request: Any, **kwargs: Any) -> Any:
        if re.match(request_line, f"{request.method} {request.url}"):
            raise KeyboardInterrupt
        return send(session, request, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(requests.Session, "send", interrupted)
        assert state in fails("--rotate", "--yes", status=130)
    run("--rotate", "--yes")
    assert webhooks(sandbox)[pk]["secret_key"] == NEW


def test_rotation_that_kapso_fails_loses_nothing(
    here: str, sandbox: Sandbox, configure: Any
) -> None:
    add_webhook(sandbox, here)
    configure(WEBHOOK_SECRET=[NEW, SECRET], API_BUDGET=2)
    sandbox.faults(api=[{"match": "^PATCH", "kind": "close"}])
    assert "this site accepts both" in fails("--rotate", "--yes")


@pytest.mark.slow
def test_nothing_is_lost_or_refused_while_the_secret_is_rotated(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    old = SECRET
    with (
        new_database("sqlite", tmp_path) as database,
        Site(
            database,
            KAPSO_PROOF_SECRETS=f"{NEW},{old}",
            KAPSO_PROOF_API_URL=sandbox.url,
            KAPSO_PROOF_FAST_SQLITE="1",
        ) as site,
    ):
        origin = f"http://127.0.0.1:{site.port}"
        pk = add_webhook(sandbox, f"{origin}{WEBHOOK}", secret_key=old)
        over = threading.Event()
        sent: list[str] = []
        late: list[int] = []

        def stream() -> None:
            while not over.is_set():
                number = sandbox.add_number(
                    external_customer_id=f"customer-{len(sent)}", webhook=True
                )["phone_number_id"]
                # What Kapso had signed before, or repeats, comes with the old one all along.
                late.append(
                    site.send(
                        delivery({"phone_number_id": number}, event=registration.TEST_EVENT)
                    ).status
                )
                sent.append(number)

        thread = threading.Thread(target=stream)
        thread.start()
        try:
            while len(sent) < 10:
                time.sleep(0.05)
            done = subprocess.run(
                [sys.executable, "-m", "django", "kapso_webhook", "--rotate", "--yes"],
                env=environment(
                    database,
                    KAPSO_PROOF_SECRETS=f"{NEW},{old}",
                    KAPSO_PROOF_API_URL=sandbox.url,
                    KAPSO_PROOF_PUBLIC_URL=origin,
                ),
                capture_output=True,
                text=True,
                timeout=60,
            )
            reached = len(sent)
            while len(sent) < reached + 10:
                time.sleep(0.05)
        finally:
            over.set()
            thread.join()
        assert done.returncode == 0, done.stderr
        assert "It arrived after" in done.stdout
        assert not {NEW, old} & set(re.findall(r"[\w-]+", done.stdout + done.stderr))
        assert webhooks(sandbox)[pk]["secret_key"] == NEW
        rows = sandbox.wait_for_deliveries(len(sent) + 1)
        assert [[a["status"] for a in row["attempts"]] for row in rows] == [[200]] * len(rows)
        assert set(late) == {200}
        assert set(site.rows().connections) == set(sent)
        site.rows().assert_each_signal_received_once()


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_wait_for_the_delivery(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.faults(drop=True)
    with new_database("sqlite", tmp_path) as database:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "django", "kapso_webhook", "--yes", "--test"],
            env=environment(database, KAPSO_PROOF_API_URL=sandbox.url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if "Waiting for a test" in line:
                break
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGINT)
        _out, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Interrupted. All changes were made." in error
    assert "Traceback" not in error


def test_secret_is_compared_and_not_kept(sandbox: Sandbox) -> None:
    add_webhook(sandbox, "https://crm.example.com/")
    with KapsoClient.from_settings() as client:
        (webhook,) = client.list_webhooks()
    assert webhook.secret_key is not None
    assert webhook.secret_key.is_same(SECRET)
    assert not webhook.secret_key.is_same(NEW)
    assert SECRET not in f"{webhook!r} {webhook.secret_key!r} {vars(webhook.secret_key)}"
