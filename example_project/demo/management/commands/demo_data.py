from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from example_project.crm.models import Company
from example_project.demo.data import COMPANIES, MEMBER, MEMBERS_COMPANIES, USERNAME, phone_number
from example_project.demo.history import date_back, play_history


class Command(BaseCommand):
    help = (
        "Create the tables, two users, and companies with a history of four weeks. Needs a running "
        "sandbox."
    )

    def handle(self, **options: Any) -> None:
        password = settings.DEMO_PASSWORD
        if not password:
            raise CommandError("Only for development: needs DEBUG and the variable DEMO_PASSWORD.")
        call_command("migrate", verbosity=0)
        if Company.objects.exists():
            raise CommandError("Only for a new database: this one has companies.")
        started = timezone.now()
        users = get_user_model().objects
        staff = users.create_superuser(USERNAME, password=password)
        member = users.create_user(MEMBER, password=password)
        for index, data in enumerate(COMPANIES):
            company = Company.objects.create(
                name=data.name,
                email=data.email,
                phone=phone_number(index),
                opening_hours=data.opening_hours,
            )
            if data.name in MEMBERS_COMPANIES:
                company.members.add(member)
        date_back(started, timedelta(days=30))
        play_history(staff)
