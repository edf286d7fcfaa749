"""Each kind of damage to a true database is named by the audit checks that it breaks, and by no others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prepaid.embedded import EmbeddedPostgres
from tests.databases import scratch_database
from tests.integration.test_audit import audited, broken_checks, corrupt, true_template

pytestmark = pytest.mark.db

UNCHANGED = "alter table {} disable trigger append_only"
FREE_RECORDS = "alter table meter_records disable trigger keep_record"
FREE_VENDS = "alter table vends disable trigger keep_vend"
FREE_LEGS, FREE_JOURNALS, FREE_TOKENS = (UNCHANGED.format(table) for table in ("legs", "journals", "tokens"))
ACCOUNT = "(select id from accounts where number = '{}')"
METER = "(select id from meters where serial = 'M-{}')"
STEADY, STEADY_METER = ACCOUNT.format("STEADY"), METER.format("STEADY")
LAST_DAY = f"(select max(id) from journals where kind = 'day' and account_id = {STEADY})"
APRIL_DAY = f"(select id from journals where account_id = {STEADY} and local_day = '2026-04-10')"
LAST = "(select max(id) from journals)"
# A day that a sweep has posted in a batch, and the batch.
BATCHED = f"(select id from journals where account_id = {ACCOUNT.format('EXACT1')} and local_day = '2026-04-10')"
BATCH = f"(select batch_id from journals where id = {BATCHED})"
MORE_ENERGY = """
update journals set lines = jsonb_set(lines, '{{energy_1}}', to_jsonb((lines ->> 'energy_1')::bigint + {minor}))
where id = {journal}"""
SOLD = "(select id from vends where status = 200 order by id limit 1)"
# An order under the next epoch of its meter, as a post writes it.
ORDER = """
with epoch as (update meter_state set order_epoch = order_epoch + 1 where meter_id = {meter} returning order_epoch)
insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, balance_minor, cause, state)
select {meter}, {account}, 0, 'supply', order_epoch, 'off', 0, 'test', '{state}' from epoch"""

# What is done to the database, the checks that must report it and no others, and what the first report says.
CORRUPTIONS = {
    "leg_changed": (
        [FREE_LEGS, f"update legs set amount_minor = amount_minor + 1 where journal_id = {LAST_DAY} and n = 2"],
        {"I1"},
        "of account STEADY: 5 legs that sum to 1 minor",
    ),
    "prepaid_leg_changed": (
        [FREE_LEGS, f"update legs set amount_minor = amount_minor + 1 where journal_id = {LAST_DAY} and n = 1"],
        {"I1", "I2"},
        "of account STEADY: 5 legs that sum to 1 minor",
    ),
    "legs_changed_without_lines": (
        [
            FREE_LEGS,
            f"update legs set amount_minor = amount_minor - 100 where journal_id = {APRIL_DAY} and ledger = 'prepaid'",
            f"update legs set amount_minor = amount_minor + 100 where journal_id = {APRIL_DAY} and line = 'energy_1'",
            f"update accounts set posted_minor = posted_minor - 100 where id = {STEADY}",
        ],
        {"I1"},
        "of account STEADY: prepaid leg of -",
    ),
    "leg_moved_to_another_line": (
        [
            FREE_LEGS,
            f"update legs set amount_minor = amount_minor + 100 where journal_id = {APRIL_DAY} and line = 'energy_1'",
            f"update legs set amount_minor = amount_minor - 100 where journal_id = {APRIL_DAY} and line = 'duty'",
        ],
        {"I1"},
        "of account STEADY: legs by line {",
    ),
    "levy_booked_as_revenue": (
        [FREE_LEGS, f"update legs set ledger = 'revenue' where journal_id = {APRIL_DAY} and line = 'duty'"],
        {"I1"},
        "of account STEADY: books duty on revenue",
    ),
    "revenue_booked_as_levy": (
        [FREE_LEGS, f"update legs set ledger = 'levies_payable' where journal_id = {APRIL_DAY} and line = 'fixed'"],
        {"I1"},
        "of account STEADY: books fixed on levies_payable",
    ),
    "batched_day_changed": (
        [
            FREE_LEGS,
            FREE_JOURNALS,
            MORE_ENERGY.format(minor=5, journal=BATCHED),
            f"update legs set amount_minor = amount_minor - 5 where journal_id = {BATCHED} and ledger = 'prepaid'",
            f"update legs set amount_minor = amount_minor + 5 where journal_id = {BATCHED} and ledger <> 'prepaid'",
            f"update accounts set posted_minor = posted_minor - 5 where id = {ACCOUNT.format('EXACT1')}",
        ],
        {"I1", "I5"},
        ": its members' lines less its legs: energy_1 5 minor",
    ),
    "batched_legs_without_lines": (
        [
            FREE_LEGS,
            f"update legs set amount_minor = amount_minor - 5 where journal_id = {BATCHED} and ledger = 'prepaid'",
            f"update legs set amount_minor = amount_minor + 5 where journal_id = {BATCHED} and ledger <> 'prepaid'",
            f"update accounts set posted_minor = posted_minor - 5 where id = {ACCOUNT.format('EXACT1')}",
        ],
        {"I1"},
        "of account EXACT1: prepaid leg of ",
    ),
    "batch_changed_by_line": (
        [
            FREE_LEGS,
            f"update legs set amount_minor = amount_minor + 7 where journal_id = {BATCH} and line = 'energy_1'",
            f"update legs set amount_minor = amount_minor - 7 where journal_id = {BATCH} and line = 'fixed'",
        ],
        {"I1"},
        ": its members' lines less its legs: energy_1 -7 minor, fixed 7 minor",
    ),
    "batch_lost_a_member": (
        [FREE_JOURNALS, f"update journals set batch_id = null where id = {BATCHED}"],
        {"I1"},
        "of account EXACT1: legs by line {}, its lines are {",
    ),
    "member_of_another_batch": (
        [FREE_JOURNALS, f"update journals set batch_id = (select max(batch_id) from journals) where id = {BATCHED}"],
        {"I1"},
        ": its members' lines less its legs: ",
    ),
    "batched_day_with_line_legs": (
        [FREE_LEGS, f"update legs set line = 'energy_1' where journal_id = {BATCHED} and ledger = 'usage_clearing'"],
        {"I1"},
        "of account EXACT1: books energy_1 on usage_clearing",
    ),
    "legs_deleted": (
        [
            FREE_LEGS,
            f"delete from legs using journals j where j.id = journal_id and kind = 'opening' and account_id = {STEADY}",
        ],
        {"I1", "I2"},
        "of account STEADY: no legs",
    ),
    "leg_without_journal": (
        [
            FREE_LEGS,
            "alter table legs drop constraint if exists legs_journal_id_fkey",
            "insert into legs values (1000000, 1, 'prepaid', '', 5)",
        ],
        {"I1"},
        "journal 1000000: 1 legs that sum to 5 minor",
    ),
    "posted_balance_changed": (
        [f"update accounts set posted_minor = posted_minor + 100 where id = {STEADY}"],
        {"I2"},
        "account STEADY: posted minor: checkpoint",
    ),
    "charged_changed": (
        [f"update accounts set charged_minor = charged_minor + 1 where id = {STEADY}"],
        {"I2", "I5"},
        "account STEADY: charged minor: checkpoint",
    ),
    "closed_energy_changed": (
        [f"update accounts set closed_wh = closed_wh + 500 where id = {STEADY}"],
        {"I2", "I5"},
        "account STEADY: closed Wh: checkpoint",
    ),
    "period_start_changed": (
        [f"update accounts set part_start_wh = part_start_wh + 7 where id = {STEADY}"],
        {"I2", "I4-charged", "I5"},
        "account STEADY: part start Wh: checkpoint",
    ),
    "installation_deleted": (
        [f"delete from installations where meter_id = {METER.format('POSTPAID')}"],
        {"I2", "I3"},
        "account POSTPAID: no billing meter",
    ),
    "day_moved": (
        [FREE_JOURNALS, f"update journals set local_day = local_day - 100 where id = {APRIL_DAY}"],
        {"days", "I13"},
        "account STEADY: expected 40 days from 2026-04-01 to before 2026-05-11, got 40 from 2025-12-31",
    ),
    "day_deleted": (
        [
            FREE_LEGS,
            FREE_JOURNALS,
            f"delete from legs where journal_id = {APRIL_DAY}",
            f"delete from journals where id = {APRIL_DAY}",
        ],
        {"days", "I2", "I4-charged", "I5"},
        "account STEADY: posted minor",
    ),
    "reading_before_installation": (
        [f"insert into readings (meter_id, read_at, import_wh) values ({STEADY_METER}, '2026-03-31 18:29Z', 0)"],
        {"I3", "I3-rows"},
        "meter M-STEADY (id ",
    ),
    "reading_of_no_meter": (
        ["insert into readings (meter_id, read_at, import_wh) values (2000000000, '2026-04-10Z', 0)"],
        {"I3", "I3-rows"},
        "meter ? (id 2000000000): 1 from 2026-04-10",
    ),
    "reading_deleted": (
        [f"delete from readings where meter_id = {STEADY_METER} and read_at = '2026-04-10 19:30Z'"],
        {"I3-rows"},
        "the table holds",
    ),
    "batch_changed": (
        ["update batches set duplicate = duplicate + 3 where id = (select min(id) from batches)"],
        {"I3-batches"},
        "of shard None: received 40, stored 40, duplicate 3",
    ),
    "register_falls": (
        [f"update readings set import_wh = 0 where meter_id = {STEADY_METER} and read_at = '2026-04-10 19:30Z'"],
        {"I4"},
        "meter M-STEADY (id ",
    ),
    "first_register_below_installation": (
        [f"update register_segments set register_wh = register_wh + 5000 where meter_id = {STEADY_METER}"],
        {"I4", "I4-charged", "I5"},
        "falls 1 times, first at 2026-03-31T19:30",
    ),
    "segment_lost": (
        [f"delete from register_segments where meter_id = {METER.format('ROLLED')} and reason = 'rollover'"],
        {"I4", "I4-charged", "I5"},
        "meter M-ROLLED (id ",
    ),
    "edge_reading_changed": (
        [
            f"""update readings set import_wh = import_wh - 90
                where meter_id = {STEADY_METER} and read_at = '2026-04-30 19:30Z'"""
        ],
        {"I5"},
        "account STEADY, from 2026-04-01: journals are short of",
    ),
    "closed_day_overcharged": (
        [
            FREE_LEGS,
            FREE_JOURNALS,
            MORE_ENERGY.format(minor=100, journal=APRIL_DAY),
            f"update legs set amount_minor = amount_minor - 100 where journal_id = {APRIL_DAY} and ledger = 'prepaid'",
            f"update legs set amount_minor = amount_minor + 100 where journal_id = {APRIL_DAY} and line = 'energy_1'",
            f"update accounts set posted_minor = posted_minor - 100 where id = {STEADY}",
        ],
        {"I5"},
        "account STEADY, from 2026-04-01: journals are short of 0 Wh, energy_1 -100 minor",
    ),
    "day_of_no_bill_part": (
        [FREE_JOURNALS, f"update journals set period = '2026-04-10' where id = {APRIL_DAY}"],
        {"I5"},
        "account STEADY, from 2026-04-10: journals have booked this and no bill part begins there",
    ),
    "assessed_without_correction": (
        [FREE_JOURNALS, f"update journals set assessed_wh = 1000 where id = {APRIL_DAY}"],
        {"I4-charged", "I5"},
        "account STEADY: 1 journals of assessed energy without a correction",
    ),
    "booked_before_the_journal_before": (
        [FREE_JOURNALS, f"update journals set booked_at = booked_at - interval '1 minute' where id = {LAST_DAY}"],
        {"I13"},
        "account STEADY: 1 journals booked before the journal before them, the first out of order is",
    ),
    "clock_set_back": (
        [FREE_JOURNALS, f"update journals set booked_at = booked_at - interval '1 hour' where id = {LAST}"],
        {"I13", "I13-clock"},
        "1 journals booked before the journal before them",
    ),
    "booked_ahead_of_the_clock": (
        [FREE_JOURNALS, f"update journals set booked_at = booked_at + interval '1 hour' where id = {LAST}"],
        {"I13-clock"},
        "ahead of the database's clock",
    ),
    "day_of_the_future": (
        [FREE_JOURNALS, "update journals set booked_at = booked_at - interval '1 year'"],
        {"I13"},
        "account STEADY: 40 journals of a day or bill part that began after they were booked",
    ),
    "days_in_another_order": (
        [
            FREE_JOURNALS,
            f"update journals set local_day = '2030-01-01' where id = {APRIL_DAY}",
            f"update journals set local_day = '2026-04-10' where account_id = {STEADY} and local_day = '2026-04-09'",
            f"update journals set local_day = '2026-04-09' where account_id = {STEADY} and local_day = '2030-01-01'",
        ],
        {"I13"},
        "account STEADY: 1 journals of a day that is not after those closed before",
    ),
    "due_without_journal": (
        [
            f"""insert into account_dues (account_id, ledger, opened_on, total_minor, outstanding_minor, note)
                values ({STEADY}, 'arrears', '2026-04-01', 100, 100, 'test')"""
        ],
        {"dues"},
        "account STEADY: ledger arrears: journals sum to 0 minor, dues say -100",
    ),
    "reading_edited": (
        [
            f"""with correction as (
                    insert into corrections (kind, reason, scope, asked_by) values ('edit', 'test', '{{}}', 'test')
                    returning id)
                insert into reading_edits (meter_id, read_at, import_wh, correction_id)
                select {STEADY_METER}, '2026-04-30 19:30Z', 107910, id from correction"""
        ],
        {"I5"},
        "account STEADY, from 2026-04-01: journals are short of",
    ),
    "token_deleted": (
        [FREE_TOKENS, f"delete from tokens where vend_id = {SOLD}"],
        {"I6"},
        "(message V1, account CUT, status 200): 1 journals and 0 tokens",
    ),
    "vend_taken_back_without_a_reversal": (
        [f"update vends set state = 'reversed' where id = {SOLD}"],
        {"I6"},
        "reversed, and 0 reversals of its journal",
    ),
    "vend_of_other_money": (
        [FREE_VENDS, f"update vends set funding = 'subsidy', reason = 'x' where id = {SOLD}"],
        {"I6", "I7"},
        "funding subsidy, and its journal takes from vendor_clearing",
    ),
    "vend_moved_elsewhere_than_it_stands": (
        [
            f"""insert into vend_moves (vend_id, at, from_state, to_state, by)
                select {SOLD}, now(), 'released', 'confirmed', 'test'"""
        ],
        {"I6"},
        "its last move was to confirmed",
    ),
    "vend_amount_changed": (
        [FREE_VENDS, f"update vends set amount_minor = amount_minor + 1 where id = {SOLD}"],
        {"I6"},
        "(message V1, account CUT, status 200): amount 50001 minor, journal",
    ),
    "vend_of_another_account": (
        [FREE_VENDS, f"update vends set account_id = {STEADY} where id = {SOLD}"],
        {"I6", "I6-tokens"},
        "is no vend of its account",
    ),
    "vend_deleted": (
        [
            FREE_TOKENS,
            FREE_VENDS,
            f"delete from tokens where vend_id = {SOLD}",
            f"delete from vends where id = {SOLD}",
        ],
        {"I6", "I7"},
        "of account CUT: kind vend, and no vend names it",
    ),
    "refusal_with_token": (
        [
            f"""insert into tokens (vend_id, meter_id, record_id, engine, kind, era, tid, digits, subclass)
                select v.id, r.meter_id, r.id, 'sts', 'credit', 2014, 50, '99999999999999999999', 4
                from vends v cross join meter_records r where v.status = 422 and r.meter_id = {METER.format("CUT")}"""
        ],
        {"I6", "I6-tokens"},
        "(message V3, account CUT, status 422): 0 journals and 1 tokens",
    ),
    "message_id_twice": (
        [
            FREE_VENDS,
            "alter table vends drop constraint vends_vendor_id_message_id_key",
            "update vends set message_id = 'V1' where message_id = 'V2'",
        ],
        {"I6"},
        "its message id is used twice",
    ),
    "tid_twice": (
        [FREE_TOKENS, "alter table tokens drop constraint tokens_one_tid", "update tokens set tid = 101"],
        {"I6-tokens"},
        "of meter M-CUT, TID 101: another token of the meter has the same TID",
    ),
    "last_tid_lowered": (
        [f"update last_tids set last_tid = 101 where meter_id = {METER.format('CUT')}"],
        {"I6-tokens"},
        "of meter M-CUT, TID 102: the meter's last TID is 101",
    ),
    "tid_of_another_era": (
        [f"update last_tids set era = 1993 where meter_id = {METER.format('CUT')}"],
        {"I6-tokens"},
        "of meter M-CUT, TID 101: the meter's last TID is None",
    ),
    "record_version_lost": (
        [FREE_RECORDS, f"update meter_records set version = 3 where meter_id = {METER.format('CUT')}"],
        {"I6-records"},
        "meter M-CUT: 1 versions up to 3",
    ),
    "record_not_in_force": (
        [f"update meter_records set state = 'past', valid_to = valid_from where meter_id = {METER.format('CUT')}"],
        {"I6-records"},
        "meter M-CUT: no version in force",
    ),
    "record_pending_without_tokens": (
        [
            f"""insert into meter_records (meter_id, version, state, engine, ea, tct, dkga, sgc, key_type, krn,
                    tariff_index, ken, base_year, key_change_tokens, capabilities, written_by, reason)
                select meter_id, 2, 'pending', engine, ea, tct, dkga, sgc, key_type, krn + 1, tariff_index, ken,
                    base_year, key_change_tokens, capabilities, 'test', 'test'
                from meter_records where meter_id = {METER.format('CUT')}"""
        ],
        {"I6-records"},
        "meter M-CUT: version 2 is pending without key-change tokens",
    ),
    "desired_changed": (
        [f"update accounts set desired = 'off' where id = {STEADY}"],
        {"I8"},
        "account STEADY: desired off, balance",
    ),
    "relay_differs": (
        [f"update meter_state set relay = 'off' where meter_id = {STEADY_METER}"],
        {"I8"},
        "account STEADY: desired on, meter M-STEADY has off and no open order",
    ),
    "order_lost": (
        ["delete from supply_orders where relay = 'off' and state = 'pending'"],
        {"I8"},
        "account CUT: desired off, meter M-CUT has on and no open order",
    ),
    "order_of_the_other_relay": (
        ["update supply_orders set relay = 'on' where relay = 'off' and state = 'pending'"],
        {"I8"},
        "account CUT: desired off, meter M-CUT was ordered on",
    ),
    "two_open_orders": (
        [
            "drop index one_open_order",
            ORDER.format(meter=METER.format("CUT"), account=ACCOUNT.format("CUT"), state="sent"),
        ],
        {"I8-orders"},
        "meter M-CUT (id ",
    ),
    "epoch_lowered": (
        [f"update meter_state set order_epoch = 1 where meter_id = {METER.format('CUT')}"],
        {"I8-orders"},
        "the meter's last is 1",
    ),
    "epoch_fallen": (
        [
            "alter table supply_orders drop constraint supply_orders_meter_id_epoch_key",
            """update supply_orders set epoch = 1
               where id = (select max(id) from supply_orders where state = 'superseded')""",
        ],
        {"I8-orders"},
        "orders whose epoch does not rise",
    ),
    "postpaid_account_cut": (
        [ORDER.format(meter=METER.format("POSTPAID"), account=ACCOUNT.format("POSTPAID"), state="superseded")],
        {"I8-orders"},
        "1 cut-offs of a postpaid account",
    ),
    "alarm_lost": (
        ["delete from alarms where level = 'low' and arm = 1"],
        {"I9"},
        "account CUT: level low at arm 2, raised: expected 2 alarms, got 1, first wrong at arm 1",
    ),
    "alarm_twice": (
        [
            "alter table alarms drop constraint one_alarm",
            """insert into alarms (account_id, level, arm, level_minor, balance_minor)
               select account_id, level, arm, level_minor, balance_minor from alarms where level = 'low' and arm = 1""",
        ],
        {"I9"},
        "account CUT: level low at arm 2, raised: expected 2 alarms, got 3, first wrong at arm 1",
    ),
    "low_not_raised": (
        [
            f"update accounts set low_raised = false where id = {ACCOUNT.format('CUT')}",
            "delete from alarms where level = 'low' and arm = 2",
        ],
        {"I9"},
        "account CUT: balance",
    ),
    "exhausted_not_raised": (
        [
            f"update accounts set exhausted_raised = false where id = {ACCOUNT.format('CUT')}",
            "delete from alarms where level = 'exhausted' and arm = 2",
        ],
        {"I9"},
        "exhausted was not raised",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def template(postgres: EmbeddedPostgres, migrated: str) -> Iterator[str]:
    """A true database to be copied."""
    with true_template(postgres, migrated) as name:
        yield name


@pytest.fixture
def audited_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A copy of the true database."""
    with scratch_database(postgres, template=template) as name:
        yield postgres.url_of(name)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_is_reported_by_its_check(audited_url: str, name: str) -> None:
    """Each kind of damage is named by the checks it breaks and by no others."""
    statements, checks, example = CORRUPTIONS[name]
    corrupt(audited_url, statements)
    broken = broken_checks(audited(audited_url))
    assert broken.keys() == checks, broken
    assert any(example in text for text in next(iter(broken.values()))), broken
