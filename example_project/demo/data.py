"""The user and the companies of the demo."""

from __future__ import annotations

USERNAME = "demo"
COMPANIES = [
    "Ada's Bakery",
    "Blue Door Dental",
    "Corner Bikes",
    "Delta Tours",
    "Elm Street Books",
    "Fresh Flowers",
    "Green Garden Care",
    "Harbour Hotel",
]
