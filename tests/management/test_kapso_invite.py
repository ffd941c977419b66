"""manage.py kapso_invite, against a running sandbox."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.core.management import CommandError
from django.db.models.signals import pre_save
from django.utils import timezone

from kapso_connect.management import progress
from kapso_connect.management.commands import kapso_invite
from kapso_connect.models import (
    Customer,
    Invitation,
    InvitationBatch,
    SetupLink,
    new_connect_key,
)
from kapso_connect.onboarding import invitations
from kapso_connect.owners import owner_type
from kapso_connect.testing import Sandbox
from tests import ROOT

from ..factories import make_connection, make_customer, make_link
from ..sites.host_site.models import Bakery, Branch
from ..smtp_server import SMTPServer, use_mail_server
from .conftest import run_command

pytestmark = pytest.mark.django_db

CREATE_LINK = "^POST .*/setup_links$"


def customers(count: int, **fields: Any) -> list[Customer]:
    return Customer.objects.bulk_create(
        Customer(name=f"Customer {n}", email=f"c{n}@example.com", **fields) for n in range(count)
    )


def run(*arguments: object) -> str:
    return run_command("kapso_invite", *arguments)


def fails(*arguments: object, status: int = 1) -> str:
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    assert caught.value.returncode == status
    return str(caught.value)


def test_named_customers_are_invited(sandbox: Sandbox) -> None:
    one, other, third = customers(3)
    assert run(one.pk, other.pk, one.pk) == (
        "kapso_invite: 2 of 2 customers invited, 0 failed, 0 left\n"
    )
    assert {link.customer for link in SetupLink.objects.all()} == {one, other}
    assert not third.setup_links.exists()


def test_all_missing_invites_customers_never_invited(sandbox: Sandbox) -> None:
    new, invited, connected, in_batch, revoked, erased = customers(6)
    Customer.objects.filter(pk=erased.pk).update(erased_at=timezone.now())
    make_link(invited, is_latest=True)
    make_link(revoked, status="revoked")
    make_connection(connected)
    invitations.start(invitations.make_batch([in_batch.pk]))
    assert run("--all-missing", "--dry-run") == "kapso_invite: would invite 1 customer\n"
    assert not sandbox.requests()
    run("--all-missing")
    (link,) = SetupLink.objects.exclude(customer__in=[invited, revoked])
    assert link.customer == new
    assert run("--all-missing") == "kapso_invite: no customers to invite\n"
    assert InvitationBatch.objects.count() == 2


def test_every_option_reaches_kapso(sandbox: Sandbox) -> None:
    (customer,) = customers(1)
    theme = json.dumps({"primary_color": "#123456"})
    options = ["--option", f"theme_config={theme}", "--option", "provision_phone_number=true"]
    out = run(customer.pk, "--email", "--language", "pt", "--next-url", "/welcome/", *options)
    assert "1 e-mailed" in out
    (message,) = mail.outbox
    assert message.to == [customer.email]
    link = SetupLink.objects.get()
    assert link.next_url == "/welcome/"
    assert link.options["language"] == "pt"
    assert link.options["theme_config"] == {"primary_color": "#123456"}
    assert link.options["provision_phone_number"] is True


def test_verbosity_0_prints_nothing(sandbox: Sandbox) -> None:
    assert run(customers(1)[0].pk, "--verbosity", "0") == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say whom to invite"),
        (["1", "--all-missing"], "not both"),
        (["--all-missing", "--language", "tlh"], "invalid choice"),
        (["--all-missing", "--option", "nonsense"], "name=value"),
        (["--all-missing", "--option", "language=es"], "not JSON"),
        (["--all-missing", "--option", "language=" + "[" * 100_000], "not JSON"),
        (["--all-missing", "--option", 'language="tlh"'], "language"),
        (["--all-missing", "--option", "no_such=1"], "no_such: Unknown option"),
        (["--all-missing", "--next-url", "https://elsewhere.example/"], "page of this site"),
        (["--all-missing", "--model", "nonsense"], "no model nonsense"),
        (["--all-missing", "--model", "no.Such"], "no model no.Such"),
        (["--all-missing", "--model", "auth.User"], "does not use"),
        (["0"], "no customer with the id 0"),
        (["1;2", "x", "9" * 30], "the id 1;2, x, 9999"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_wrong_arguments_are_reported_and_nobody_is_invited(
    sandbox: Sandbox, arguments: list[str], message: str
) -> None:
    customers(2)
    Customer.objects.filter(pk=1).delete()
    assert message in fails(*arguments)
    assert not InvitationBatch.objects.exists()
    assert not sandbox.requests()


def test_incomplete_settings_are_reported(sandbox: Sandbox, configure: Any) -> None:
    configure(PUBLIC_URL="")
    customers(1)
    assert "PUBLIC_URL" in fails("--all-missing")
    assert not InvitationBatch.objects.exists()


# Objects of the site's own models


def test_customers_are_created_for_objects(sandbox: Sandbox) -> None:
    bakeries = [Bakery.objects.create(title=f"Bakery {n}", contact="b@example.com") for n in "abc"]
    connected, not_invited = make_customer(owner=bakeries[0]), make_customer(owner=bakeries[1])
    make_connection(connected)
    model = ["--model", "host_site.Bakery"]
    assert "would invite 2 customers" in run("--all-missing", "--dry-run", *model)
    assert Customer.objects.count() == 2, "a dry run creates no customers"
    customers(1)  # belongs to no object
    assert "2 of 2 customers" in run("--all-missing", *model)
    invited = Customer.objects.get(name="Bakery c")
    assert (invited.owner, invited.email) == (bakeries[2], "b@example.com")
    assert {link.customer for link in SetupLink.objects.all()} == {not_invited, invited}
    assert "no customers to invite" in run("--all-missing", *model)


def test_objects_are_selected_by_their_primary_keys(sandbox: Sandbox) -> None:
    branch = Branch.objects.create(code="a/b,c_d")
    assert "1 of 1" in run("a/b,c_d", "--model", "host_site.Branch")
    assert Customer.objects.get().owner == branch
    message = fails("a/b", "--model", "host_site.Branch")
    assert "no branch with the id a/b" in message


def test_invalid_object_does_not_stop_the_others(sandbox: Sandbox) -> None:
    branch = Branch.objects.create(code="a")
    Customer.objects.for_owner(branch, external_customer_id="taken")
    for reference in ("taken", "free"):
        Bakery.objects.create(title=reference, reference=reference)
    message = fails("--all-missing", "--model", "host_site.Bakery")
    assert "Bakery: taken: its external id is that of another customer" in message
    assert SetupLink.objects.get().customer.name == "free"


# Errors


def test_failures_are_listed_and_change_the_exit_status(sandbox: Sandbox) -> None:
    rule = {"match": CREATE_LINK, "kind": "status", "status": 422, "times": 1}
    sandbox.faults(api=[{**rule, "after": n} for n in (0, 9)])
    customers(20)
    message = fails("--all-missing")
    assert message.count("The request was rejected") == 2
    for row in Invitation.objects.filter(status="failed"):
        assert f"{row.customer} ({row.customer_id}): The request was rejected" in message
    assert "18 of 20" not in message, "that is no error"
    assert "2 of 2 customers" in run("--all-missing"), "they have no link still"


def test_failed_emails_are_sent_again_if_asked(sandbox: Sandbox) -> None:
    (customer,) = customers(1)
    Customer.objects.update(email="nobody")
    fails(customer.pk, "--email")
    Customer.objects.update(email="ada@example.com")
    assert run("--resume") == ""
    assert "would continue with 1 customer in 1 batch" in run("--retry-failed", "--dry-run")
    assert "1 of 1 customer invited, 1 e-mailed" in run("--retry-failed")
    (message,) = mail.outbox
    assert message.to == ["ada@example.com"]
    assert len(sandbox.state()["setup_links"]) == 1
    assert run("--retry-failed") == ""


def test_email_that_waits_is_listed_with_its_reason(
    sandbox: Sandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (customer,) = customers(1)
    monkeypatch.setattr(kapso_invite, "MAX_IDLE_SECONDS", 0)
    with SMTPServer(answer=lambda command, _to: "450 Busy" * (command == "MAIL")) as server:
        use_mail_server(settings, server)
        message = fails(customer.pk, "--email")
        assert "the link was not sent: The mail server does not accept the e-mail yet." in message
        assert "Busy" in message
        assert "1 customer left. Nothing is lost." in message
        server.answer = lambda command, recipient: ""
        assert "1 e-mailed, 0 failed, 0 left" in run("--resume")
    assert server.recipients == [customer.email]


def test_unsent_email_is_a_failure(sandbox: Sandbox) -> None:
    customer = make_customer(name="مخبز \N{BREAD}", kapso_id=None)
    message = fails(customer.pk, "--email")
    assert f"{customer} ({customer.pk}): the link was not sent" in message
    assert SetupLink.objects.exists()


def test_wrong_api_key_stops_the_batch_and_it_can_be_resumed(
    sandbox: Sandbox, settings: Any
) -> None:
    right = settings.KAPSO_CONNECT
    settings.KAPSO_CONNECT = {**right, "API_KEY": "wrong"}
    customers(20)
    message = fails("--all-missing")
    assert "API key" in message
    assert "20 customers left. Nothing is lost. Continue with: manage.py kapso_invite" in message
    assert len(sandbox.requests()) <= invitations.MAX_CONCURRENT_REQUESTS
    settings.KAPSO_CONNECT = right
    assert run("--resume", "--dry-run") == (
        "kapso_invite: would continue with 20 customers in 1 batch\n"
    )
    assert "20 of 20 customers invited" in run("--resume", "--all-missing")
    assert len(sandbox.state()["setup_links"]) == 20
    assert run("--resume") == ""


def test_next_attempt_is_waited_for(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kapso_connect.retries.FIRST_RETRY_DELAY", 1)
    sandbox.faults(api=[{"match": CREATE_LINK, "kind": "status", "status": 500, "times": 2}])
    customers(3)
    assert "3 of 3" in run("--all-missing")


def test_long_delay_is_not_waited_for(sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 429, "retry_after": 3600}])
    customers(3)
    begun = time.monotonic()
    assert "3 customers left" in fails("--all-missing")
    assert time.monotonic() - begun < 10


def test_another_process_is_not_waited_for_long(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kapso_invite, "MAX_IDLE_SECONDS", 0.5)
    batch = invitations.make_batch([customers(1)[0].pk])
    invitations.start(batch)
    assert batch.invitations.get().acquire_lease()
    assert "1 customer left" in fails("--resume")
    assert not sandbox.requests()


def test_draft_is_not_resumed(sandbox: Sandbox) -> None:
    invitations.make_batch([customers(1)[0].pk])
    assert run("--resume") == ""
    assert not sandbox.requests()


@contextmanager
def interrupted_by_saving(model: type, interrupt: Callable[[], object]) -> Iterator[None]:
    """Interrupt the command when it first saves a row of ``model``."""

    def receiver(**kwargs: Any) -> None:
        pre_save.disconnect(receiver, sender=model)
        interrupt()

    pre_save.connect(receiver, sender=model)
    try:
        yield
    finally:
        pre_save.disconnect(receiver, sender=model)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_command_says_how_to_resume(sandbox: Sandbox, number: int, status: int) -> None:
    count = 2 * invitations.MAX_CONCURRENT_REQUESTS + 4  # two waves are in progress at a time
    customers(count)
    with interrupted_by_saving(SetupLink, lambda: signal.raise_signal(number)):
        assert "kapso_invite --resume" in fails("--all-missing", status=status)
    assert not Invitation.objects.filter(leased_until__isnull=False).exists()
    invited = SetupLink.objects.count()
    assert 0 < invited < count, "those in progress are finished, the others are left"
    assert f"{count} of {count}" in run("--resume")
    assert SetupLink.objects.count() == len(sandbox.state()["setup_links"]) == count


def test_command_interrupted_before_the_start_leaves_nothing(sandbox: Sandbox) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    customers(1)
    with interrupted_by_saving(InvitationBatch, interrupt):
        assert "Nothing was left unfinished" in fails("--all-missing", status=130)
    assert not InvitationBatch.objects.exists()


# The progress bar


class Bar:
    """Replaces tqdm."""

    made: list[Bar] = []

    def __init__(self, *, desc: str, unit: str, total: int | None) -> None:
        self.n, self.total = 0, total
        Bar.made.append(self)

    def update(self, by: int) -> None:
        self.n += by

    def close(self) -> None:
        pass


@pytest.mark.parametrize("installed", [True, False])
def test_progress_bar_on_a_terminal_with_tqdm(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    Bar.made = []
    monkeypatch.setitem(sys.modules, "tqdm", type("tqdm", (), {"tqdm": Bar}) if installed else None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    customers(3)
    assert "3 of 3" in run("--all-missing")
    assert [(bar.n, bar.total) for bar in Bar.made] == ([(3, 3)] if installed else [])
    assert progress.Progress(on=False).tqdm is None


# In a separate process


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_lose_nothing_and_create_nothing_twice(
    sandbox: Sandbox, tmp_path: Path, number: int, status: int
) -> None:
    sandbox.faults(api=[{"kind": "slow", "seconds": 0.3}])
    site = tmp_path / "own_settings.py"
    site.write_text(
        "from tests.settings import *\n"
        f"DATABASES = {{'default': {{'ENGINE': 'django.db.backends.sqlite3', "
        f"'NAME': {str(tmp_path / 'db.sqlite3')!r}}}}}\n"
        f"KAPSO_CONNECT = {{**KAPSO_CONNECT, 'API_BASE_URL': {sandbox.url!r}}}\n"
    )
    root = ROOT
    path = os.pathsep.join([str(tmp_path), str(root)])
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "own_settings", "PYTHONPATH": path}

    def manage(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "django", *arguments],
            env=environment,
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    setup = (
        "from kapso_connect.models import Customer\n"
        "Customer.objects.bulk_create(Customer(name=str(n)) for n in range(60))"
    )
    for arguments in (("migrate", "-v0"), ("shell", "-v0", "-c", setup)):
        process = manage(*arguments)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out

    process = manage("kapso_invite", "--all-missing")
    deadline = time.monotonic() + 60
    while len(sandbox.state()["setup_links"]) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == status, out
    assert "kapso_invite --resume" in out
    assert 0 < len(sandbox.state()["setup_links"]) < 60

    sandbox.clear_faults()
    process = manage("kapso_invite", "--resume", "--all-missing")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "60 of 60 customers invited" in out
    assert len(sandbox.state()["setup_links"]) == 60


# Reminders


def waiting(count: int, **fields: Any) -> list[Customer]:
    """Customers who were invited and did nothing."""
    rows = customers(count, **fields)
    for row in rows:
        row.connect_key = new_connect_key()
        row.save(update_fields=["connect_key"])
        make_link(row)
    return rows


def test_named_customers_are_reminded(sandbox: Sandbox) -> None:
    one, connected, third = waiting(3)
    make_connection(connected)
    assert run("--remind", one.pk, connected.pk, one.pk) == (
        "kapso_invite: 1 of 2 customers reminded, 1 left out, 0 failed, 0 left\n"
    )
    (message,) = mail.outbox
    assert message.to == [one.email]
    assert not sandbox.requests()
    assert third.setup_links.get().reminded_at is None


def test_all_who_wait_are_reminded_and_nobody_twice(sandbox: Sandbox) -> None:
    invited, opened, no_address, connected = waiting(4)
    customers(1)
    Customer.objects.filter(pk=opened.pk).update(status="opened")
    Customer.objects.filter(pk=no_address.pk).update(email="")
    make_connection(connected)
    assert run("--remind", "--all-waiting", "--dry-run") == (
        "kapso_invite: would remind 2 customers\n"
        "kapso_invite: would leave out 1: has no e-mail address\n"
    )
    assert not mail.outbox
    assert not InvitationBatch.objects.exists()
    assert "2 of 3 customers reminded, 1 left out" in run("--remind", "--all-waiting")
    assert sorted(message.to[0] for message in mail.outbox) == [invited.email, opened.email]
    assert "0 of 3 customers reminded, 3 left out" in run("--remind", "--all-waiting")
    assert len(mail.outbox) == 2


def test_nobody_waits(sandbox: Sandbox) -> None:
    customers(1)
    assert run("--remind", "--all-waiting") == "kapso_invite: no customers to remind\n"


def test_objects_of_the_sites_own_model_are_reminded(sandbox: Sandbox) -> None:
    invited, never = (
        Bakery.objects.create(title=title, contact=f"{title}@example.com")
        for title in ("invited", "never")
    )
    (customer,) = waiting(1)
    Customer.objects.filter(pk=customer.pk).update(
        owner_type=owner_type(Bakery), owner_id=str(invited.pk), email="old@example.com"
    )
    model = ["--model", "host_site.Bakery"]
    for who in (["--all-waiting"], [invited.pk, never.pk]):
        assert "would remind 1 customer\n" in run("--remind", *model, *who, "--dry-run")
    assert Customer.objects.get().email == "old@example.com"
    assert "1 of 1 customer reminded" in run("--remind", *model, invited.pk, never.pk)
    assert [message.to for message in mail.outbox] == [["invited@example.com"]]
    assert Customer.objects.count() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remind"], "Say whom to remind"),
        (["--all-waiting"], "give --remind, too"),
        (["--remind", "--all-waiting", "1"], "not both"),
        (["--remind", "--all-waiting", "--all-missing"], "leave out --all-missing"),
        (["--remind", "--all-waiting", "--email"], "leave out --email"),
        (["--remind", "--all-waiting", "--language", "es"], "leave out --language"),
        (["--remind", "--all-waiting", "--option", "x=1"], "leave out --option"),
        (["--remind", "--all-waiting", "--next-url", "/x/"], "leave out --next-url"),
        (["--remind", "0"], "no customer with the id 0"),
    ],
)
def test_wrong_arguments_remind_nobody(
    sandbox: Sandbox, arguments: list[str], message: str
) -> None:
    waiting(1)
    Customer.objects.filter(pk=1).update(status="connected")
    assert message in fails(*arguments)
    assert not mail.outbox
    assert not InvitationBatch.objects.exists()


def test_refused_reminder_is_a_failure_and_is_sent_again_on_request(
    sandbox: Sandbox, settings: Any
) -> None:
    one, other = waiting(2)
    answers, refused = iter(["550 No such user"]), ("RCPT", one.email)
    with SMTPServer(
        answer=lambda command, to: next(answers, "") if (command, to) == refused else ""
    ) as server:
        use_mail_server(settings, server)
        problem = fails("--remind", "--all-waiting")
        assert f"{one.name} ({one.pk}): the reminder was not sent" in problem
        assert server.recipients == [other.email]
        out = run("--retry-failed")
        assert "2 of 2 customers reminded, 0 left out, 0 failed, 0 left" in out
        assert server.recipients == [other.email, one.email]


def test_interrupted_reminders_are_resumed(sandbox: Sandbox) -> None:
    waiting(3)
    batch = invitations.make_reminders(Customer.objects.all())
    invitations.start(batch)
    batch.invitations.filter(pk=batch.invitations.latest("pk").pk).update(
        status="done", next_attempt_at=None, email_status="sent"
    )
    assert run("--resume", "--dry-run") == (
        "kapso_invite: would continue with 2 customers in 1 batch\n"
    )
    assert "3 of 3 customers reminded" in run("--resume")
    assert len(mail.outbox) == 2
