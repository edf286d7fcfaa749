"""The channels that an installation has set up, made of its settings.

Stage: between settings and the notifier. Holds no rule of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from billing.notices import Channel
from billing.notices.planning import DeliveryRules, parse_quiet_hours
from prepaid.settings import Settings, SettingsError

if TYPE_CHECKING:
    from headend.edges.notice_port import NoticePort
    from headend.edges.notify import NotifySettings

# The right side of message ids where no e-mail address has one: a domain that nobody can own (RFC 2606).
_DOMAIN_WITHOUT_MAIL = "prepaid.invalid"


def sends_notices(settings: Settings) -> bool:
    """Tell whether any channel is set up."""
    return settings.smtp_host is not None or settings.sms_url is not None


def notice_ports(settings: Settings) -> dict[Channel, NoticePort]:
    """Return the adapters of the channels that are set up.

    Raises: SettingsError when there is none.
    """
    # Only the notifier pays for loading the HTTP client.
    from headend.edges.sms_gateway import GatewayPort, GatewaySettings
    from headend.edges.smtp import Security, SmtpPort, SmtpSettings

    if not sends_notices(settings):
        raise SettingsError("notify: expected PREPAID_SMTP_HOST or PREPAID_SMS_URL, since one process sends by these")
    ports: dict[Channel, NoticePort] = {}
    if settings.smtp_host is not None and settings.smtp_from is not None:
        ports[Channel.EMAIL] = SmtpPort(
            SmtpSettings(
                host=settings.smtp_host,
                port=settings.smtp_port,
                security=Security(settings.smtp_security),
                user=settings.smtp_user,
                password=settings.smtp_password,
                sender=settings.smtp_from,
                timeout_s=settings.smtp_timeout_s,
                ca_file=settings.smtp_ca_file,
            )
        )
    if settings.sms_url is not None and settings.sms_secret is not None:
        ports[Channel.SMS] = GatewayPort(
            GatewaySettings(
                url=settings.sms_url,
                secret=settings.sms_secret.encode(),
                sender=settings.sms_sender,
                timeout_s=settings.sms_timeout_s,
                parallel=settings.sms_parallel,
            )
        )
    return ports


def notify_settings(settings: Settings, database_url: str) -> NotifySettings:
    """Return what a notifier needs to know."""
    from headend.edges.notify import NotifySettings
    from prepaid.processes import calendar_of

    channels = {Channel.EMAIL: settings.smtp_host, Channel.SMS: settings.sms_url}
    return NotifySettings(
        database_url=database_url,
        rules=DeliveryRules(
            channels=frozenset(channel for channel, address in channels.items() if address is not None),
            quiet=parse_quiet_hours(settings.quiet_hours),
            per_day_max=settings.notices_per_day_max,
            calendar=calendar_of(settings),
        ),
        domain=(settings.smtp_from or f"@{_DOMAIN_WITHOUT_MAIL}").rpartition("@")[2],
    )
