"""Settings: environment, TOML file, defaults, and what stops a start."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from prepaid.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("PREPAID_"):
            monkeypatch.delenv(name)


def test_no_variable_gives_the_documented_defaults() -> None:
    """A start without any setting runs on embedded parts in ./var."""
    settings = load_settings()
    assert (settings.database_url, settings.nats_url, settings.mqtt_url) == (None, None, None)
    assert settings.data_dir == Path("var")
    assert settings.time_zone == "Asia/Kolkata"
    assert (settings.api_host, settings.api_port) == ("127.0.0.1", 8080)
    assert (settings.lease_s, settings.ack_wait_s) == (10, 10)
    assert settings.stale_reading_s is None
    assert settings.close_day_delay_s == 7_200
    assert settings.cut_offs_per_minute_max == 600


def test_every_field_says_what_it_is() -> None:
    """A setting nobody explains is a setting nobody can use."""
    assert all(field.description for field in Settings.model_fields.values())


def test_environment_wins_over_the_file_and_the_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is nearest to the process counts."""
    config = tmp_path / "prepaid.toml"
    config.write_text('lease_s = 20\nack_wait_s = 30\ntime_zone = "Europe/Paris"\n')
    monkeypatch.setenv("PREPAID_CONFIG", str(config))
    monkeypatch.setenv("PREPAID_LEASE_S", "40")
    settings = load_settings()
    assert (settings.lease_s, settings.ack_wait_s, settings.api_port) == (40, 30, 8080)
    assert settings.zone.key == "Europe/Paris"


@pytest.mark.parametrize("name", ["PREPAID_LEASE", "PREPAID_TIMEZONE", "prepaid_lease_s"])
def test_unknown_variable_stops_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt limit must not silently be its default."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=name) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("PREPAID_TIME_ZONE", "Mars/Olympus", "time_zone: expected an IANA time zone"),
        ("PREPAID_TIME_ZONE", "../etc/passwd", "time_zone: expected an IANA time zone"),
        ("PREPAID_API_PORT", "70000", "api_port"),
        ("PREPAID_LEASE_S", "soon", "lease_s"),
        ("PREPAID_CUT_OFFS_PER_MINUTE_MAX", "0", "cut_offs_per_minute_max"),
        ("PREPAID_LOG_LEVEL", "loud", "log_level"),
        ("PREPAID_VEND_MIN_MINOR", "9000000", "vend_min_minor: expected at most vend_max_minor"),
        ("PREPAID_MQTT_URL", "mqtt://broker:1883", "mqtt_url: expected nats_url beside it"),
        ("PREPAID_NATS_URL", "nats://one:4222,http://two", "nats_url: expected an address beginning with nats://"),
        ("PREPAID_QUIET_HOURS", "9pm-7am", "quiet_hours: quiet hours: expected none or two different times"),
        ("PREPAID_NOTICES_PER_DAY_MAX", "0", "notices_per_day_max"),
        ("PREPAID_SMTP_HOST", "mail.b.in", "smtp_host: expected smtp_from beside it"),
        ("PREPAID_SMTP_FROM", "nobody", "smtp_from: e-mail: expected an address"),
        ("PREPAID_SMTP_USER", "pspcl", "smtp_user: expected smtp_password beside it"),
        ("PREPAID_SMS_URL", "ftp://gateway", "sms_url: expected an address beginning with https://"),
        ("PREPAID_SMS_URL", "https://gateway.in/sms", "sms_url: expected sms_secret beside it"),
        ("PREPAID_API_PLAIN_KEYS", "sometimes", "api_plain_keys"),
        ("PREPAID_API_TLS_CERT", "api.pem", "api_tls_cert: expected api_tls_key beside it"),
        ("PREPAID_API_TLS_CLIENT_CA", "ca.pem", "api_tls_client_ca: expected api_tls_cert and api_tls_key"),
        ("PREPAID_SMS_SECRET", "short", "sms_secret: expected 32 characters or more"),
    ],
)
def test_value_out_of_bounds_stops_the_start_in_one_line(
    name: str, value: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator reads which setting is wrong and what it should be."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=shown) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_password_in_an_address_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an error nor a log of the settings gives a password away."""
    monkeypatch.setenv("PREPAID_DATABASE_URL", "mysql://user:hunter2@db/x")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("PREPAID_DATABASE_URL", "postgresql://user:hunter2@db/x")
    assert "hunter2" not in repr(load_settings())


def test_channel_is_set_up_whole_and_its_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password goes over no open line; neither an error nor a log of the settings gives a secret away."""
    secret = "s" * 32
    for name, value in {
        "SMTP_HOST": "mail.b.in", "SMTP_FROM": "A@B.in", "SMTP_USER": "pspcl", "SMTP_PASSWORD": "hunter2",
        "SMS_URL": f"https://gateway.in/sms?key={secret}", "SMS_SECRET": secret, "QUIET_HOURS": "none",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"PREPAID_{name}", value)
    settings = load_settings()
    assert (settings.smtp_from, settings.smtp_port, settings.smtp_security) == ("A@b.in", 587, "starttls")
    assert "hunter2" not in repr(settings)
    assert secret not in repr(settings)
    monkeypatch.setenv("PREPAID_SMTP_SECURITY", "none")
    with pytest.raises(SettingsError, match="smtp_security: expected starttls or tls") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("leese_s = 1\n", "leese_s: unknown setting"),
        ("lease_s = \n", "PREPAID_CONFIG: expected TOML"),
        ('[lease_s]\nvalue = "10"\n', "lease_s"),
    ],
)
def test_bad_file_stops_the_start(text: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is held to the same rules as the environment."""
    config = tmp_path / "prepaid.toml"
    config.write_text(text)
    monkeypatch.setenv("PREPAID_CONFIG", str(config))
    with pytest.raises(SettingsError, match=shown) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_named_file_that_does_not_exist_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file somebody named is meant to be read."""
    monkeypatch.setenv("PREPAID_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match="PREPAID_CONFIG"):
        load_settings()


def test_settings_are_frozen() -> None:
    """One object per process, the same from start to stop."""
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.lease_s = 1
