"""The admin's action "Create WhatsApp setup link", against a running sandbox."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.contrib.sessions.models import Session
from django.db import OperationalError, connections
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import reverse

from kapso_connect import onboarding
from kapso_connect.admin import setup_links
from kapso_connect.client import KapsoClient
from kapso_connect.models import Customer, SetupLink
from kapso_connect.testing import Sandbox

from .support import make_connection, make_customer, make_link

pytestmark = pytest.mark.django_db

LIST = "/admin/kapso_connect/customer/"
CREATE = LIST + "create-setup-links/"
CHOICES = {
    "connection_types": "coexistence,dedicated",
    "language": "",
    "phone_number_country_isos": "US",
    "phone_number_area_code": "",
}


def customers(count: int) -> list[Customer]:
    return [make_customer(name=f"Customer {n}", kapso_id=None) for n in range(count)]


def ids(rows: list[Customer]) -> str:
    return ",".join(str(row.pk) for row in rows)


def act(client: Client, rows: list[Customer]) -> HttpResponse:
    data = {"action": "create_setup_links", "_selected_action": [row.pk for row in rows]}
    return client.post(LIST, data)


def new_key(client: Client, rows: list[Customer]) -> str:
    page = client.get(CREATE, {"ids": ids(rows)}).content.decode()
    found = re.search(r'name="key" value="([^"]+)"', page)
    assert found
    return found[1]


def create(client: Client, rows: list[Customer], key: str = "", **choices: str) -> HttpResponse:
    """Go from the confirmation to the result; without following to the result page."""
    data = {**CHOICES, **choices, "ids": ids(rows), "key": key or new_key(client, rows)}
    return client.post(CREATE, data)


def text(client: Client, response: HttpResponse) -> str:
    assert response.status_code == 302, response.content.decode()
    return client.get(response["Location"]).content.decode()


def warnings(response: HttpResponse) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


def asked_for_links(sandbox: Sandbox) -> list[dict[str, Any]]:
    return [
        request
        for request in sandbox.requests()
        if request["method"] == "POST" and request["path"].endswith("/setup_links")
    ]


@pytest.fixture
def staff(client: Client) -> Callable[..., Client]:
    def log_in(*codenames: str) -> Client:
        user = User.objects.create_user("staff", is_staff=True)
        user.user_permissions.set(
            Permission.objects.filter(
                content_type__app_label="kapso_connect", codename__in=codenames
            )
        )
        client.force_login(user)
        return client

    return log_in


@pytest.mark.parametrize("count", [1, 3])
def test_from_the_action_to_the_links(
    admin_client: Client, admin_user: User, sandbox: Sandbox, count: int
) -> None:
    rows = customers(count)
    action = act(admin_client, rows)
    assert action["Location"].startswith(CREATE)
    page = admin_client.get(action["Location"]).content.decode()
    assert all(row.name in page for row in rows)
    assert not asked_for_links(sandbox)

    result = text(admin_client, create(admin_client, rows, connection_types="dedicated"))
    assert SetupLink.objects.count() == len(asked_for_links(sandbox)) == count
    for link in SetupLink.objects.all():
        assert f'value="{link.url}"' in result
        assert link.created_by == admin_user
        assert link.options["allowed_connection_types"] == ["dedicated"]
        logged = LogEntry.objects.get(object_id=str(link.customer_id))
        assert logged.user == admin_user
        assert link.url not in logged.change_message


def test_the_button_on_the_customers_page_starts_the_same_flow(
    admin_client: Client, sandbox: Sandbox
) -> None:
    (row,) = customers(1)
    page = admin_client.get(f"{LIST}{row.pk}/change/").content.decode()
    assert f'href="{CREATE}?ids={row.pk}"' in page


def test_every_choice_reaches_kapso(admin_client: Client, sandbox: Sandbox) -> None:
    rows = customers(1)
    create(
        admin_client,
        rows,
        language="pt",
        provision_phone_number="on",
        phone_number_country_isos="us, mx",
        phone_number_area_code="415",
    )
    (request,) = asked_for_links(sandbox)
    sent = request["body"]["setup_link"]
    assert sent["allowed_connection_types"] == ["coexistence", "dedicated"]
    assert sent["language"] == "pt"
    assert sent["provision_phone_number"] is True
    assert sent["phone_number_country_isos"] == ["US", "MX"]
    assert sent["phone_number_area_code"] == "415"


def test_the_sites_defaults_are_preset(
    admin_client: Client, sandbox: Sandbox, settings: Any
) -> None:
    settings.KAPSO_CONNECT = {
        **settings.KAPSO_CONNECT,
        "SETUP_LINK_DEFAULTS": {
            "allowed_connection_types": ["coexistence"],
            "language": "es",
            "provision_phone_number": True,
            "phone_number_country_isos": ["CA", "US"],
            "phone_number_area_code": "212",
        },
    }
    rows = customers(1)
    page = admin_client.get(CREATE, {"ids": ids(rows)})
    form = page.context["form"]
    assert form["connection_types"].value() == "coexistence"
    assert form["provision_phone_number"].value() is True
    assert form["phone_number_country_isos"].value() == "CA, US"
    assert form["phone_number_area_code"].value() == "212"
    assert "otherwise Spanish" in page.content.decode()
    # Unticking is enough: what was preset for the number does not have to be emptied.
    create(admin_client, rows, phone_number_area_code="212")
    sent = asked_for_links(sandbox)[0]["body"]["setup_link"]
    assert sent["language"] == "es"
    assert sent["provision_phone_number"] is False
    assert "phone_number_area_code" not in sent


def test_without_a_choice_the_customers_own_language_counts(
    admin_client: Client, sandbox: Sandbox, settings: Any
) -> None:
    settings.KAPSO_CONNECT = {
        **settings.KAPSO_CONNECT,
        "SETUP_LINK_DEFAULTS": {"language": "es"},
    }
    create(admin_client, [make_customer(kapso_id=None, language="hi")])
    assert asked_for_links(sandbox)[0]["body"]["setup_link"]["language"] == "hi"


@pytest.mark.parametrize(
    ("choices", "field"),
    [
        ({"connection_types": "telepathy"}, "connection_types"),
        ({"connection_types": ""}, "connection_types"),
        ({"language": "tlh"}, "language"),
        ({"phone_number_area_code": "415"}, "phone_number_area_code"),
        (
            {"provision_phone_number": "on", "phone_number_area_code": "41x"},
            "phone_number_area_code",
        ),
        (
            {
                "provision_phone_number": "on",
                "phone_number_area_code": "415",
                "phone_number_country_isos": "MX",
            },
            "phone_number_area_code",
        ),
        (
            {"provision_phone_number": "on", "phone_number_country_isos": "Mexico"},
            "phone_number_country_isos",
        ),
    ],
)
def test_a_wrong_choice_is_said_at_its_field_and_nothing_is_asked(
    admin_client: Client, sandbox: Sandbox, choices: dict[str, str], field: str
) -> None:
    rows = customers(1)
    key = new_key(admin_client, rows)
    response = create(admin_client, rows, key, **choices)
    assert response.status_code == 200
    assert list(response.context["form"].errors) == [field]
    assert f'value="{key}"' in response.content.decode()
    assert not asked_for_links(sandbox)


def test_a_wrong_default_of_the_site_is_said_and_nothing_is_asked(
    admin_client: Client, sandbox: Sandbox, settings: Any
) -> None:
    settings.KAPSO_CONNECT = {
        **settings.KAPSO_CONNECT,
        "SETUP_LINK_DEFAULTS": {"theme_config": {"primary_color": "red"}},
    }
    response = create(admin_client, customers(1))
    assert "theme_config" in response.content.decode()
    assert not asked_for_links(sandbox)


def test_who_has_a_link_or_a_connection_is_pointed_out(
    admin_client: Client, sandbox: Sandbox
) -> None:
    invited, connected, fresh = customers(3)
    make_link(invited)
    make_connection(connected)
    page = admin_client.get(CREATE, {"ids": ids([invited, connected, fresh])})
    assert "1 customer has a link that still works" in page.content.decode()
    assert "1 customer is connected already" in page.content.decode()
    page = admin_client.get(CREATE, {"ids": ids([fresh])}).content.decode()
    assert "still works" not in page
    assert "connected already" not in page


def test_a_long_list_is_shortened(admin_client: Client, sandbox: Sandbox) -> None:
    page = admin_client.get(CREATE, {"ids": ids(customers(25))}).content.decode()
    assert "and 5 more" in page
    assert "Create 25 links" in page


# Once is once


def test_posting_the_same_form_again_creates_nothing(
    admin_client: Client, sandbox: Sandbox
) -> None:
    rows = customers(2)
    key = new_key(admin_client, rows)
    first = create(admin_client, rows, key)
    second = create(admin_client, rows, key)
    assert first["Location"] == second["Location"]
    for _ in range(2):
        assert text(admin_client, second).count("kapso-copied") == 2
    assert len(asked_for_links(sandbox)) == 2


def test_two_clicks_at_once_start_one_batch(
    admin_client: Client, admin_user: User, rf: RequestFactory
) -> None:
    rows = customers(1)
    admin_client.get(LIST)

    def request() -> Any:
        # Each request reads its own copy of the session before either has written.
        result = rf.post(CREATE)
        stored = admin_client.session
        result.session = type(stored)(stored.session_key)
        result.session.get("anything")
        return result

    one, other = request(), request()
    assert setup_links.claim(one, "k" * 22, rows) is not None
    assert setup_links.claim(other, "k" * 22, rows) is None


def test_a_batch_that_still_runs_is_shown_as_it_comes(
    admin_client: Client, sandbox: Sandbox, rf: RequestFactory
) -> None:
    rows = customers(2)
    request = rf.post(CREATE)
    request.session = admin_client.session
    batch = setup_links.claim(request, "k" * 22, rows)
    assert batch is not None
    response = admin_client.get(f"{CREATE}{'k' * 22}/")
    assert "being created" in response.content.decode()
    assert response["Refresh"] == "3"
    assert create(admin_client, rows, "k" * 22)["Location"] == f"{CREATE}{'k' * 22}/"
    assert not asked_for_links(sandbox)
    # The process died: somebody who looks later can go on.
    batch["started"] -= 3600
    setup_links.keep(request, "k" * 22, batch)
    response = admin_client.get(f"{CREATE}{'k' * 22}/")
    assert "interrupted" in response.content.decode()
    assert f"{CREATE}?ids={ids(rows)}" in response.content.decode()
    assert "Refresh" not in response


def test_only_a_few_batches_are_kept_and_no_address_is(
    admin_client: Client, sandbox: Sandbox
) -> None:
    rows = customers(1)
    first = create(admin_client, rows)
    for _ in range(setup_links.KEPT_BATCHES):
        create(admin_client, rows)
    kept = admin_client.session[setup_links.SESSION_KEY]
    assert len(kept) == setup_links.KEPT_BATCHES
    assert "http" not in str(kept)
    response = admin_client.get(first["Location"])
    assert response["Location"] == LIST
    assert "no longer kept" in warnings(response)[0]


def test_a_link_that_ended_meanwhile_is_not_shown_again(
    admin_client: Client, sandbox: Sandbox
) -> None:
    rows = customers(1)
    first = create(admin_client, rows)
    create(admin_client, rows)
    assert "can no longer be used" in text(admin_client, first)
    assert "kapso-copy" not in text(admin_client, first)


# What can go wrong


def test_one_customer_that_fails_does_not_stop_the_others(
    admin_client: Client, sandbox: Sandbox
) -> None:
    rows = customers(3)
    sandbox.faults(
        api=[
            {
                "match": "POST .*/setup_links",
                "kind": "status",
                "status": 422,
                "after": 1,
                "times": 1,
            }
        ]
    )
    result = text(admin_client, create(admin_client, rows))
    assert result.count("kapso-copied") == 2
    assert "Correct what was refused" in result
    failed = Customer.objects.get(setup_links=None)
    assert f"{CREATE}?ids={failed.pk}" in result


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "API key"),
        (403, "API key"),
        (402, "Kapso plan"),
        (429, "asked too often"),
    ],
)
def test_what_would_hit_everybody_is_asked_and_said_once(
    admin_client: Client, sandbox: Sandbox, status: int, words: str
) -> None:
    sandbox.faults(api=[{"kind": "status", "status": status, "retry_after": 600}])
    result = text(admin_client, create(admin_client, customers(3)))
    assert result.count(words) == 1
    assert result.count("Not tried.") == 3
    assert len(sandbox.requests()) == 1
    assert not SetupLink.objects.exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "status", "status": 409}, "limit is reached"),
        ({"kind": "status", "status": 404}, "does not know this customer"),
        ({"kind": "html", "status": 200}, "could not be understood"),
        ({"kind": "garbage"}, "could not be understood"),
    ],
)
def test_an_answer_nobody_wants_is_put_in_words(
    admin_client: Client, sandbox: Sandbox, fault: dict[str, Any], words: str
) -> None:
    sandbox.faults(api=[{"match": "POST .*/setup_links", **fault}])
    assert words in text(admin_client, create(admin_client, customers(1)))


def test_a_kapso_that_is_away_is_put_in_words(
    admin_client: Client, settings: Any, sandbox: Sandbox
) -> None:
    settings.KAPSO_CONNECT = {**settings.KAPSO_CONNECT, "API_BUDGET": 0.4}
    sandbox.faults(api=[{"kind": "status", "status": 503}])
    result = text(admin_client, create(admin_client, customers(3)))
    assert "Kapso did not answer" in result
    assert "Time ran out" in result


@pytest.mark.parametrize("error", [OperationalError("locked"), Customer.DoesNotExist()])
def test_a_link_that_cannot_be_recorded_is_no_server_error(
    admin_client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any, **kwargs: Any) -> SetupLink:
        raise error

    monkeypatch.setattr(onboarding, "create_setup_link", fail)
    result = text(admin_client, create(admin_client, customers(1)))
    assert "could not be recorded" in result or "deleted meanwhile" in result


def test_a_user_who_logs_out_meanwhile_creates_no_more(
    admin_client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = onboarding.create_setup_link

    def create_and_log_out(*args: Any, **kwargs: Any) -> SetupLink:
        link = original(*args, **kwargs)
        Session.objects.all().delete()
        return link

    rows = customers(2)
    key = new_key(admin_client, rows)
    monkeypatch.setattr(onboarding, "create_setup_link", create_and_log_out)
    assert create(admin_client, rows, key).status_code == 400
    assert SetupLink.objects.count() == 1
    assert not Session.objects.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PUBLIC_URL": ""}, "PUBLIC_URL"),
        ({"NONSENSE": 1}, "NONSENSE"),
    ],
)
def test_incomplete_settings_are_said_before_anything_is_filled_in(
    admin_client: Client, settings: Any, change: dict[str, Any], words: str
) -> None:
    settings.KAPSO_CONNECT = {**settings.KAPSO_CONNECT, **change}
    response = admin_client.get(CREATE, {"ids": ids(customers(1))})
    assert response["Location"] == LIST
    assert words in warnings(response)[0]


def test_a_site_without_the_pages_is_told_so(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> str:
        return reverse("nowhere:" + name)

    monkeypatch.setattr(onboarding, "reverse", broken)
    response = admin_client.get(CREATE, {"ids": ids(customers(1))})
    assert "kapso_connect.urls is not included" in warnings(response)[0]


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "abc",
        "1;2",
        ",",
        "1,,2",
        "-1",
        "0x1",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "9" * 19,
        "9" * 20,
        "1," * 5000 + "1",
        ",".join(str(n) for n in range(101)),
        "\x00",
        "1 OR 1=1",
        "999999",
    ],
)
@pytest.mark.parametrize("method", ["get", "post"])
def test_hostile_ids_get_a_message(
    admin_client: Client, sandbox: Sandbox, hostile: str, method: str
) -> None:
    customers(1)
    data = {**CHOICES, "ids": hostile, "key": "k" * 22}
    response = getattr(admin_client, method)(CREATE, data)
    assert response["Location"] == LIST
    assert warnings(response)
    assert not sandbox.requests()


@pytest.mark.parametrize(
    "key", ["", "short", "k" * 23, "../../../../etc/passw", "<script>", "\x00"]
)
def test_a_key_that_is_none_of_ours_creates_nothing(
    admin_client: Client, sandbox: Sandbox, key: str
) -> None:
    rows = customers(1)
    response = admin_client.post(CREATE, {**CHOICES, "ids": ids(rows), "key": key})
    assert response.status_code == 200
    assert '<script>"' not in response.content.decode()
    assert not sandbox.requests()


def test_a_customer_that_is_gone_is_left_out(admin_client: Client, sandbox: Sandbox) -> None:
    one, gone = customers(2)
    address = {"ids": ids([one, gone])}
    gone.delete()
    response = admin_client.get(CREATE, address)
    assert "1 of the selected rows" in response.content.decode()
    assert "Create 1 link" in response.content.decode()


def test_too_many_at_once_are_refused(admin_client: Client) -> None:
    response = act(admin_client, customers(101))
    assert "at most 100" in warnings(response)[0]
    assert len(act(admin_client, list(Customer.objects.all()[:100]))["Location"]) < 2000


@pytest.mark.parametrize("selected", ["abc", "9" * 40, "", "1,2"])
@pytest.mark.parametrize("across", ["0", "1"])
def test_a_hostile_selection_gets_a_message(
    admin_client: Client, selected: str, across: str
) -> None:
    customers(1)
    data = {"action": "create_setup_links", "_selected_action": selected, "select_across": across}
    response = admin_client.post(LIST, data)
    assert response["Location"] == LIST
    assert warnings(response)


# Who may


@pytest.mark.parametrize(
    ("permissions", "allowed"),
    [
        (["view_customer", "create_setup_link"], True),
        (["change_customer", "create_setup_link"], True),
        (["view_customer"], False),
        (["change_customer", "add_customer", "delete_customer"], False),
        (["create_setup_link"], False),
        ([], False),
    ],
)
def test_every_step_needs_the_permission(
    staff: Callable[..., Client], sandbox: Sandbox, permissions: list[str], allowed: bool
) -> None:
    rows = customers(1)
    client = staff(*permissions)
    page = client.get(f"{LIST}{rows[0].pk}/change/").content.decode()
    assert (CREATE in page) == allowed
    assert ("create_setup_links" in client.get(LIST).content.decode()) == allowed
    assert (client.get(CREATE, {"ids": ids(rows)}).status_code == 200) == allowed
    if allowed:
        location = create(client, rows)["Location"]
        assert "kapso-copy" in client.get(location).content.decode()
        User.objects.get().user_permissions.clear()
        assert client.get(location).status_code == 403
    else:
        assert act(client, rows).status_code in {200, 302, 403}
        assert create(client, rows, "k" * 22).status_code == 403
        assert client.get(f"{CREATE}{'k' * 22}/").status_code == 403
        assert not sandbox.requests()


@pytest.mark.parametrize("who", ["anonymous", "customer"])
def test_those_who_are_not_staff_are_sent_to_the_login(client: Client, who: str) -> None:
    if who == "customer":
        client.force_login(User.objects.create_user("no-staff"))
    for response in (
        client.get(CREATE, {"ids": "1"}),
        client.post(CREATE, {**CHOICES, "ids": "1", "key": "k" * 22}),
        client.get(f"{CREATE}{'k' * 22}/"),
    ):
        assert response.status_code == 302
        assert response["Location"].startswith("/admin/login/")


def test_a_form_without_a_token_creates_nothing(admin_user: User, sandbox: Sandbox) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    rows = customers(1)
    assert create(client, rows, "k" * 22).status_code == 403
    assert not sandbox.requests()


def test_results_belong_to_whoever_created_them(
    admin_client: Client, staff: Callable[..., Client], sandbox: Sandbox
) -> None:
    location = create(admin_client, customers(1))["Location"]
    other = Client()
    other.force_login(User.objects.create_superuser("other"))
    assert other.get(location)["Location"] == LIST


def test_rows_that_the_site_keeps_from_a_user_stay_away(
    admin_client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kapso_connect.admin import CustomerAdmin

    mine, foreign = customers(2)
    everything = CustomerAdmin.get_queryset
    monkeypatch.setattr(
        CustomerAdmin,
        "get_queryset",
        lambda self, request: everything(self, request).exclude(pk=foreign.pk),
    )
    create(admin_client, [mine, foreign])
    assert list(SetupLink.objects.values_list("customer_id", flat=True)) == [mine.pk]


# Transactions


@pytest.fixture
def atomic_requests() -> Iterator[None]:
    settings = connections["default"].settings_dict
    before = settings["ATOMIC_REQUESTS"]
    settings["ATOMIC_REQUESTS"] = True
    yield
    settings["ATOMIC_REQUESTS"] = before


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("atomic_requests")
def test_kapso_is_asked_outside_any_transaction(
    admin_client: Client, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[bool] = []
    original = KapsoClient._call

    def call(self: KapsoClient, *args: Any, **kwargs: Any) -> Any:
        inside.append(connections["default"].in_atomic_block)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(KapsoClient, "_call", call)
    rows = customers(2)
    page = admin_client.get(act(admin_client, rows)["Location"])
    assert page.status_code == 200
    result = text(admin_client, create(admin_client, rows))
    assert result.count("kapso-copied") == 2
    assert inside
    assert not any(inside)
