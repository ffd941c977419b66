from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from example_project.crm.models import Company
from example_project.demo.data import COMPANIES, USERNAME


class Command(BaseCommand):
    help = "Create the tables, a staff user and a few companies. It can be repeated."

    def handle(self, **options: Any) -> None:
        password = os.environ.get("DEMO_PASSWORD", "")
        if not settings.DEBUG or not password:
            raise CommandError("Only for development: needs DEBUG and the variable DEMO_PASSWORD.")
        call_command("migrate", verbosity=0)
        user, _created = get_user_model().objects.get_or_create(
            username=USERNAME, defaults={"is_staff": True, "is_superuser": True}
        )
        user.set_password(password)
        user.save()
        for name in COMPANIES:
            mailbox = name.split()[0].lower().replace("'", "")
            Company.objects.get_or_create(name=name, defaults={"email": f"{mailbox}@example.com"})
