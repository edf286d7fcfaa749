-- The charge core: dated terms, the whole list of business events, sweeps that post in batches.

-- What an account is charged by, from a local day on. Rows are added, never changed; a row that a correction put another
-- in the place of names it. A row that begins before an account's last closed day is only written by a correction.
create table assignments (
    id bigint generated always as identity primary key,
    account_id bigint not null references accounts,
    from_day date not null,
    tariff_id text not null references tariffs,
    category text not null,
    load_w integer not null check (load_w between 1 and 100000000),
    area_type text not null default 'urban' check (area_type ~ '^[a-z_]{1,32}$'),
    -- False on a consumer's own meter (R-14).
    meter_rent boolean not null default true,
    replaced_by bigint references assignments,
    added_at timestamptz not null default clock_timestamp()
);
create unique index one_assignment_a_day on assignments (account_id, from_day) where replaced_by is null;

insert into assignments (account_id, from_day, tariff_id, category, load_w, meter_rent)
select a.id, a.opened_on, a.tariff_id, a.category, a.sanctioned_load_w, m.custody = 'licensee'
from accounts a
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
join meters m on m.id = i.meter_id
order by a.id;

-- The posted state of an account (billing.running.Checkpoint) is that of the bill part of `through`: a month, or the part
-- of a month in which nothing changes that the bill depends on. The lines charged follow from it; only their sum is
-- kept. Energy by time-of-day zone is null where the tariff has no zones.
alter table accounts add column charged_minor bigint not null default 0;
update accounts set charged_minor = (select coalesce(sum(value::bigint), 0) from jsonb_each_text(charged));
alter table accounts
    drop column charged, drop column tariff_id, drop column sanctioned_load_w, drop column category;
alter table accounts rename column period_start_wh to part_start_wh;
alter table accounts
    add column before_wh bigint not null default 0,
    add column demand_w integer not null default 0,
    add column anchor_zones bigint[],
    add column closed_zones bigint[],
    -- Long absence with a deposit: supply is not cut before this local day (R-23).
    add column absent_until date;

-- 264 bytes an account (10 M accounts: 2.6 GB), with room for the sweep's heap-only updates.
alter table accounts set (fillfactor = 80);

-- Journals: `period` is the first day of the bill part that a usage journal belongs to. A usage journal names its bill
-- lines. A sweep posts the counter-legs of many usage journals as one `usage_batch` journal, which they name.
alter table journals disable trigger append_only;
alter table journals drop constraint journals_kind_check, drop constraint journals_check, drop constraint journals_check1;
alter table journals alter column account_id drop not null;
alter table journals
    add column lines jsonb,
    add column demand_w integer,
    -- Energy that a correction has added to what the meter said.
    add column assessed_wh bigint not null default 0,
    add column batch_id bigint,
    -- The journal that this one reverses or corrects.
    add column about_id bigint references journals,
    add column correction_id bigint;
-- Journals and legs are only appended, by db.posting and db.sweeps, under the account's lock; a sweep would look four keys
-- up for each closed day. The auditor finds a leg that refers to no journal.
alter table journals drop constraint journals_account_id_fkey;
alter table legs drop constraint legs_journal_id_fkey;
update journals j set lines = (
    select coalesce(jsonb_object_agg(g.line, g.amount_minor), '{}') from legs g
    where g.journal_id = j.id and g.ledger = 'revenue')
where j.kind in ('day', 'late_usage');
update journals j set period = a.opened_on from accounts a
where a.id = j.account_id and j.period < a.opened_on;
alter table journals enable trigger append_only;
alter table journals add check (kind in (
    'opening', 'vend', 'refund', 'reversal', 'adjustment', 'day', 'late_usage', 'overhaul', 'usage_batch', 'subsidy',
    'arrears_opening', 'arrears_recovery', 'interest', 'security_opening', 'security', 'absence_deposit', 'write_off'));
alter table journals add check ((kind = 'usage_batch') = (account_id is null));
alter table journals add check ((kind = 'day') = (local_day is not null));
alter table journals add check ((kind in ('day', 'late_usage', 'overhaul')) = (period is not null));
alter table journals add check ((kind in ('day', 'late_usage', 'overhaul')) = (lines is not null));

-- What the look at an account has to know of a tariff without reading its document: the minutes of the day at which zones
-- begin and the days on which something changes ({"minutes": [], "days": []}, null for neither), and whether demand counts.
-- The one built-in document gets its new form with the next `migrate`.
alter table tariffs add column edges jsonb, add column asks_demand boolean not null default false;
update tariffs set document = '', sha256 = '' where id = 'punjab-ds-2026-27';
