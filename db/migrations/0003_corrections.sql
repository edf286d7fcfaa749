-- Corrections: what was booked from wrong terms, wrong readings or a wrong meter is put right by a second journal.

-- A correction is asked for by one person, worked out account by account, approved by another, and applied range by range.
-- `scope` has the checked parameters of its kind; `cut_offs` counts the supplies that applying it has cut so far, and may
-- never pass the number approved.
create table corrections (
    id bigint generated always as identity primary key,
    kind text not null check (kind in ('overhaul', 'edit', 'terms')),
    reason text not null check (reason <> ''),
    scope jsonb not null,
    asked_by text not null check (asked_by <> ''),
    asked_at timestamptz not null default clock_timestamp(),
    state text not null default 'proposed'
        check (state in ('proposed', 'computed', 'approved', 'applying', 'applied', 'cancelled')),
    computed_at timestamptz,
    approved_by text,
    approved_at timestamptz,
    approved_cut_offs bigint,
    cut_offs bigint not null default 0,
    ended_by text,
    ended_at timestamptz,
    -- The correction that this one takes back.
    reverses bigint references corrections,
    check (lower(approved_by) <> lower(asked_by)),
    check (num_nulls(approved_by, approved_at, approved_cut_offs) in (0, 3)),
    check (approved_by is not null or state not in ('approved', 'applying', 'applied')),
    check (approved_cut_offs is null or cut_offs <= approved_cut_offs)
) with (fillfactor = 70);
create unique index one_reversal on corrections (reverses) where reverses is not null and state <> 'cancelled';

-- What a correction does to one account: worked out at a version of the account, then applied under its lock. `lines` has
-- the difference by bill part: {"2026-04-01": {"energy_wh": 0, "assessed_wh": 0, "lines": {"energy_1": 5}}}.
create table correction_accounts (
    correction_id bigint not null references corrections,
    account_id bigint not null references accounts,
    state text not null check (state in ('computed', 'applied', 'refused')),
    version bigint not null,
    before_minor bigint,
    after_minor bigint,
    difference_minor bigint,
    lines jsonb,
    crosses text check (crosses in ('none', 'low', 'exhausted', 'restored')),
    detail text,
    computed_at timestamptz not null default clock_timestamp(),
    applied_at timestamptz,
    primary key (correction_id, account_id),
    check ((state = 'refused') = (crosses is null)),
    check ((state = 'refused') = (difference_minor is null)),
    check ((state = 'applied') = (applied_at is not null)),
    check (after_minor = before_minor + difference_minor)
) with (fillfactor = 70);
create index corrections_to_apply on correction_accounts (correction_id, account_id) where state = 'computed';
create index corrections_of_account on correction_accounts (account_id, correction_id);

-- Rows that a correction wrote name it.
alter table journals add foreign key (correction_id) references corrections;
create index journals_of_corrections on journals (correction_id, account_id) where correction_id is not null;
alter table assignments add column correction_id bigint references corrections;
create index assignments_of_corrections on assignments (correction_id, account_id) where correction_id is not null;

-- A reading is never changed. An edit stands in the place of its register; without a register the reading is void. An edit
-- that another was put in the place of names it.
create table reading_edits (
    id bigint generated always as identity primary key,
    meter_id integer not null references meters,
    read_at timestamptz(3) not null,
    import_wh bigint check (import_wh >= 0),
    correction_id bigint not null references corrections,
    replaced_by bigint references reading_edits,
    added_at timestamptz not null default clock_timestamp()
);
create unique index one_edit_a_reading on reading_edits (meter_id, read_at) include (import_wh) where replaced_by is null;
create index edits_of_corrections on reading_edits (correction_id);
create trigger never_deleted before delete or truncate on reading_edits
    for each statement execute function refuse_change();

-- What money is made of: readings as they hold now. Scalar subqueries, since no planner can turn them into a join: for the
-- probes of one meter a join read 20 times as long when there were edits (500 looks: 24 s for 1.1, 2026-11-22).
create view effective_readings as
select r.meter_id, r.read_at,
       coalesce((select e.import_wh from reading_edits e
                 where e.meter_id = r.meter_id and e.read_at = r.read_at and e.replaced_by is null), r.import_wh)
           as import_wh
from readings r
where (select e.import_wh is null from reading_edits e
       where e.meter_id = r.meter_id and e.read_at = r.read_at and e.replaced_by is null) is not true;

-- The greatest demand that counts for a bill part. A correction that gives a part other days states its demand anew; days
-- closed later count beside it.
create view demand_of_parts as
select j.account_id, j.period, max(j.demand_w) as demand_w
from journals j
where j.demand_w is not null
  and j.id >= coalesce((select max(o.id) from journals o
                        where o.account_id = j.account_id and o.period = j.period and o.kind = 'overhaul'
                          and o.demand_w is not null), 0)
group by j.account_id, j.period;
