"""Online recharges as the settings have them, and the sandbox gateway to try them with.

Stage: between settings and the payment desk; loaded where payments are taken only.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from prepaid import console
from prepaid.arguments import DataDir, Json, line, local, run, settings_of
from prepaid.settings import Settings, SettingsError

if TYPE_CHECKING:
    from vending.edges.payment_desk import OnlineSettings

SANDBOX_KEY_ID = "sandbox"
payments_app = typer.Typer(no_args_is_help=True, help="Online recharges: all their money, and a sandbox gateway.")


def online_settings(settings: Settings) -> OnlineSettings | None:
    """Return what the installation takes money online by; None where nobody pays online."""
    from vending.edges.payment_desk import OnlineSettings
    from vending.edges.razorpay import Razorpay, RazorpaySettings

    if settings.payment_url is None:
        return None
    # The settings come whole or not at all.
    gateway = RazorpaySettings(
        url=settings.payment_url,
        key_id=_set(settings.payment_key_id),
        key_secret=_set(settings.payment_key_secret),
        webhook_secret=_set(settings.payment_webhook_secret).encode(),
        timeout_s=settings.payment_timeout_s,
    )
    return OnlineSettings(
        gateway=Razorpay(gateway),
        public_url=_set(settings.public_url),
        link_secret=_set(settings.recharge_link_secret).encode(),
    )


@payments_app.command("totals")
def print_totals(
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """All money received by gateways, what went back, what was credited; and words that wait for people."""
    from db.payments import read_sums

    sums = run(settings_of(data), read_sums)
    if json_output:
        console.print_json(asdict(sums))
        return
    for name, amount_minor in asdict(sums).items():
        shown = str(amount_minor) if name == "for_people" else console.rupees(amount_minor)
        typer.echo(f"{name.removesuffix('_minor').replace('_', ' ')}: {shown}")


@payments_app.command("exceptions")
def print_exceptions(
    after: Annotated[int, typer.Option(min=0, help="The last number of the page before.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 1_000,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Words of gateways that only people can settle: of unknown orders, and refunds in part."""
    from db.payments import list_exceptions

    settings = settings_of(data)
    found = run(settings, lambda conn: list_exceptions(conn, after=after, most=limit))
    if json_output:
        told = [asdict(each) | {"received_at": each.received_at.isoformat()} for each in found]
        console.print_json({"exceptions": told})
        return
    for each in found:
        back = f", {console.rupees(each.refunded_minor)} of it gone back" if each.refunded_minor else ""
        line(
            f"{each.id} {local(each.received_at, settings)} {each.outcome} {each.gateway}: order"
            f" {each.reference or 'none named'}, payment {each.capture or 'none named'},"
            f" {console.rupees(each.amount_minor)}{back}"
        )


@payments_app.command("sandbox")
def run_sandbox(
    key_secret: Annotated[str, typer.Option(envvar="PREPAID_PAYMENT_KEY_SECRET", help="As the API has it.")],
    webhook_secret: Annotated[str, typer.Option(envvar="PREPAID_PAYMENT_WEBHOOK_SECRET", help="As the API has it.")],
    api: Annotated[str, typer.Option(help="Where webhooks go: address of the API.")] = "http://127.0.0.1:8080",
    port: Annotated[int, typer.Option(help="TCP port on loopback.")] = 8090,
    copies: Annotated[int, typer.Option(min=0, max=9, help="How often each webhook is sent; 0 loses all.")] = 1,
) -> None:
    """Run a payment gateway that takes no money: pages to pay at, and webhooks, for trying out."""
    import uvicorn

    from vending.edges.sandbox_gateway import Sandbox, create_sandbox, sending

    sandbox = Sandbox(
        key_id=SANDBOX_KEY_ID,
        key_secret=key_secret,
        webhook_secret=webhook_secret.encode(),
        public_url=f"http://127.0.0.1:{port}",
        clock=lambda: int(time.time()),
    )
    app = create_sandbox(sandbox, lifespan=sending(sandbox, f"{api}/v1/payments/webhooks/razorpay", copies=copies))
    typer.echo(f"sandbox gateway: http://127.0.0.1:{port}, key id {SANDBOX_KEY_ID}; no money is taken")
    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False)


def _set(value: str | None) -> str:
    if value is None:
        raise SettingsError("payment_url: expected its other settings beside it")
    return value
