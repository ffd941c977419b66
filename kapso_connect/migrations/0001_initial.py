import django.core.serializers.json
import django.db.models.deletion
import django.utils.timezone
import kapso_connect.models
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("contenttypes", "0002_remove_content_type_name"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Customer",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=255, verbose_name="name")),
                (
                    "external_customer_id",
                    models.CharField(
                        blank=True,
                        default=kapso_connect.models.new_external_id,
                        help_text="This site's own id for the customer; Kapso returns it in its webhooks.",
                        max_length=255,
                        null=True,
                        unique=True,
                        verbose_name="external customer id",
                    ),
                ),
                (
                    "kapso_id",
                    models.CharField(
                        blank=True,
                        editable=False,
                        help_text="Kapso's id for the customer; set when the first setup link is created.",
                        max_length=64,
                        null=True,
                        unique=True,
                        verbose_name="Kapso id",
                    ),
                ),
                (
                    "owner_id",
                    models.CharField(
                        blank=True, max_length=255, null=True, verbose_name="owner id"
                    ),
                ),
                ("email", models.EmailField(blank=True, max_length=254, verbose_name="e-mail")),
                (
                    "language",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("en", "English"),
                            ("es", "Spanish"),
                            ("pt", "Portuguese"),
                            ("hi", "Hindi"),
                            ("id", "Indonesian"),
                            ("ar", "Arabic"),
                        ],
                        help_text="Language of the hosted page; empty means that of the customer's browser.",
                        max_length=2,
                        verbose_name="language",
                    ),
                ),
                (
                    "connect_key",
                    models.CharField(
                        blank=True,
                        editable=False,
                        help_text="The secret part of the customer's connect URL. Empty if there is none.",
                        max_length=32,
                        null=True,
                        unique=True,
                        verbose_name="connect key",
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="created")),
                ("updated_at", models.DateTimeField(auto_now=True, verbose_name="updated")),
                (
                    "owner_type",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to="contenttypes.contenttype",
                        verbose_name="owner type",
                    ),
                ),
            ],
            options={
                "verbose_name": "customer",
                "verbose_name_plural": "customers",
                "ordering": ["-pk"],
                "permissions": [("create_setup_link", "Can create WhatsApp setup links")],
            },
        ),
        migrations.CreateModel(
            name="InvitationBatch",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "options",
                    models.JSONField(
                        blank=True,
                        default=dict,
                        help_text="The options sent to Kapso.",
                        verbose_name="options",
                    ),
                ),
                (
                    "next_url",
                    models.CharField(blank=True, max_length=2000, verbose_name="next page"),
                ),
                ("send_email", models.BooleanField(default=False, verbose_name="e-mail the links")),
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, verbose_name="created"),
                ),
                (
                    "started_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="When its options were confirmed; before that nothing is created.",
                        null=True,
                        verbose_name="started",
                    ),
                ),
                (
                    "stopped",
                    models.TextField(
                        blank=True,
                        help_text="The error that would affect all other customers, too. Empty unless stopped.",
                        verbose_name="reason for stopping",
                    ),
                ),
                (
                    "created_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="created by",
                    ),
                ),
            ],
            options={
                "verbose_name": "batch of invitations",
                "verbose_name_plural": "batches of invitations",
                "ordering": ["-pk"],
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="SetupLink",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("kapso_id", models.CharField(max_length=64, unique=True, verbose_name="Kapso id")),
                (
                    "url",
                    models.URLField(
                        help_text="Anyone who has this URL can connect a number for the customer.",
                        max_length=2000,
                        verbose_name="URL",
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("active", "Active"),
                            ("used", "Used"),
                            ("expired", "Expired"),
                            ("revoked", "Revoked"),
                        ],
                        default="active",
                        max_length=16,
                        verbose_name="status",
                    ),
                ),
                (
                    "setup_status",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("processing", "Processing"),
                            ("completed", "Completed"),
                            ("failed", "Failed"),
                        ],
                        default="pending",
                        max_length=16,
                        verbose_name="setup status",
                    ),
                ),
                (
                    "options",
                    models.JSONField(
                        blank=True,
                        default=dict,
                        help_text="The options sent to Kapso.",
                        verbose_name="options",
                    ),
                ),
                (
                    "is_latest",
                    models.BooleanField(
                        default=False,
                        editable=False,
                        help_text="The customer's latest link, which determines the customer's status.",
                        verbose_name="latest",
                    ),
                ),
                (
                    "next_url",
                    models.CharField(
                        blank=True,
                        help_text="The page of this site that the success page links to.",
                        max_length=2000,
                        verbose_name="next page",
                    ),
                ),
                (
                    "opened_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="When the customer first opened it.",
                        null=True,
                        verbose_name="opened",
                    ),
                ),
                ("expires_at", models.DateTimeField(blank=True, null=True, verbose_name="expires")),
                (
                    "last_error_code",
                    models.CharField(blank=True, max_length=64, verbose_name="last error code"),
                ),
                (
                    "unconfirmed_phone_number_id",
                    models.CharField(
                        blank=True,
                        help_text="The number from the redirect, which Kapso's API has not confirmed yet.",
                        max_length=64,
                        verbose_name="unconfirmed phone number id",
                    ),
                ),
                (
                    "unconfirmed_since",
                    models.DateTimeField(blank=True, null=True, verbose_name="unconfirmed since"),
                ),
                (
                    "checked_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="When the API was last asked about it.",
                        null=True,
                        verbose_name="checked",
                    ),
                ),
                (
                    "renewing_at",
                    models.DateTimeField(
                        blank=True,
                        editable=False,
                        help_text="When the customer requested a new link, while it is being created.",
                        null=True,
                        verbose_name="renewal started",
                    ),
                ),
                (
                    "created_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now,
                        help_text="When Kapso created the link.",
                        verbose_name="created",
                    ),
                ),
                (
                    "created_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="created by",
                    ),
                ),
                (
                    "customer",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="setup_links",
                        to="kapso_connect.customer",
                        verbose_name="customer",
                    ),
                ),
            ],
            options={
                "verbose_name": "setup link",
                "verbose_name_plural": "setup links",
                "ordering": ["-pk"],
                "permissions": [
                    ("send_setup_link", "Can send WhatsApp setup links to customers"),
                    ("extend_setup_link", "Can extend WhatsApp setup links"),
                    ("revoke_setup_link", "Can revoke WhatsApp setup links"),
                    ("receive_setup_token", "Can receive the tokens of WhatsApp setup links"),
                ],
            },
        ),
        migrations.CreateModel(
            name="Invitation",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("attempts", models.PositiveSmallIntegerField(default=0, verbose_name="attempts")),
                ("last_error", models.TextField(blank=True, verbose_name="last error")),
                (
                    "next_attempt_at",
                    models.DateTimeField(
                        blank=True,
                        default=django.utils.timezone.now,
                        null=True,
                        verbose_name="next attempt",
                    ),
                ),
                (
                    "leased_at",
                    models.DateTimeField(
                        blank=True,
                        editable=False,
                        help_text="When a worker started on it. Empty while no worker is on it.",
                        null=True,
                        verbose_name="in progress since",
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[("pending", "To do"), ("done", "Done"), ("failed", "Failed")],
                        default="pending",
                        max_length=16,
                        verbose_name="status",
                    ),
                ),
                (
                    "email_status",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("", "Not sent"),
                            ("sending", "Being sent"),
                            ("sent", "Sent"),
                            ("failed", "Failed"),
                        ],
                        default="",
                        max_length=16,
                        verbose_name="e-mail",
                    ),
                ),
                ("email_error", models.TextField(blank=True, verbose_name="e-mail error")),
                (
                    "customer",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="invitations",
                        to="kapso_connect.customer",
                        verbose_name="customer",
                    ),
                ),
                (
                    "batch",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="invitations",
                        to="kapso_connect.invitationbatch",
                        verbose_name="batch",
                    ),
                ),
                (
                    "setup_link",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to="kapso_connect.setuplink",
                        verbose_name="setup link",
                    ),
                ),
            ],
            options={
                "verbose_name": "invitation",
                "verbose_name_plural": "invitations",
                "ordering": ["pk"],
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="IdempotentRequest",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "digest",
                    models.CharField(
                        help_text="Digest of the key, its user and the endpoint.",
                        max_length=64,
                        unique=True,
                    ),
                ),
                (
                    "fingerprint",
                    models.CharField(help_text="Digest of the request's body.", max_length=64),
                ),
                (
                    "created_at",
                    models.DateTimeField(db_index=True, default=django.utils.timezone.now),
                ),
                ("leased_until", models.DateTimeField()),
                (
                    "response",
                    models.JSONField(
                        encoder=django.core.serializers.json.DjangoJSONEncoder,
                        help_text="The body, without URLs and tokens.",
                        null=True,
                    ),
                ),
                (
                    "customer",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="kapso_connect.customer",
                    ),
                ),
                (
                    "setup_link",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="kapso_connect.setuplink",
                    ),
                ),
            ],
            options={
                "ordering": ["-pk"],
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="Connection",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "phone_number_id",
                    models.CharField(
                        help_text="Meta's id of the number.",
                        max_length=64,
                        unique=True,
                        verbose_name="phone number id",
                    ),
                ),
                (
                    "business_account_id",
                    models.CharField(
                        blank=True,
                        db_index=True,
                        help_text="The WhatsApp Business Account (WABA) that holds the number.",
                        max_length=64,
                        verbose_name="business account id",
                    ),
                ),
                (
                    "provisioned_phone_number_id",
                    models.CharField(
                        blank=True, max_length=64, verbose_name="provisioned phone number id"
                    ),
                ),
                (
                    "display_phone_number",
                    models.CharField(blank=True, max_length=64, verbose_name="phone number"),
                ),
                (
                    "verified_name",
                    models.CharField(blank=True, max_length=255, verbose_name="verified name"),
                ),
                (
                    "connection_type",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("coexistence", "Coexistence (keeps the WhatsApp Business app)"),
                            ("dedicated", "Dedicated (API only)"),
                        ],
                        max_length=16,
                        verbose_name="connection type",
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[("connected", "Connected"), ("disconnected", "Disconnected")],
                        default="disconnected",
                        max_length=16,
                        verbose_name="status",
                    ),
                ),
                (
                    "connected_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="connected"),
                ),
                (
                    "disconnected_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="Kept when the number is connected again.",
                        null=True,
                        verbose_name="last disconnected",
                    ),
                ),
                (
                    "disconnect_reason",
                    models.CharField(
                        blank=True,
                        help_text="Why it was last disconnected.",
                        max_length=64,
                        verbose_name="why disconnected",
                    ),
                ),
                (
                    "quality_rating",
                    models.CharField(
                        blank=True,
                        help_text="Meta's: GREEN, YELLOW, RED.",
                        max_length=32,
                        verbose_name="quality rating",
                    ),
                ),
                (
                    "name_status",
                    models.CharField(
                        blank=True,
                        help_text="Whether Meta has approved the name that people see.",
                        max_length=64,
                        verbose_name="display name status",
                    ),
                ),
                (
                    "health_status",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("healthy", "Healthy"),
                            ("degraded", "Degraded"),
                            ("unhealthy", "Unhealthy"),
                            ("error", "Could not be checked"),
                        ],
                        max_length=16,
                        verbose_name="health",
                    ),
                ),
                ("health_error", models.TextField(blank=True, verbose_name="health error")),
                (
                    "health_checked_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="health checked"),
                ),
                (
                    "account_status",
                    models.CharField(
                        choices=[
                            ("active", "Active"),
                            ("restricted", "Restricted"),
                            ("disabled", "Disabled"),
                        ],
                        default="active",
                        max_length=16,
                        verbose_name="account status",
                    ),
                ),
                (
                    "restrictions",
                    models.JSONField(
                        blank=True,
                        default=list,
                        help_text="Meta's restrictions, as Kapso reports them.",
                        verbose_name="restrictions",
                    ),
                ),
                (
                    "account_updated_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="account updated"),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="created")),
                ("updated_at", models.DateTimeField(auto_now=True, verbose_name="updated")),
                (
                    "customer",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="connections",
                        to="kapso_connect.customer",
                        verbose_name="customer",
                    ),
                ),
                (
                    "setup_link",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="connections",
                        to="kapso_connect.setuplink",
                        verbose_name="setup link",
                    ),
                ),
            ],
            options={
                "verbose_name": "connection",
                "verbose_name_plural": "connections",
                "ordering": ["-pk"],
                "permissions": [
                    ("reconnect_number", "Can invite customers to reconnect a WhatsApp number"),
                    ("check_health", "Can check the health of WhatsApp numbers"),
                    ("disconnect_number", "Can disconnect WhatsApp numbers"),
                ],
            },
        ),
        migrations.CreateModel(
            name="WebhookEvent",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("attempts", models.PositiveSmallIntegerField(default=0, verbose_name="attempts")),
                ("last_error", models.TextField(blank=True, verbose_name="last error")),
                (
                    "next_attempt_at",
                    models.DateTimeField(
                        blank=True,
                        default=django.utils.timezone.now,
                        null=True,
                        verbose_name="next attempt",
                    ),
                ),
                (
                    "leased_at",
                    models.DateTimeField(
                        blank=True,
                        editable=False,
                        help_text="When a worker started on it. Empty while no worker is on it.",
                        null=True,
                        verbose_name="in progress since",
                    ),
                ),
                (
                    "idempotency_key",
                    models.CharField(max_length=100, unique=True, verbose_name="idempotency key"),
                ),
                ("event", models.CharField(max_length=100, verbose_name="event")),
                (
                    "payload",
                    models.JSONField(
                        encoder=django.core.serializers.json.DjangoJSONEncoder,
                        verbose_name="payload",
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("processed", "Processed"),
                            ("ignored", "Ignored"),
                            ("failed", "Failed"),
                        ],
                        default="pending",
                        max_length=16,
                        verbose_name="status",
                    ),
                ),
                (
                    "received_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="received"
                    ),
                ),
                (
                    "processed_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="processed"),
                ),
            ],
            options={
                "verbose_name": "webhook event",
                "verbose_name_plural": "webhook events",
                "ordering": ["-pk"],
                "indexes": [
                    models.Index(
                        fields=["status", "next_attempt_at"], name="kapso_connect_inbox_due"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="TimelineEvent",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("attempts", models.PositiveSmallIntegerField(default=0, verbose_name="attempts")),
                ("last_error", models.TextField(blank=True, verbose_name="last error")),
                (
                    "next_attempt_at",
                    models.DateTimeField(
                        blank=True,
                        default=django.utils.timezone.now,
                        null=True,
                        verbose_name="next attempt",
                    ),
                ),
                (
                    "leased_at",
                    models.DateTimeField(
                        blank=True,
                        editable=False,
                        help_text="When a worker started on it. Empty while no worker is on it.",
                        null=True,
                        verbose_name="in progress since",
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("setup_link_created", "Setup link created"),
                            ("setup_link_revoked", "Setup link revoked"),
                            ("setup_link_expired", "Setup link expired"),
                            ("setup_link_extended", "Setup link extended"),
                            ("setup_link_sent", "Setup link sent"),
                            ("setup_link_opened", "Setup link opened"),
                            ("setup_failed", "Setup failed"),
                            ("connected", "Connected"),
                            ("disconnected", "Disconnected"),
                            ("reconnected", "Reconnected"),
                            ("account_updated", "Account updated"),
                            ("health_checked", "Health checked"),
                            ("webhook_received", "Webhook received"),
                        ],
                        max_length=32,
                        verbose_name="kind",
                    ),
                ),
                (
                    "source",
                    models.CharField(
                        choices=[
                            ("webhook", "Webhook"),
                            ("redirect", "Redirect"),
                            ("sync", "Sync"),
                            ("manual", "Manual"),
                        ],
                        max_length=16,
                        verbose_name="source",
                    ),
                ),
                (
                    "data",
                    models.JSONField(
                        blank=True,
                        default=dict,
                        encoder=django.core.serializers.json.DjangoJSONEncoder,
                        verbose_name="data",
                    ),
                ),
                (
                    "occurred_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="occurred"
                    ),
                ),
                (
                    "delivered_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="signal delivered"),
                ),
                (
                    "receivers",
                    models.JSONField(blank=True, default=list, verbose_name="successful receivers"),
                ),
                (
                    "actor",
                    models.ForeignKey(
                        blank=True,
                        help_text="The member of staff who did it. Empty if it was not done by staff.",
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="by",
                    ),
                ),
                (
                    "connection",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="events",
                        to="kapso_connect.connection",
                        verbose_name="connection",
                    ),
                ),
                (
                    "customer",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="events",
                        to="kapso_connect.customer",
                        verbose_name="customer",
                    ),
                ),
                (
                    "setup_link",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="events",
                        to="kapso_connect.setuplink",
                        verbose_name="setup link",
                    ),
                ),
                (
                    "webhook_event",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="timeline_events",
                        to="kapso_connect.webhookevent",
                        verbose_name="webhook event",
                    ),
                ),
            ],
            options={
                "verbose_name": "timeline event",
                "verbose_name_plural": "timeline events",
                "ordering": ["-pk"],
            },
        ),
        migrations.AddConstraint(
            model_name="customer",
            constraint=models.UniqueConstraint(
                fields=("owner_type", "owner_id"), name="kapso_connect_one_customer_per_owner"
            ),
        ),
        migrations.AddIndex(
            model_name="setuplink",
            index=models.Index(fields=["customer", "status"], name="kapso_connect_link_status"),
        ),
        migrations.AddIndex(
            model_name="setuplink",
            index=models.Index(fields=["status", "expires_at"], name="kapso_connect_link_expires"),
        ),
        migrations.AddIndex(
            model_name="setuplink",
            index=models.Index(fields=["created_at"], name="kapso_connect_link_created"),
        ),
        migrations.AddIndex(
            model_name="setuplink",
            index=models.Index(fields=["status", "checked_at"], name="kapso_connect_link_checked"),
        ),
        migrations.AddIndex(
            model_name="setuplink",
            index=models.Index(fields=["unconfirmed_since"], name="kapso_connect_link_unconfirmed"),
        ),
        migrations.AddIndex(
            model_name="invitation",
            index=models.Index(
                fields=["status", "next_attempt_at"], name="kapso_connect_invite_due"
            ),
        ),
        migrations.AddIndex(
            model_name="invitation",
            index=models.Index(fields=["batch", "status"], name="kapso_connect_invite_batch"),
        ),
        migrations.AddConstraint(
            model_name="invitation",
            constraint=models.UniqueConstraint(
                fields=("batch", "customer"), name="kapso_connect_invited_once_a_batch"
            ),
        ),
        migrations.AddIndex(
            model_name="connection",
            index=models.Index(fields=["status", "connected_at"], name="kapso_connect_conn_status"),
        ),
        migrations.AddIndex(
            model_name="timelineevent",
            index=models.Index(fields=["customer", "occurred_at"], name="kapso_connect_timeline"),
        ),
        migrations.AddIndex(
            model_name="timelineevent",
            index=models.Index(
                fields=["kind", "occurred_at", "setup_link"], name="kapso_connect_kind"
            ),
        ),
        migrations.AddIndex(
            model_name="timelineevent",
            index=models.Index(
                fields=["delivered_at", "next_attempt_at"], name="kapso_connect_outbox_due"
            ),
        ),
    ]
