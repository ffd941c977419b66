from __future__ import annotations

from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Company",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=200)),
                ("email", models.EmailField(max_length=254, verbose_name="e-mail")),
                ("opening_hours", models.CharField(blank=True, max_length=200)),
                (
                    "whatsapp_phone_number_id",
                    models.CharField(blank=True, editable=False, max_length=64),
                ),
                ("whatsapp_connected_at", models.DateTimeField(editable=False, null=True)),
                ("whatsapp_problem", models.CharField(blank=True, editable=False, max_length=64)),
                (
                    "members",
                    models.ManyToManyField(
                        blank=True, related_name="companies", to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "companies",
                "ordering": ["name"],
                "indexes": [models.Index(fields=["name"], name="crm_company_name")],
            },
        ),
        migrations.CreateModel(
            name="HandledEvent",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("event_id", models.BigIntegerField()),
                ("receiver", models.CharField(max_length=100)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("event_id", "receiver"), name="crm_handled_once"
                    )
                ],
            },
        ),
    ]
