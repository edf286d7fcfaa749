-- Readings by local hour, day and month of each meter, kept equal to the readings as they hold now (db.rollups).

-- Readings as they hold now, with all channels; `received_wh` is the register before an edit. Scalar subqueries, as in
-- effective_readings.
create view current_readings as
select r.meter_id, r.read_at,
       coalesce((select e.import_wh from reading_edits e
                 where e.meter_id = r.meter_id and e.read_at = r.read_at and e.replaced_by is null), r.import_wh)
           as import_wh,
       r.export_wh, r.voltage_mv, r.current_ma, r.power_w, r.pf_milli, r.freq_mhz, r.import_wh as received_wh,
       exists (select from reading_edits e
               where e.meter_id = r.meter_id and e.read_at = r.read_at and e.replaced_by is null) as edited
from readings r
where (select e.import_wh is null from reading_edits e
       where e.meter_id = r.meter_id and e.read_at = r.read_at and e.replaced_by is null) is not true;

-- One row a meter and local hour; `started_at` is the instant at which the hour begins. A reading at an edge belongs to
-- the hour that ends there. `estimated_wh` was split at the hour's own edges, `of_day_wh` at the edges of its day,
-- `of_month_wh` at those of its month; `mark` is the worst of the hour's readings: 0 read, 1 edited, 3 suspect.
create table rollup_hours (
    meter_id integer not null,
    readings integer not null,
    started_at timestamptz not null,
    import_wh bigint not null,
    estimated_wh bigint not null,
    of_day_wh bigint not null,
    of_month_wh bigint not null,
    export_wh bigint,
    voltage_sum_mv bigint,
    pf_sum_milli bigint,
    voltage_n integer,
    voltage_min_mv integer,
    voltage_max_mv integer,
    pf_n integer,
    demand_w integer,
    mark smallint not null,
    primary key (meter_id, started_at)
) partition by range (started_at);

create table rollup_days (
    meter_id integer not null,
    day date not null,
    import_wh bigint not null,
    estimated_wh bigint not null,
    of_month_wh bigint not null,
    export_wh bigint,
    voltage_sum_mv bigint,
    pf_sum_milli bigint,
    readings integer not null,
    voltage_n integer,
    voltage_min_mv integer,
    voltage_max_mv integer,
    pf_n integer,
    demand_w integer,
    mark smallint not null,
    primary key (meter_id, day)
) partition by range (day);

create table rollup_months (
    meter_id integer not null,
    month date not null,
    import_wh bigint not null,
    estimated_wh bigint not null,
    export_wh bigint,
    voltage_sum_mv bigint,
    pf_sum_milli bigint,
    readings integer not null,
    voltage_n integer,
    voltage_min_mv integer,
    voltage_max_mv integer,
    pf_n integer,
    demand_w integer,
    mark smallint not null,
    primary key (meter_id, month)
) with (fillfactor = 70);

-- Energy that a part of a span has in proportion to time, rounded down. In numeric: a gap of years times a register is
-- more than 64 bits hold.
create function share_until(energy_wh bigint, part_ms bigint, span_ms bigint) returns bigint
language sql immutable strict parallel safe return
    (div(energy_wh::numeric * part_ms, span_ms)
     - case when energy_wh < 0 and mod(energy_wh::numeric * part_ms, span_ms) <> 0 then 1 else 0 end)::bigint;

-- What everybody reads. Quality: 0 read, 1 edited, 2 partly split in proportion to time, 3 suspect.
create view hour_rollups as
select meter_id, started_at, readings, import_wh, export_wh, estimated_wh, demand_w, voltage_min_mv, voltage_max_mv,
       (voltage_sum_mv / nullif(voltage_n, 0))::integer as voltage_avg_mv, voltage_sum_mv, coalesce(voltage_n, 0) as voltage_n,
       (pf_sum_milli / nullif(pf_n, 0))::integer as pf_avg_milli, pf_sum_milli, coalesce(pf_n, 0) as pf_n,
       greatest(mark, case when estimated_wh <> 0 then 2 else 0 end)::smallint as quality
from rollup_hours;
create view day_rollups as
select meter_id, day, readings, import_wh, export_wh, estimated_wh, demand_w, voltage_min_mv, voltage_max_mv,
       (voltage_sum_mv / nullif(voltage_n, 0))::integer as voltage_avg_mv, voltage_sum_mv, coalesce(voltage_n, 0) as voltage_n,
       (pf_sum_milli / nullif(pf_n, 0))::integer as pf_avg_milli, pf_sum_milli, coalesce(pf_n, 0) as pf_n,
       greatest(mark, case when estimated_wh <> 0 then 2 else 0 end)::smallint as quality
from rollup_days;
create view month_rollups as
select meter_id, month, readings, import_wh, export_wh, estimated_wh, demand_w, voltage_min_mv, voltage_max_mv,
       (voltage_sum_mv / nullif(voltage_n, 0))::integer as voltage_avg_mv, voltage_sum_mv, coalesce(voltage_n, 0) as voltage_n,
       (pf_sum_milli / nullif(pf_n, 0))::integer as pf_avg_milli, pf_sum_milli, coalesce(pf_n, 0) as pf_n,
       greatest(mark, case when estimated_wh <> 0 then 2 else 0 end)::smallint as quality
from rollup_months;

-- The latest reading of each meter that is rolled up, with its energy to date: where the curve goes on once that reading
-- has been dropped. Readings after it are new; whatever changes at or before it says so in stale_buckets.
create table rollup_marks (
    meter_id integer primary key,
    upto timestamptz(3),
    upto_wh bigint,
    upto_export_wh bigint
) with (fillfactor = 70);

-- Spans of a meter's curve that changed behind its mark; gone when they are rolled up again.
create table stale_buckets (
    id bigint generated always as identity primary key,
    meter_id integer not null,
    from_at timestamptz not null,
    to_at timestamptz not null,
    noted_at timestamptz not null default clock_timestamp(),
    check (from_at <= to_at)
);
create index stale_buckets_of_meter on stale_buckets (meter_id, from_at);

-- The zone whose hours these are, and when the last sweep that left nothing out began.
create table rollup_state (
    one boolean primary key default true check (one),
    zone text,
    swept_at timestamptz not null default '-infinity'
);
insert into rollup_state (one) values (true);

-- Where a meter's curve ends when another one takes over from it: the account's energy to date at that instant.
create view closing_points as
select o.meter_id, o.usage_point_id, date_trunc('milliseconds', o.to_at) as at, s.start_wh as wh
from installations o
join installations n on n.usage_point_id = o.usage_point_id and n.role = o.role and n.from_at = o.to_at
join register_segments s on s.meter_id = n.meter_id and s.from_at = n.from_at and s.reason = 'swap'
where o.to_at is not null;

-- An edit changes the curve back to the reading before it, which is known only now: that one may be void, too, once the
-- buckets are rolled up.
create function edits_make_stale() returns trigger language plpgsql as $$
begin
    insert into stale_buckets (meter_id, from_at, to_at)
    select e.meter_id, coalesce(b.read_at, e.read_at), e.read_at
    from edited e
    left join lateral (
        select r.read_at from effective_readings r
        where r.meter_id = e.meter_id and r.read_at < e.read_at order by r.read_at desc limit 1
    ) b on true;
    return null;
end $$;
create trigger make_stale_by_insert after insert on reading_edits referencing new table as edited
    for each statement execute function edits_make_stale();
create trigger make_stale_by_update after update on reading_edits referencing new table as edited
    for each statement execute function edits_make_stale();

-- A register that began again shifts what was read after it; with a swap the curve of the meter before ends. New readings of its own batch are not stored yet then, and
-- will be found as new ones.
create function segments_make_stale() returns trigger language plpgsql as $$
begin
    insert into stale_buckets (meter_id, from_at, to_at)
    select c.meter_id, c.at, c.at
    from changed s join installations n on n.meter_id = s.meter_id and n.from_at = s.from_at
    join closing_points c on c.usage_point_id = n.usage_point_id and c.at = s.from_at
    where s.reason = 'swap';
    insert into stale_buckets (meter_id, from_at, to_at)
    select s.meter_id, s.from_at, 'infinity' from changed s
    where s.reason <> 'installed'
      and exists (select from readings r where r.meter_id = s.meter_id and r.read_at >= s.from_at);
    return null;
end $$;
create trigger make_stale_by_insert after insert on register_segments referencing new table as changed
    for each statement execute function segments_make_stale();
create trigger make_stale_by_update after update on register_segments referencing new table as changed
    for each statement execute function segments_make_stale();

-- A partition is made as a table and then attached, as those of readings are. It is rewritten while its hours are young.
create function make_rollup_partition(parent text, name text, first date, next date) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    if parent not in ('rollup_hours', 'rollup_days') or name !~ ('^' || parent || '_[0-9]{4,6}$') then
        raise exception 'rollup partition: expected one of hours or days, got %', name;
    end if;
    -- Two sweeps may want the same one.
    perform pg_advisory_xact_lock(7405206114);
    if to_regclass(format('public.%I', name)) is not null then
        return;
    end if;
    execute format('create table public.%I (like public.%I including defaults including constraints)'
                   ' with (fillfactor = 85)', name, parent);
    if parent = 'rollup_hours' then
        execute format('alter table public.%I attach partition public.%I for values from (%L) to (%L)',
                       parent, name, first::text || ' 00:00:00+00', next::text || ' 00:00:00+00');
    else
        execute format('alter table public.%I attach partition public.%I for values from (%L) to (%L)',
                       parent, name, first, next);
    end if;
end $$;
revoke execute on function make_rollup_partition(text, text, date, date) from public;
grant execute on function make_rollup_partition(text, text, date, date) to prepaid_app;
