-- The exceptions desk: estimated registers, who works on what, decisions with their trail, and the dated rules.

-- A flag is worked on by its number.
alter table reading_flags add column id bigint generated always as identity;
create unique index reading_flags_by_id on reading_flags (id);

-- Registers that a correction has estimated between two readings of a meter. `import_wh` is what the register would have
-- shown at an instant at which nothing was read; the readings around the gap are named with what they showed.
create table estimated_readings (
    id bigint generated always as identity primary key,
    meter_id integer not null references meters,
    read_at timestamptz(3) not null,
    import_wh bigint not null check (import_wh >= 0),
    rule text not null,
    inputs jsonb not null,
    from_at timestamptz(3) not null,
    from_wh bigint not null,
    to_at timestamptz(3) not null,
    to_wh bigint not null,
    correction_id bigint not null references corrections,
    -- The correction that took it back.
    withdrawn_by bigint references corrections,
    added_at timestamptz not null default clock_timestamp(),
    check (from_at < read_at and read_at < to_at),
    check (from_wh <= import_wh and import_wh <= to_wh)
);
create unique index one_estimate_an_instant on estimated_readings (meter_id, read_at) where withdrawn_by is null;
create index estimates_of_corrections on estimated_readings (correction_id);
create trigger never_deleted before delete or truncate on estimated_readings
    for each statement execute function refuse_change();

-- Estimates hold as long as nothing was read inside their gap and the readings on both sides are those they were made of:
-- an actual reading ends all of its gap's estimates in the transaction that stores it. Only what recomputes closed days
-- reads them; days that are open are made of readings alone.
create view held_estimates as
select e.meter_id, e.read_at, e.import_wh, e.rule, e.inputs, e.from_at, e.to_at, e.correction_id, e.added_at
from estimated_readings e
where e.withdrawn_by is null
  and not exists (select from readings r where r.meter_id = e.meter_id and r.read_at > e.from_at and r.read_at < e.to_at)
  and (select r.import_wh from effective_readings r where r.meter_id = e.meter_id and r.read_at = e.from_at) = e.from_wh
  and (select r.import_wh from effective_readings r where r.meter_id = e.meter_id and r.read_at = e.to_at) = e.to_wh;

-- The estimates of a meter that hold, gap by gap. A function, since the view looks into readings: a statement that names it
-- would be planned over all their partitions each time (three times as long, 2026-11-22), and most meters have none.
create function estimates_held(meter integer) returns table (read_at timestamptz, import_wh bigint)
language plpgsql stable as $$
begin
    if not exists (select from estimated_readings e where e.meter_id = meter and e.withdrawn_by is null) then
        return;
    end if;
    return query
        with gap as materialized (
            select distinct e.from_at, e.from_wh, e.to_at, e.to_wh from estimated_readings e
            where e.meter_id = meter and e.withdrawn_by is null
        ), held as materialized (
            select g.* from gap g
            where not exists (
                    select from readings r where r.meter_id = meter and r.read_at > g.from_at and r.read_at < g.to_at)
              and g.from_wh = (select r.import_wh from effective_readings r
                               where r.meter_id = meter and r.read_at = g.from_at)
              and g.to_wh = (select r.import_wh from effective_readings r
                             where r.meter_id = meter and r.read_at = g.to_at)
        )
        select e.read_at::timestamptz, e.import_wh
        from estimated_readings e
        join held h on h.from_at = e.from_at and h.to_at = e.to_at and h.from_wh = e.from_wh and h.to_wh = e.to_wh
        where e.meter_id = meter and e.withdrawn_by is null;
end $$;

-- Who works on an exception and whether it is closed. An exception is a row of quarantine, a flag or a gap.
create table exception_work (
    kind text not null check (kind in ('quarantine', 'flag', 'gap')),
    item_id bigint not null,
    assigned_to text check (assigned_to <> ''),
    -- As which decision; null while it is open.
    closed_as text,
    closed_at timestamptz(3),
    primary key (kind, item_id),
    check ((closed_as is null) = (closed_at is null))
) with (fillfactor = 70);

-- What is open: rows of quarantine that are held, flags nobody has closed, gaps that are not filled.
create view open_exceptions as
select 'quarantine' as kind, q.id as item_id, q.severity, q.reason as rule, q.serial, q.read_at as at,
       null::timestamptz as to_at, q.first_at as since, q.detail
from quarantine q where q.state = 'held'
union all
select 'flag', f.id, f.severity, f.rule, m.serial, f.at, null, f.noted_at,
       'expected ' || f.expected || ', got ' || f.got
from reading_flags f join meters m on m.id = f.meter_id
where not exists (select from exception_work w where w.kind = 'flag' and w.item_id = f.id and w.closed_at is not null)
union all
select 'gap', g.id, case g.state when 'given_up' then 'warning' else 'info' end, 'gap', m.serial, g.from_at, g.to_at,
       g.noted_at, g.missing || ' intervals missing, ' || g.state
from gaps g join meters m on m.id = g.meter_id
where g.state <> 'filled'
  and not exists (select from exception_work w where w.kind = 'gap' and w.item_id = g.id and w.closed_at is not null);

-- What was decided on an exception: asked for by one person and, where it moves much money or changes readings, approved
-- by another. `effect` is what the dry run said of the money at the time.
create table exception_decisions (
    id bigint generated always as identity primary key,
    kind text not null,
    item_id bigint not null,
    action text not null check (action in ('release', 'reject', 'keep', 'edit', 'void', 'estimate')),
    parameters jsonb not null,
    effect jsonb not null,
    correction_id bigint references corrections,
    asked_by text not null check (asked_by <> ''),
    why text not null check (why <> ''),
    asked_at timestamptz(3) not null,
    state text not null check (state in ('proposed', 'done', 'cancelled')),
    ended_by text check (ended_by <> ''),
    ended_why text check (ended_why <> ''),
    ended_at timestamptz(3),
    check ((state = 'proposed') = (ended_at is null)),
    foreign key (kind, item_id) references exception_work
) with (fillfactor = 70);
create unique index one_open_decision on exception_decisions (kind, item_id) where state = 'proposed';
create index decisions_of_exception on exception_decisions (kind, item_id, id);

-- Who did what, in order; never changed.
create table exception_trail (
    id bigint generated always as identity primary key,
    kind text not null,
    item_id bigint not null,
    step text not null,
    by_whom text not null check (by_whom <> ''),
    why text not null check (why <> ''),
    facts jsonb not null,
    at timestamptz(3) not null default clock_timestamp()
);
create index trail_of_exception on exception_trail (kind, item_id, id);
create trigger append_only before update or delete or truncate on exception_trail
    for each statement execute function refuse_change();
revoke update, delete on exception_trail from prepaid_app;

-- The utility's own dated documents of estimation; before the first of them the one that ships holds.
create table estimation_rules (
    from_day date primary key,
    document text not null,
    sha256 text not null,
    added_by text not null check (added_by <> ''),
    added_at timestamptz not null default clock_timestamp()
);
create trigger append_only before update or delete or truncate on estimation_rules
    for each statement execute function refuse_change();
revoke update, delete on estimation_rules from prepaid_app;
