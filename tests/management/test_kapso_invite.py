"""manage.py kapso_invite, against a running sandbox."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core import mail as outbox
from django.core.management import CommandError, call_command
from django.utils import timezone

from kapso_connect.management import progress
from kapso_connect.management.commands import kapso_invite
from kapso_connect.models import Customer, Invitation, InvitationBatch, SetupLink
from kapso_connect.onboarding import invitations
from kapso_connect.testing import Sandbox
from tests import ROOT

from ..factories import make_connection, make_customer, make_link
from ..sites.host_site.models import Bakery, Branch

pytestmark = pytest.mark.django_db

CREATE_LINK = "^POST .*/setup_links$"


def customers(count: int, **fields: Any) -> list[Customer]:
    return Customer.objects.bulk_create(
        Customer(name=f"Customer {n}", email=f"c{n}@example.com", **fields) for n in range(count)
    )


def run(*arguments: object) -> str:
    out = StringIO()
    call_command("kapso_invite", *map(str, arguments), stdout=out, stderr=out)
    return out.getvalue()


def fails(*arguments: object, status: int = 1) -> str:
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    assert caught.value.returncode == status
    return str(caught.value)


def test_named_customers_are_invited(sandbox: Sandbox) -> None:
    one, other, third = customers(3)
    assert run(one.pk, other.pk, one.pk) == (
        "kapso_invite: 2 of 2 customers have a link, 0 failed, 0 left\n"
    )
    assert {link.customer for link in SetupLink.objects.all()} == {one, other}
    assert not third.setup_links.exists()


def test_all_missing_invites_those_that_nobody_invited(sandbox: Sandbox) -> None:
    fresh, invited, connected, about_to_be, withdrawn = customers(5)
    make_link(invited, is_latest=True)
    make_link(withdrawn, status="revoked")
    make_connection(connected)
    invitations.start(invitations.make_batch([about_to_be.pk]))
    assert run("--all-missing", "--dry-run") == "kapso_invite: would invite 1 customers\n"
    assert not sandbox.requests()
    run("--all-missing")
    (link,) = SetupLink.objects.exclude(customer__in=[invited, withdrawn])
    assert link.customer == fresh
    assert run("--all-missing") == "kapso_invite: nobody is to be invited\n"
    assert InvitationBatch.objects.count() == 2


def test_every_option_reaches_kapso(sandbox: Sandbox) -> None:
    (customer,) = customers(1)
    theme = json.dumps({"primary_color": "#123456"})
    options = ["--option", f"theme_config={theme}", "--option", "provision_phone_number=true"]
    out = run(customer.pk, "--email", "--language", "pt", "--next-url", "/welcome/", *options)
    assert "1 e-mailed" in out
    (message,) = outbox.outbox
    assert message.to == [customer.email]
    link = SetupLink.objects.get()
    assert link.next_url == "/welcome/"
    assert link.options["language"] == "pt"
    assert link.options["theme_config"] == {"primary_color": "#123456"}
    assert link.options["provision_phone_number"] is True


def test_without_a_word_nothing_is_said(sandbox: Sandbox) -> None:
    assert run(customers(1)[0].pk, "--verbosity", "0") == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
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
        (["--all-missing", "--model", "auth.User"], "has no ModelAdmin with"),
        (["0"], "no customer with the id 0"),
        (["1;2", "x", "9" * 30], "the id 1;2, x, 9999"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_and_nobody_is_invited(
    sandbox: Sandbox, arguments: list[str], words: str
) -> None:
    customers(2)
    Customer.objects.filter(pk=1).delete()
    assert words in fails(*arguments)
    assert not InvitationBatch.objects.exists()
    assert not sandbox.requests()


def test_settings_that_are_not_complete_are_said(sandbox: Sandbox, configure: Any) -> None:
    configure(PUBLIC_URL="")
    customers(1)
    assert "PUBLIC_URL" in fails("--all-missing")
    assert not InvitationBatch.objects.exists()


# A host's own objects


def test_a_hosts_objects_are_made_customers_first(sandbox: Sandbox) -> None:
    bakeries = [Bakery.objects.create(title=f"Bakery {n}", contact="b@example.com") for n in "abc"]
    connected, not_invited = make_customer(owner=bakeries[0]), make_customer(owner=bakeries[1])
    make_connection(connected)
    model = ["--model", "host_site.Bakery"]
    assert "would invite 2 customers" in run("--all-missing", "--dry-run", *model)
    assert Customer.objects.count() == 2, "a dry run makes nobody"
    customers(1)  # is nobody's
    assert "2 of 2 customers" in run("--all-missing", *model)
    invited = Customer.objects.get(name="Bakery c")
    assert (invited.owner, invited.email) == (bakeries[2], "b@example.com")
    assert {link.customer for link in SetupLink.objects.all()} == {not_invited, invited}
    assert "nobody is to be invited" in run("--all-missing", *model)


def test_objects_are_named_by_their_own_keys(sandbox: Sandbox) -> None:
    branch = Branch.objects.create(code="a/b,c_d")
    assert "1 of 1" in run("a/b,c_d", "--model", "host_site.Branch")
    assert Customer.objects.get().owner == branch
    words = fails("a/b", "--model", "host_site.Branch")
    assert "no branch with the id a/b" in words


def test_an_object_that_cannot_be_a_customer_costs_only_itself(sandbox: Sandbox) -> None:
    make_customer(external_customer_id="taken", kapso_id=None)
    for reference in ("taken", "free"):
        Bakery.objects.create(title=reference, reference=reference)
    words = fails("--all-missing", "--model", "host_site.Bakery")
    assert "Bakery: taken: its external id is that of another customer" in words
    assert SetupLink.objects.get().customer.name == "free"


# What goes wrong


def test_each_failure_is_named_and_the_exit_status_says_so(sandbox: Sandbox) -> None:
    rule = {"match": CREATE_LINK, "kind": "status", "status": 422, "times": 1}
    sandbox.faults(api=[{**rule, "after": n} for n in (0, 9)])
    customers(20)
    words = fails("--all-missing")
    assert words.count("Correct what was refused") == 2
    for row in Invitation.objects.filter(status="failed"):
        assert f"{row.customer} ({row.customer_id}): Correct" in words
    assert "18 of 20" not in words, "that is no error"
    assert "2 of 2 customers" in run("--all-missing"), "they have no link still"


def test_an_e_mail_that_was_not_sent_is_a_failure(sandbox: Sandbox) -> None:
    customer = make_customer(name="مخبز \N{BREAD}", kapso_id=None)
    words = fails(customer.pk, "--email")
    assert f"{customer} ({customer.pk}) was not sent the link" in words
    assert SetupLink.objects.exists()


def test_a_wrong_key_stops_it_and_it_is_resumed(sandbox: Sandbox, settings: Any) -> None:
    right = settings.KAPSO_CONNECT
    settings.KAPSO_CONNECT = {**right, "API_KEY": "wrong"}
    customers(20)
    words = fails("--all-missing")
    assert "API key" in words
    assert "20 customers are left. Nothing is lost. Go on with: manage.py kapso_invite" in words
    assert len(sandbox.requests()) <= invitations.AT_ONCE
    settings.KAPSO_CONNECT = right
    assert run("--resume", "--dry-run") == (
        "kapso_invite: would go on with 20 customers of 1 batches\n"
    )
    assert "20 of 20 customers have a link" in run("--resume", "--all-missing")
    assert len(sandbox.state()["setup_links"]) == 20
    assert run("--resume") == ""


def test_what_comes_back_soon_is_waited_for(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.faults(api=[{"match": CREATE_LINK, "kind": "status", "status": 500, "times": 2}])
    customers(3)
    naps: list[float] = []

    class Nap(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            naps.append(timeout or 0)
            Invitation.objects.update(next_attempt_at=timezone.now())
            return False

    monkeypatch.setattr(kapso_invite, "interruption", lambda: nullcontext(Nap()))
    assert "3 of 3" in run("--all-missing")
    assert naps == [5.0]


def test_what_takes_long_is_left_to_later(sandbox: Sandbox) -> None:
    sandbox.faults(api=[{"kind": "status", "status": 429, "retry_after": 3600}])
    customers(3)
    begun = time.monotonic()
    assert "3 customers are left" in fails("--all-missing")
    assert time.monotonic() - begun < 10


def test_those_whom_another_process_has_are_not_waited_for_long(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kapso_invite, "PATIENCE", 0.5)
    batch = invitations.make_batch([customers(1)[0].pk])
    invitations.start(batch)
    assert batch.invitations.get().acquire_lease()
    assert "1 customers are left" in fails("--resume")
    assert not sandbox.requests()


def test_a_draft_of_the_admins_is_not_resumed(sandbox: Sandbox) -> None:
    invitations.make_batch([customers(1)[0].pk])
    assert run("--resume") == ""
    assert not sandbox.requests()


def test_an_interruption_says_how_to_go_on(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = invitations.work

    def interrupted(*args: Any, **kwargs: Any) -> None:
        work(args[0], seconds=0)
        raise KeyboardInterrupt

    customers(3)
    monkeypatch.setattr(invitations, "work", interrupted)
    assert "kapso_invite --resume" in fails("--all-missing", status=130)
    monkeypatch.setattr(invitations, "make_batch", interrupted)
    monkeypatch.undo()
    assert "3 of 3" in run("--resume")


def test_an_interruption_before_the_start_leaves_nothing(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    customers(1)
    monkeypatch.setattr(invitations, "make_batch", interrupted)
    assert "Nothing is left half done" in fails("--all-missing", status=130)


# The bar


class Bar:
    """Stands for tqdm."""

    made: list[Bar] = []

    def __init__(self, *, desc: str, unit: str, total: int | None) -> None:
        self.n, self.total = 0, total
        Bar.made.append(self)

    def update(self, by: int) -> None:
        self.n += by

    def close(self) -> None:
        pass


@pytest.mark.parametrize("installed", [True, False])
def test_a_terminal_shows_a_bar_where_tqdm_is_installed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    Bar.made = []
    monkeypatch.setitem(sys.modules, "tqdm", type("tqdm", (), {"tqdm": Bar}) if installed else None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    customers(3)
    assert "3 of 3" in run("--all-missing")
    assert [(bar.n, bar.total) for bar in Bar.made] == ([(3, 3)] if installed else [])
    assert progress.Progress(on=False).bar is None


# A process of its own


def test_ctrl_c_loses_nothing_and_makes_nothing_twice(sandbox: Sandbox, tmp_path: Path) -> None:
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
        "Customer.objects.bulk_create(Customer(name=str(n)) for n in range(30))"
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
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "kapso_invite --resume" in out
    assert 0 < len(sandbox.state()["setup_links"]) < 30

    sandbox.clear_faults()
    process = manage("kapso_invite", "--resume", "--all-missing")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "30 of 30 customers have a link" in out
    assert len(sandbox.state()["setup_links"]) == 30
