"""What the start page shows staff: each company's WhatsApp, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.urls import reverse
from django.utils.timesince import timesince

from kapso_connect.kapso.error_codes import find_error
from kapso_connect.models import Customer, OnboardingStatus
from kapso_connect.onboarding.status import CustomerStatus, get_statuses

from .models import Company

ADMIN = "admin:kapso_connect_customer"

WAITING = (OnboardingStatus.CONFIRMING, OnboardingStatus.OPENED, OnboardingStatus.INVITED)


@dataclass(frozen=True)
class Row:
    """One company. ``look`` is a class of the style sheet; ``problems`` are those of a connected
    number. ``form_url`` is where the button of the next step posts to, ``next_url`` where its link
    leads; both are empty if there is no next step.
    """

    company: Company
    url: str
    status: str
    look: str
    number: str
    problems: list[str]
    reason: str
    next_step: str = ""
    next_url: str = ""
    form_url: str = ""


@dataclass(frozen=True)
class Group:
    title: str
    key: str
    rows: list[Row]


def groups() -> list[Group]:
    """Return all companies, grouped by what they need, in a fixed number of queries."""
    companies = Company.objects.all()
    owned = {row.owner_id: row for row in Customer.objects.for_owners(companies)}
    statuses = get_statuses(owned.values(), with_attention=True)
    found: dict[str, list[Row]] = {"help": [], "waiting": [], "connected": [], "new": []}
    for company in companies:
        customer = owned.get(str(company.pk))
        if customer is not None:
            status = statuses[customer.pk]
            found[group_of(status)].append(row_of(company, customer, status))
    titles = {
        "help": "Need attention",
        "waiting": "On their way",
        "connected": "Connected",
        "new": "Not invited yet",
    }
    return [Group(title, key, found[key]) for key, title in titles.items()]


def group_of(status: CustomerStatus) -> str:
    if status.attention or status.status == OnboardingStatus.FAILED:
        return "help"
    if status.status in (OnboardingStatus.PAUSED, OnboardingStatus.DISCONNECTED):
        return "help"
    if status.status in WAITING:
        return "waiting"
    return "connected" if status.status == OnboardingStatus.CONNECTED else "new"


def row_of(company: Company, customer: Customer, status: CustomerStatus) -> Row:
    page = reverse(f"{ADMIN}_change", args=[customer.pk])
    number = status.connection
    step = {"next_step": "", "next_url": "", "form_url": ""}
    match status.status:
        case OnboardingStatus.NOT_INVITED | OnboardingStatus.FAILED:
            again = status.status == OnboardingStatus.FAILED
            step["next_step"] = "Invite again" if again else "Invite"
            step["form_url"] = reverse(f"{ADMIN}_whatsapp_invite", args=[customer.pk])
        case OnboardingStatus.INVITED | OnboardingStatus.OPENED:
            step["next_step"] = "Send again"
            step["next_url"] = reverse(f"{ADMIN}_whatsapp_email", args=[customer.pk])
        case OnboardingStatus.PAUSED | OnboardingStatus.DISCONNECTED if number:
            step["next_step"] = "Reconnect"
            step["next_url"] = reverse(f"{ADMIN}_whatsapp_reconnect", args=[customer.pk, number.pk])
        case OnboardingStatus.CONFIRMING:
            step["next_step"] = "Confirm"
            step["next_url"] = page
        case _:
            step["next_step"] = "See what to do" if status.attention else ""
            step["next_url"] = page if status.attention else ""
    return Row(
        company=company,
        url=page,
        status=str(status.status.label),
        look=LOOKS.get(status.status, "busy"),
        number=str(number) if number else "",
        problems=problems_of(status),
        reason=". ".join(reasons(customer, status)),
        **step,
    )


LOOKS = {
    OnboardingStatus.CONNECTED: "good",
    OnboardingStatus.NOT_INVITED: "",
    OnboardingStatus.FAILED: "bad",
    OnboardingStatus.DISCONNECTED: "bad",
}


def problems_of(status: CustomerStatus) -> list[str]:
    if status.status != OnboardingStatus.CONNECTED:
        return []
    return [str(why.label) for why, _number in status.attention]


def reasons(customer: Customer, status: CustomerStatus) -> Iterator[str]:
    if status.status == OnboardingStatus.FAILED and status.link:
        yield str(find_error(status.link.last_error_code).title)
    if status.status == OnboardingStatus.CONFIRMING:
        yield "Kapso does not know the number yet"
    if status.status != OnboardingStatus.NOT_INVITED:
        yield f"{timesince(customer.status_changed_at, depth=1)} ago"
