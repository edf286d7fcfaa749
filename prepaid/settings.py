"""The one frozen settings object of a process: environment first, then an optional TOML file, then defaults.

Built once in the command line layer by `load_settings` and passed down; nothing else reads the environment.
A variable under our prefix that no field claims stops the start, so that a misspelt limit is never silently
replaced by its default. Error texts name the field and the rule, never the value: addresses carry passwords.
"""

import os
import tomllib
from pathlib import Path
from typing import ClassVar, Final, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from billing.notices.addresses import read_email
from billing.notices.kinds import NoticeError
from billing.notices.planning import parse_quiet_hours
from billing.notices.signing import SECRET_LENGTH_MIN
from db.storage_classes import RetentionError, parse_retention
from vending.sts_module_settings import (
    BadModuleSetting,
    ModuleSetup,
    parse_module_address,
    parse_register_map,
)

ENV_PREFIX: Final = "PREPAID_"
CONFIG_VARIABLE: Final = "PREPAID_CONFIG"

LogLevel = Literal["debug", "info", "warning", "error"]


class PrepaidError(Exception):
    """Base of what stops a command before it does any work; `code` is stable."""

    code: ClassVar[str] = "prepaid_error"


class SettingsError(PrepaidError):
    """The settings of this start are unusable; the message is one line naming the setting."""

    code: ClassVar[str] = "settings_error"


class Settings(BaseSettings):
    """Everything an operator may choose for one process.

    Invariants: frozen; every limit positive; `vend_min_minor <= vend_max_minor`; `time_zone` is known to the
    zone database; addresses with secrets and secrets never show in `repr`; a channel is set up whole or not at all.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    database_url: str | None = Field(
        default=None, repr=False, description="PostgreSQL address; unset starts the embedded server"
    )
    nats_url: str | None = Field(
        default=None,
        repr=False,
        description="NATS client addresses, comma between the servers of a cluster; unset starts the embedded one",
    )
    mqtt_url: str | None = Field(
        default=None,
        repr=False,
        description="MQTT listener of the same broker, mqtt://host:port; unset: embedded, or port 1883 of nats_url",
    )
    data_dir: Path = Field(default=Path("var"), description="folder of everything the embedded parts store")
    time_zone: str = Field(default="Asia/Kolkata", description="IANA zone whose midnight ends a billing day")
    api_host: str = Field(default="127.0.0.1", description="address the HTTP API listens on")
    api_port: int = Field(default=8080, ge=0, le=65_535, description="TCP port of the HTTP API; 0 = any free")
    api_plain_keys: Literal["never", "loopback", "consumers", "everywhere"] = Field(
        default="loopback",
        description="where the header X-Api-Key is enough and a request need not be signed: never, from this machine, "
        "likewise and for consumers from everywhere, everywhere",
    )
    api_tls_cert: Path | None = Field(default=None, description="PEM file of the API's certificate; unset: plain HTTP")
    api_tls_key: Path | None = Field(default=None, description="PEM file of the private key of api_tls_cert")
    api_tls_client_ca: Path | None = Field(
        default=None, description="PEM file of who certifies callers; every caller then needs a certificate"
    )
    lease_s: float = Field(default=10.0, ge=1, le=300, description="s a shard stays with a silent owner")
    ack_wait_s: float = Field(
        default=10.0, ge=1, le=300, description="s until an unacknowledged message is delivered again"
    )
    stale_reading_s: int | None = Field(
        default=None, ge=60, description="s after which a last reading holds a cut-off back; unset: never"
    )
    close_day_delay_s: int = Field(
        default=7_200, ge=0, le=86_400, description="s after local midnight before a day is posted"
    )
    cut_offs_per_minute_max: int = Field(default=600, ge=1, description="cut-off commands per minute and area")
    cut_offs_per_hour_max: int = Field(
        default=3_000, ge=1, description="new cut-offs per hour and area; then they wait for a release"
    )
    silent_after_h: int = Field(
        default=24, ge=1, le=8_784, description="h after which a meter that is not heard of is silent"
    )
    vend_min_minor: int = Field(default=1_000, ge=1, description="smallest vend, minor units of the currency")
    vend_max_minor: int = Field(default=5_000_000, ge=1, description="largest vend, minor units of the currency")
    held_vend_max_s: int = Field(
        default=172_800, ge=60, description="s after which a held vend that nobody confirmed is taken back"
    )
    utility_name: str | None = Field(default=None, max_length=96, description="whose name receipts carry; unset: none")
    utility_help: str | None = Field(
        default=None, max_length=192, description="last line of receipts, such as where to get help; unset: none"
    )
    payment_url: str | None = Field(
        default=None,
        description="payment gateway with Razorpay's interface, https://api.razorpay.com; unset: nobody pays online",
    )
    payment_key_id: str | None = Field(default=None, description="our key id at the payment gateway")
    payment_key_secret: str | None = Field(default=None, repr=False, description="secret of payment_key_id")
    payment_webhook_secret: str | None = Field(
        default=None, repr=False, description="secret that the payment gateway signs its webhooks with"
    )
    payment_timeout_s: float = Field(default=10.0, ge=1, le=60, description="s to wait for the payment gateway")
    public_url: str | None = Field(
        default=None, description="address by which consumers reach the API, such as https://power.example"
    )
    recharge_link_secret: str | None = Field(
        default=None, repr=False, description="secret of 32 characters or more that signs recharge links"
    )
    ingest_processes: int = Field(
        default=1, ge=1, le=32, description="under `up`: ingest processes, which share the 32 shards"
    )
    ingest_metrics_port: int | None = Field(
        default=None, ge=1, le=65_535, description="loopback TCP port of an ingest process's /metrics; unset: none"
    )
    dispatch_metrics_port: int | None = Field(
        default=None, ge=1, le=65_535, description="loopback TCP port of a dispatcher's /metrics; unset: none"
    )
    notify_metrics_port: int | None = Field(
        default=None, ge=1, le=65_535, description="loopback TCP port of a notifier's /metrics; unset: none"
    )
    sources: Path | None = Field(default=None, description="TOML file of the bridge's sources; unset: no bridge")
    bridge_member: int = Field(default=1, ge=1, le=999, description="number of this bridge among those of its sources")
    bridge_metrics_port: int | None = Field(
        default=None, ge=1, le=65_535, description="loopback TCP port of a bridge's /metrics; unset: none"
    )
    gateway_member: int = Field(default=1, ge=1, le=999, description="number of this Modbus gateway: its outbox folder")
    gateway_outbox_mb_max: int = Field(
        default=1_000, ge=10, description="MB of readings a gateway keeps on disk while the broker is away"
    )
    gateway_maps: Path | None = Field(default=None, description="folder of further Modbus register maps; unset: none")
    gateway_metrics_port: int | None = Field(
        default=None, ge=1, le=65_535, description="loopback TCP port of a gateway's /metrics; unset: none"
    )
    smtp_host: str | None = Field(default=None, description="mail server; unset: no e-mail is sent")
    smtp_port: int = Field(default=587, ge=1, le=65_535, description="TCP port of the mail server")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="how the line to the mail server is kept secret"
    )
    smtp_user: str | None = Field(default=None, description="login at the mail server; unset: none")
    smtp_password: str | None = Field(default=None, repr=False, description="password of smtp_user")
    smtp_from: str | None = Field(default=None, description="address that e-mail comes from")
    smtp_timeout_s: float = Field(default=10.0, ge=1, le=60, description="s to wait for each answer of the mail server")
    smtp_ca_file: Path | None = Field(
        default=None, description="PEM file of who may certify the mail server; unset: whom the system trusts"
    )
    sms_url: str | None = Field(
        default=None, repr=False, description="address of the SMS gateway, http(s)://...; unset: no SMS is sent"
    )
    sms_secret: str | None = Field(
        default=None,
        repr=False,
        description="secret of 32 characters or more, shared with the SMS gateway",
    )
    sms_sender: str | None = Field(default=None, description="sender that phones show, where the gateway takes one")
    sms_timeout_s: float = Field(default=10.0, ge=1, le=60, description="s to wait for the SMS gateway")
    sms_parallel: int = Field(default=20, ge=1, le=200, description="SMS on their way at once")
    quiet_hours: str = Field(
        default="21:00-07:00", description="local times between which what can wait is not sent, or none"
    )
    notices_per_day_max: int = Field(
        default=10, ge=1, description="messages a local day, account and channel, beside those that were asked for"
    )
    retention: str = Field(
        default="",
        description="days that classes of data are kept, such as readings=1461; unset: nothing goes by itself",
    )
    master_key_file: Path | None = Field(
        default=None, description="file of the key that seals vending keys; unset: made under data_dir"
    )
    master_key: str | None = Field(
        default=None, repr=False, description="that key itself, 64 hexadecimal digits; a file is safer"
    )
    ea07_tables: Path | None = Field(
        default=None, description="JSON file of the EA07 cipher tables; unset: no tokens for EA07 meters"
    )
    ea07_sample_tables: bool = Field(
        default=False, description="make EA07 tokens with the IEC sample tables: for tests, NOT FOR FIELD METERS"
    )
    allow_dkga03: bool = Field(
        default=False, description="take 16-byte vending keys and derive by DKGA03, which is withdrawn and unconfirmed"
    )
    mint_tokens_per_day_max: int | None = Field(
        default=None, ge=1, description="tokens that a security module makes on a local day; unset: no limit"
    )
    mint_minor_per_day_max: int | None = Field(
        default=None, ge=1, description="currency credit that it makes on a local day, minor units; unset: no limit"
    )
    mint_units_per_day_max: int | None = Field(
        default=None, ge=1, description="unit credit that it makes on a local day, kWh or m3; unset: no limit"
    )
    sts_module: str | None = Field(
        default=None,
        description="hardware security module, tcp://host:port or serial:///dev/ttyS0?baud=9600; unset: the soft one",
    )
    sts_module_registers: str | None = Field(
        default=None, description="what its registers hold, register=SGC/KRN/base year/KEN: 1=201457/1/2014/255, 2=..."
    )
    log_level: LogLevel = Field(default="info", description="least severe event that is logged")

    @property
    def module_setup(self) -> ModuleSetup | None:
        """The hardware security module with its registers; None where the soft one mints."""
        if self.sts_module is None or self.sts_module_registers is None:
            return None
        return ModuleSetup(
            address=parse_module_address(self.sts_module), registers=parse_register_map(self.sts_module_registers)
        )

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise ValueError("expected an IANA time zone such as Asia/Kolkata") from None
        return name

    @field_validator("database_url")
    @classmethod
    def _postgresql_address(cls, url: str | None) -> str | None:
        return _address(url, schemes=("postgresql", "postgres"))

    @field_validator("nats_url")
    @classmethod
    def _nats_address(cls, url: str | None) -> str | None:
        for server in (url or "").split(","):
            _address(server or None, schemes=("nats", "tls"))
        return url

    @field_validator("mqtt_url")
    @classmethod
    def _mqtt_address(cls, url: str | None) -> str | None:
        return _address(url, schemes=("mqtt",))

    @field_validator("sms_url", "payment_url", "public_url")
    @classmethod
    def _http_address(cls, url: str | None) -> str | None:
        return _address(url, schemes=("https", "http"))

    @field_validator("quiet_hours")
    @classmethod
    def _two_times(cls, text: str) -> str:
        try:
            parse_quiet_hours(text)
        except NoticeError as error:
            raise ValueError(str(error)) from None
        return text

    @field_validator("retention")
    @classmethod
    def _days_by_class(cls, text: str) -> str:
        try:
            parse_retention(text)
        except RetentionError as error:
            raise ValueError(str(error)) from None
        return text

    @field_validator("smtp_from")
    @classmethod
    def _mail_address(cls, text: str | None) -> str | None:
        try:
            return None if text is None else read_email(text)
        except NoticeError as error:
            raise ValueError(str(error)) from None

    @field_validator("sts_module", "sts_module_registers")
    @classmethod
    def _module_text(cls, text: str | None, info: ValidationInfo) -> str | None:
        parse = parse_module_address if info.field_name == "sts_module" else parse_register_map
        try:
            if text is not None:
                parse(text)
        except BadModuleSetting as error:
            raise ValueError(str(error)) from None
        return text

    @field_validator("sms_secret", "recharge_link_secret")
    @classmethod
    def _long_secret(cls, text: str | None) -> str | None:
        if text is not None and len(text) < SECRET_LENGTH_MIN:
            raise ValueError(f"expected {SECRET_LENGTH_MIN} characters or more")
        return text

    @model_validator(mode="after")
    def _channels_are_whole(self) -> Self:
        if (self.smtp_host is None) != (self.smtp_from is None):
            raise ValueError("smtp_host: expected smtp_from beside it, and neither without the other")
        if (self.smtp_user is None) != (self.smtp_password is None):
            raise ValueError("smtp_user: expected smtp_password beside it, and neither without the other")
        if self.smtp_password is not None and self.smtp_security == "none":
            raise ValueError("smtp_security: expected starttls or tls, since a password goes over the line")
        if self.sms_url is not None and self.sms_secret is None:
            raise ValueError("sms_url: expected sms_secret beside it, which signs the requests")
        return self

    @model_validator(mode="after")
    def _module_is_whole(self) -> Self:
        if (self.sts_module is None) != (self.sts_module_registers is None):
            raise ValueError("sts_module: expected sts_module_registers beside it, and neither without the other")
        return self

    @model_validator(mode="after")
    def _payments_are_whole(self) -> Self:
        needed = (
            self.payment_key_id,
            self.payment_key_secret,
            self.payment_webhook_secret,
            self.public_url,
            self.recharge_link_secret,
        )
        if self.payment_url is not None and None in needed:
            raise ValueError(
                "payment_url: expected payment_key_id, payment_key_secret, payment_webhook_secret, public_url and"
                " recharge_link_secret beside it"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.api_tls_cert is None) != (self.api_tls_key is None):
            raise ValueError("api_tls_cert: expected api_tls_key beside it, and neither without the other")
        if self.api_tls_client_ca is not None and self.api_tls_cert is None:
            raise ValueError("api_tls_client_ca: expected api_tls_cert and api_tls_key beside it")
        return self

    @model_validator(mode="after")
    def _one_master_key(self) -> Self:
        if self.master_key is not None and self.master_key_file is not None:
            raise ValueError("master_key: expected it or master_key_file, got both")
        return self

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.vend_min_minor > self.vend_max_minor:
            raise ValueError("vend_min_minor: expected at most vend_max_minor")
        if self.mqtt_url is not None and self.nats_url is None:
            raise ValueError("mqtt_url: expected nats_url beside it, both belong to one broker")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, the TOML file if one is named."""
        config = os.environ.get(CONFIG_VARIABLE)
        if not config:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config)


def load_settings() -> Settings:
    """Read the settings of this process.

    Raises: SettingsError, one line, on an unknown variable, an unreadable file or a value out of bounds.
    """
    _refuse_unknown_variables()
    _refuse_missing_file()
    try:
        return Settings()
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{CONFIG_VARIABLE}: expected TOML, got {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{CONFIG_VARIABLE}: expected a readable file: {error}") from None
    except ValidationError as error:
        raise SettingsError("; ".join(_lines(error))) from None


def _refuse_unknown_variables() -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE}
    unknown = sorted(name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name not in known)
    if unknown:
        raise SettingsError(f"unknown variable {', '.join(unknown)}: expected one of {', '.join(sorted(known))}")


def _refuse_missing_file() -> None:
    config = os.environ.get(CONFIG_VARIABLE)
    if config and not Path(config).is_file():
        raise SettingsError(f"{CONFIG_VARIABLE}: expected a TOML file, got {config}, which is none")


def _lines(error: ValidationError) -> list[str]:
    """Name each fault by its setting; the offending value stays out, it may hold a password."""
    faults = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        text = fault["msg"].removeprefix("Value error, ")
        name = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            text = "unknown setting"
        faults.append(f"{name}: {text}" if name else text)
    return faults


def _address(url: str | None, *, schemes: tuple[str, ...]) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"expected an address beginning with {schemes[0]}://")
    return url
