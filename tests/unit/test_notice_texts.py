"""Texts of notices: every kind in every language on every channel, and what a document of texts is refused for."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import StrEnum
from importlib import resources
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar, to_ms
from billing.notices import (
    FACTS,
    BalanceAnswer,
    Channel,
    CouponReason,
    CouponRefused,
    Cut,
    Exhausted,
    Facts,
    Forecast,
    HelpAnswer,
    Language,
    Limited,
    Low,
    NoticeError,
    NoticeKind,
    NoToken,
    Otp,
    Outage,
    PaymentRefunded,
    Recharged,
    Restored,
    RestoredPower,
    Started,
    StatementReady,
    Stopped,
    Tamper,
    TamperEvent,
    TokenResend,
    UseAnswer,
    WhichAccount,
    render,
)
from billing.notices.facts import fact_types
from billing.notices.formats import format_kw, format_rupees, group_indian
from billing.notices.render import fact_words, render_written
from billing.notices.templates import parse_phrases, phrases_of, placeholder_of
from billing.supply import Supply

CALENDAR = LocalCalendar(ZoneInfo("Asia/Kolkata"))
ACCOUNT = "100200300400"
AT_MS = to_ms(datetime(2026, 11, 22, 12, 34, 56, tzinfo=UTC))
LATER_MS = to_ms(datetime(2026, 12, 31, 18, 29, tzinfo=UTC))
# Just below a crore of rupees, more than any household moves.
MOST_MINOR = 999_999_999
TOKEN = "1234 5678 9012 3456 7890"

# Of each kind facts that are all given and as long as they can be in practice.
GREATEST: dict[NoticeKind, Facts] = {
    facts.kind: facts
    for facts in (
        Low(balance_minor=-MOST_MINOR, threshold_minor=MOST_MINOR),
        Exhausted(balance_minor=-MOST_MINOR, restores_minor=MOST_MINOR, protected_until_ms=LATER_MS),
        Cut(balance_minor=-MOST_MINOR, restores_minor=MOST_MINOR, cut_at_ms=LATER_MS),
        Limited(balance_minor=-MOST_MINOR, restores_minor=MOST_MINOR, limit_w=12_345),
        Restored(balance_minor=MOST_MINOR),
        Recharged(
            amount_minor=MOST_MINOR,
            balance_minor=-MOST_MINOR,
            arrears_paid_minor=MOST_MINOR,
            token=TOKEN,
            restores_minor=MOST_MINOR,
        ),
        Forecast(balance_minor=MOST_MINOR, days_left=365, ends_on=date(2027, 9, 30)),
        StatementReady(
            first=date(2026, 9, 1),
            last=date(2026, 9, 30),
            energy_wh=123_456_789,
            charge_minor=MOST_MINOR,
            closing_minor=-MOST_MINOR,
        ),
        Tamper(event=TamperEvent.NEUTRAL_DISTURBED, at_ms=AT_MS),
        Outage(since_ms=AT_MS, expected_ms=LATER_MS),
        RestoredPower(since_ms=AT_MS, until_ms=LATER_MS),
        Otp(code="042817", expires_ms=LATER_MS),
        BalanceAnswer(
            balance_minor=-MOST_MINOR, at_ms=AT_MS, supply=Supply.OFF, days_left=365, restores_minor=MOST_MINOR
        ),
        UseAnswer(
            day=date(2026, 9, 30),
            day_energy_wh=1_234_567,
            day_charge_minor=MOST_MINOR,
            month_energy_wh=12_345_678,
            month_charge_minor=MOST_MINOR,
        ),
        TokenResend(token=TOKEN, amount_minor=MOST_MINOR, at_ms=AT_MS),
        NoToken(),
        WhichAccount(command="बैलेंस"),
        HelpAnswer(),
        Stopped(),
        Started(),
        CouponRefused(reason=CouponReason.COUPON_LAPSED),
        PaymentRefunded(
            amount_minor=MOST_MINOR, order="P0123456789abcdef0123456789abcdef", taken_back_minor=MOST_MINOR
        ),
    )
}
EVERY = [(kind, language, channel) for kind in NoticeKind for language in Language for channel in Channel]


def words_of(facts: Facts, language: Language, channel: Channel) -> str:
    """Return the body of a notice."""
    return render(facts, language=language, channel=channel, account=ACCOUNT, calendar=CALENDAR).body


def test_greatest_facts_cover_every_kind_and_fact() -> None:
    """A kind added later is tested like the others, with every fact given."""
    assert set(GREATEST) == set(NoticeKind) == set(FACTS)
    assert all(getattr(facts, name) is not None for facts in GREATEST.values() for name in fact_types(type(facts)))


@pytest.mark.parametrize(("kind", "language", "channel"), EVERY)
def test_notice_tells_every_fact_in_every_language_and_channel(
    kind: NoticeKind, language: Language, channel: Channel
) -> None:
    """What is stored about a cause is told to its reader, with the account, and no brace is left."""
    facts = GREATEST[kind]
    rendered = render(facts, language=language, channel=channel, account=ACCOUNT, calendar=CALENDAR)
    for name, word in fact_words(facts, phrases_of(language), channel, CALENDAR).items():
        assert word in rendered.body, name
    assert rendered.subject
    assert channel is Channel.APP or ACCOUNT in rendered.body
    assert not any(mark in rendered.subject + rendered.body for mark in "{}")
    assert "  " not in rendered.body


@pytest.mark.parametrize("kind", NoticeKind)
@pytest.mark.parametrize("language", Language)
def test_sms_keeps_to_the_rule_on_segments(kind: NoticeKind, language: Language) -> None:
    """With the greatest facts a text takes two segments in the default alphabet, three in another script."""
    rendered = render(GREATEST[kind], language=language, channel=Channel.SMS, account=ACCOUNT, calendar=CALENDAR)
    assert rendered.length is not None
    assert rendered.length.fits, (rendered.length, rendered.body)
    assert rendered.length.ucs2 == (language is not Language.ENGLISH or kind is NoticeKind.WHICH_ACCOUNT)


@pytest.mark.parametrize("language", Language)
def test_fact_that_is_not_given_is_not_told(language: Language) -> None:
    """A sentence about a fact stands only where the fact is; where its absence matters, another one does."""
    plain = Recharged(amount_minor=50_000, balance_minor=60_000)
    body = words_of(plain, language, Channel.SMS)
    assert TOKEN not in body
    assert body.count("500.00") == 1
    protected = words_of(GREATEST[NoticeKind.EXHAUSTED], language, Channel.SMS)
    cut_now = words_of(Exhausted(balance_minor=-1, restores_minor=2), language, Channel.SMS)
    assert "31-12-2026 23:59" in protected
    assert phrases_of(language).templates[NoticeKind.EXHAUSTED].missing["protected_until"] in cut_now


def test_texts_are_as_a_consumer_reads_them() -> None:
    """Amounts grouped by lakh, local times, units; rupee sign where it costs nothing."""
    facts = Exhausted(balance_minor=-12_345_678, restores_minor=12_345_679, protected_until_ms=AT_MS)
    assert words_of(facts, Language.ENGLISH, Channel.SMS) == (
        "Account 100200300400: your credit is used up, balance -Rs 1,23,456.78. Recharge Rs 1,23,456.79 or more."
        " Supply stays on until 22-11-2026 18:04."
    )
    assert words_of(facts, Language.HINDI, Channel.APP) == (
        "आपका प्रीपेड क्रेडिट समाप्त हो गया है; बैलेंस -₹1,23,456.78 है। कृपया ₹1,23,456.79 या अधिक का रिचार्ज करें।"
        " 22 नवंबर 2026, 18:04 तक बिजली चालू रहेगी।"
    )
    use = words_of(GREATEST[NoticeKind.USE_ANSWER], Language.PUNJABI, Channel.SMS)
    assert "1234.567 ਯੂਨਿਟ" in use


@pytest.mark.parametrize(
    ("language", "state"), [(Language.ENGLISH, "limited"), (Language.HINDI, "सीमित"), (Language.PUNJABI, "ਸੀਮਤ")]
)
def test_balance_of_a_limited_supply_names_the_state_and_the_recharge(language: Language, state: str) -> None:
    """Supply that is limited is neither on nor off, and what is asked for is not supply, which there is."""
    facts = BalanceAnswer(balance_minor=-500, at_ms=AT_MS, supply=Supply.LIMITED, restores_minor=501)
    told = words_of(facts, language, Channel.SMS)
    assert state in told
    assert "5.01" in told


def test_same_facts_make_the_same_message() -> None:
    """What is sent twice is the same message."""
    for kind, language, channel in EVERY:
        first, second = (
            render(GREATEST[kind], language=language, channel=channel, account=ACCOUNT, calendar=CALENDAR)
            for _ in range(2)
        )
        assert first == second


def test_sentence_of_an_earlier_version_is_shown_as_it_was_written() -> None:
    """A notice that was stored as a sentence keeps it."""
    shown = render_written("Account 7: low.", language=Language.HINDI, channel=Channel.EMAIL, account="7")
    assert shown.body.startswith("Account 7: low.\n\n")
    sms = render_written("Account 7: low.", language=Language.ENGLISH, channel=Channel.SMS, account="7")
    assert (sms.body, sms.length is not None) == ("Account 7: low.", True)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1,000"),
        (99_999, "99,999"),
        (100_000, "1,00,000"),
        (123_456_789, "12,34,56,789"),
    ],
)
def test_whole_numbers_are_grouped_by_thousand_lakh_and_crore(number: int, shown: str) -> None:
    """The first comma stands after three digits, the others after two."""
    assert group_indian(number) == shown


def test_amounts_and_loads_are_printed_from_integers() -> None:
    """The sign comes first, two decimals always; a load without idle decimals."""
    assert format_rupees(-12_000, sign="Rs ") == "-Rs 120.00"
    assert format_rupees(5, sign="₹") == "₹0.05"
    assert [format_kw(watts) for watts in (500, 3_000, 1_250)] == ["0.5", "3", "1.25"]


def english() -> str:
    """Return the document of English texts."""
    return resources.files("billing.notices").joinpath("templates", "en.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("Low balance: {balance}", "Low {name}", "low, subject: expected account, balance, threshold, got name"),
        ("is at or below the {threshold} you", "is low, you", "low, sms: expected every fact, got none of threshold"),
        ("Account {account}: supply is being restored", "Supply is back", "restored, sms: .*none of account"),
        ("[stopped]", "[halted]", "expected every kind, got none of stopped"),
        ('token = " Token: {token}."', "", "recharged: expected a sentence for each of"),
        ('" Token: {token}."', '" Token."', "given token: expected every fact, got none of token"),
        ('" Supply is being cut off now.', '" Cut {restores} now.', "missing protected_until: expected"),
        ('off = "off"', "", "expected a word for off"),
        ('"January", ', "", "expected 12 months"),
        ("{code} is your code to confirm this address", "{code is your code", "otp, text: expected a text with names"),
        ('kwh = "{} kWh"', "", "expected 'kwh'"),
    ],
)
def test_document_of_texts_that_breaks_a_rule_is_refused_by_name(old: str, new: str, told: str) -> None:
    """A template cannot name a fact that is not there, nor leave one out; the refusal says which."""
    assert old in english()
    with pytest.raises(NoticeError, match=told):
        parse_phrases(Language.ENGLISH, english().replace(old, new, 1))


def test_facts_are_named_without_their_unit() -> None:
    """A template reads as a sentence: `balance`, not `balance_minor`; no two facts of a kind share a name."""
    for facts in FACTS.values():
        names = [placeholder_of(name) for name in fact_types(facts)]
        assert len(names) == len(set(names))
    assert [placeholder_of(name) for name in ("at_ms", "limit_w", "day_energy_wh", "days_left")] == [
        "at", "limit", "day_energy", "days_left",
    ]  # fmt: skip


def test_every_value_of_a_closed_set_has_a_word() -> None:
    """No reader meets a name out of the code."""
    for language in Language:
        for event in TamperEvent:
            assert phrases_of(language).words[event] in words_of(
                Tamper(event=event, at_ms=AT_MS), language, Channel.SMS
            )
        values: tuple[type[StrEnum], ...] = (Supply, CouponReason)
        assert all(value in phrases_of(language).words for each in values for value in each)
