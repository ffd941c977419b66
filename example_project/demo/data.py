"""The users and the companies of the demo. All of them are made up; their numbers are fictional."""

from __future__ import annotations

from dataclasses import dataclass

USERNAME = "demo"
"""The user who manages the site."""

MEMBER = "member"
"""A user of MEMBERS_COMPANIES: one is connected, the other is not."""

MEMBERS_COMPANIES = ["Ada's Bakery", "Quill Stationers"]


@dataclass(frozen=True)
class CompanyData:
    name: str
    opening_hours: str = ""

    @property
    def email(self) -> str:
        return f"{self.name.split()[0].lower().replace(chr(39), '')}@example.com"


COMPANIES = [
    CompanyData("Ada's Bakery", "Monday to Saturday, 7 to 18"),
    CompanyData("Blue Door Dental", "Monday to Friday, 8 to 17"),
    CompanyData("Corner Bikes", "Tuesday to Saturday, 10 to 18"),
    CompanyData("Delta Tours"),
    CompanyData("Elm Street Books", "Monday to Saturday, 9 to 19"),
    CompanyData("Fresh Flowers"),
    CompanyData("Green Garden Care"),
    CompanyData("Harbour Hotel"),
    CompanyData("Ivy Lane Yoga"),
    CompanyData("Juniper Kitchen"),
    CompanyData("Kite Travel", "Monday to Friday, 9 to 17"),
    CompanyData("Lakeside Vets", "Every day, 8 to 20"),
    CompanyData("Maple Music School"),
    CompanyData("Northside Physio"),
    CompanyData("Olive & Thyme"),
    CompanyData("Park Street Pharmacy"),
    CompanyData("Quill Stationers"),
    CompanyData("Riverside Garage", "Monday to Friday, 8 to 18"),
]

NEW_COMPANIES = [
    "Station Cafe",
    "Tall Trees Nursery",
    "Upton Print Shop",
    "Valley Cleaners",
    "West Pier Diving",
    "Yellow Cab Service",
    "Zephyr Sailing",
]
"""The companies that ``manage.py demo --once`` adds: one connects, the others fail."""


def phone_number(index: int) -> str:
    """Return the number of the person in charge of the company with this index."""
    return f"+1 415-555-01{20 + index:02d}"
