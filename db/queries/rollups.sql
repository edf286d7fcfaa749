-- rollup_zone: the zone that the buckets are of, kept from the first sweep on
update rollup_state set zone = coalesce(zone, %(zone)s) returning zone

-- rollup_swept: a sweep that began at an instant has left nothing out
update rollup_state set swept_at = greatest(swept_at, %(swept_at)s)

-- rollup_last_meter: how far a sweep goes
select coalesce(max(id), 0) from meters

-- readings_kept_from: before when readings have been dropped
select coalesce(max(before_at), '-infinity')::text from storage_drops where class = 'readings'

-- rollup_snapshot: what a block reads and writes is of one moment; each meter is found by its keys, since a plan by
-- tables would read a day of all meters for a few. What looks at all partitions is planned once a session
set transaction isolation level repeatable read;
set local enable_hashjoin = off; set local enable_mergejoin = off; set local enable_seqscan = off;
set local plan_cache_mode = force_generic_plan

-- rollup_plan_by_span: from here on statements name their span: only plans of their own leave partitions out
set local plan_cache_mode = force_custom_plan

-- lock_rollup_block: one sweep at a time works on a block of meters; held by the session
select pg_try_advisory_lock(740520611, %(block)s)

-- unlock_rollup_block: another one may
select pg_advisory_unlock(740520611, %(block)s)

-- rollup_partitions: months and years that have a partition
select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent in ('rollup_hours'::regclass, 'rollup_days'::regclass)

-- make_rollup_partition: a month's partition of hours or a year's of days
select make_rollup_partition(%(parent)s, %(name)s, %(first)s, %(next)s)

-- rollup_stale: spans behind the marks of a block of meters, oldest first
select id, meter_id, from_at, nullif(to_at, 'infinity') from stale_buckets
where meter_id > %(after)s and meter_id <= %(last)s order by meter_id, from_at, id limit %(most)s

-- rollup_latest: of a block the meters that have new readings, or spans behind their mark: up to which reading they are to
-- be rolled up now. Long arrears are taken in spans of `most_days`
select b.meter_id, case when n.first_at is null then o.read_at else l.read_at end as latest, k.upto,
       n.first_at, c.from_at as opened_at
from (select id as meter_id from meters where id > %(after)s and id <= %(last)s order by id) b
left join rollup_marks k on k.meter_id = b.meter_id
left join lateral (
    select r.read_at as first_at from effective_readings r
    where r.meter_id = b.meter_id and r.read_at > coalesce(k.upto, '-infinity') order by r.read_at limit 1
) n on true
left join lateral (
    select r.read_at from effective_readings r
    where r.meter_id = b.meter_id and r.read_at >= n.first_at
      and r.read_at <= n.first_at + %(most_days)s * interval '1 day'
    order by r.read_at desc limit 1
) l on true
left join lateral (
    select r.read_at from effective_readings r
    where b.meter_id = any(%(stale)s::integer[]) and n.first_at is null
      and r.meter_id = b.meter_id and r.read_at <= k.upto order by r.read_at desc limit 1
) o on true
left join lateral (
    -- Where the first reading of all has its energy counted from.
    select s.from_at from register_segments s
    where k.upto is null and s.meter_id = b.meter_id and s.reason in ('installed', 'swap') and s.from_at <= n.first_at
    order by s.from_at desc limit 1
) c on true
where n.first_at is not null or b.meter_id = any(%(stale)s::integer[])

-- rollup_spans: the hours that are to be rolled up: those of new readings, and those that stale spans touch, from the
-- reading before to the one after, each once; with the points of the curve on both sides of them. It begins where the
-- meter was installed, or at what is kept of its mark where that reading has been dropped
with stale as (
    select s.meter_id,
           coalesce(b.read_at,
                    (select c.from_at from register_segments c
                     where c.meter_id = s.meter_id and c.reason in ('installed', 'swap') and c.from_at <= s.from_at
                       and c.from_at >= %(kept_from)s order by c.from_at desc limit 1),
                    -- A first reading at an edge ends the hour before.
                    s.from_at - interval '1 millisecond') as left_at,
           coalesce(a.read_at, greatest(s.to_at, s.upto, s.latest)) as right_at
    from unnest(%(stale_meters)s::integer[], %(from_ats)s::timestamptz[], %(to_ats)s::timestamptz[],
                %(uptos)s::timestamptz[], %(latests)s::timestamptz[]) as s(meter_id, from_at, to_at, upto, latest)
    left join lateral (
        select r.read_at from effective_readings r
        where r.meter_id = s.meter_id and r.read_at < s.from_at order by r.read_at desc limit 1
    ) b on true
    left join lateral (
        -- Without an end everything after it changes.
        select r.read_at from effective_readings r
        where s.to_at is not null and r.meter_id = s.meter_id and r.read_at > s.to_at order by r.read_at limit 1
    ) a on true
), spans as (
    select meter_id, left_at, right_at from stale where left_at < right_at
    union all
    select * from unnest(%(new_meters)s::integer[], %(lefts)s::timestamptz[], %(rights)s::timestamptz[])
), reaching as (
    -- After a meter's last reading its curve goes on to where another meter took over.
    select s.meter_id, s.left_at,
           greatest(s.right_at, (select min(c.at) from closing_points c
                                 where c.meter_id = s.meter_id and c.at > s.right_at)) as right_at
    from spans s
), span as materialized (
    select meter_id, lower(r) as first_at, upper(r) as last_at
    from (
        select meter_id, range_agg(tstzrange(
                   date_trunc('hour', left_at, %(zone)s),
                   date_trunc('hour', right_at - interval '1 millisecond', %(zone)s) + interval '1 hour')) as ranges
        from reaching group by meter_id
    ) h, unnest(h.ranges) r
    where not isempty(r)
)
select s.meter_id, s.first_at, s.last_at, coalesce(b.before_at, s.first_at) as before_at,
       coalesce(a.after_at, s.last_at) as after_at, k.upto, k.upto_wh, k.upto_export_wh
from span s
left join lateral (
    -- A mark counts only where its reading itself is gone.
    select m.upto, m.upto_wh, m.upto_export_wh from rollup_marks m
    where m.meter_id = s.meter_id and m.upto < s.last_at
      and not exists (select from readings r where r.meter_id = m.meter_id and r.read_at = m.upto)
) k on true
cross join lateral (
    select greatest(
        (select r.read_at from effective_readings r
         where r.meter_id = s.meter_id and r.read_at <= s.first_at order by r.read_at desc limit 1),
        (select date_trunc('milliseconds', g.from_at) from register_segments g
         where g.meter_id = s.meter_id and g.reason in ('installed', 'swap') and g.from_at <= s.first_at
           and g.from_at >= %(kept_from)s order by g.from_at desc limit 1),
        case when k.upto <= s.first_at then k.upto end) as before_at
) b
cross join lateral (
    select least(
        (select r.read_at from effective_readings r
         where r.meter_id = s.meter_id and r.read_at >= s.last_at order by r.read_at limit 1),
        (select min(c.at) from closing_points c where c.meter_id = s.meter_id and c.at >= s.last_at)) as after_at
) a
order by s.meter_id, s.first_at

-- rollup_hours_of: the hours of some spans, from the curve of energy to date. Between two readings it is split at an edge
-- in proportion to time, the remainder on the later side
with bounds as materialized (
    select * from unnest(%(meter_ids)s::integer[], %(first_ats)s::timestamptz[], %(last_ats)s::timestamptz[],
                         %(before_ats)s::timestamptz[], %(after_ats)s::timestamptz[], %(uptos)s::timestamptz[],
                         %(upto_whs)s::bigint[], %(upto_export_whs)s::bigint[])
        with ordinality as s(meter_id, first_at, last_at, before_at, after_at, upto, upto_wh, upto_export_wh, n)
), segment as materialized (
    select b.*, g.*
    from bounds b
    cross join lateral (
        -- Before its first segment, or without any, a register counts as it is read.
        select '-infinity'::timestamptz as from_at, min(s.from_at) as until_at, 0::bigint as start_wh,
               coalesce((select f.start_wh - f.register_wh from register_segments f
                         where f.meter_id = b.meter_id order by f.from_at limit 1), 0) as offset_wh,
               0::bigint as chain, false as opens
        from register_segments s where s.meter_id = b.meter_id
        union all
        select date_trunc('milliseconds', s.from_at), lead(date_trunc('milliseconds', s.from_at)) over w, s.start_wh,
               s.start_wh - s.register_wh, count(*) filter (where s.reason in ('installed', 'swap')) over w,
               s.reason in ('installed', 'swap')
        from register_segments s where s.meter_id = b.meter_id window w as (order by s.from_at)
    ) g
), point as (
    select g.n, g.meter_id, g.first_at, g.last_at, g.chain, r.read_at as at, 1 as place,
           r.import_wh + g.offset_wh as wh, r.export_wh, r.voltage_mv, r.pf_milli, r.edited
    from segment g
    cross join lateral (
        select * from current_readings c
        where c.meter_id = g.meter_id and c.read_at >= least(g.first_at - interval '30 minutes', g.before_at)
          and c.read_at <= g.after_at and c.read_at >= g.from_at and (g.until_at is null or c.read_at < g.until_at)
          and c.read_at between %(since)s and %(until)s
        offset 0
    ) r
    union all
    select g.n, g.meter_id, g.first_at, g.last_at, g.chain, g.from_at, 0, g.start_wh, null, null, null, false
    from segment g
    where g.opens and g.from_at >= g.before_at and g.from_at < g.last_at
    union all
    select g.n, g.meter_id, g.first_at, g.last_at, g.chain, g.upto, 0, g.upto_wh, g.upto_export_wh, null, null, false
    from segment g
    where g.upto >= g.before_at and g.upto >= g.from_at and (g.until_at is null or g.upto < g.until_at)
    union all
    select g.n, g.meter_id, g.first_at, g.last_at, g.chain, c.at, 2, c.wh, null, null, null, false
    from segment g join closing_points c on c.meter_id = g.meter_id
    where c.at > g.from_at and (g.until_at is null or c.at <= g.until_at)
      and c.at between least(g.first_at, g.before_at) and g.after_at
), step as (
    select p.*, lag(p.at) over w as from_at, lag(p.wh) over w as from_wh, lag(p.export_wh) over w as from_export_wh,
           first_value(p.wh) over (partition by p.n, p.chain order by p.at
                                   range between interval '30 minutes' preceding and interval '30 minutes' preceding)
               as half_hour_wh
    from point p
    window w as (partition by p.n, p.chain order by p.at, p.place)
), piece as (
    select q.meter_id, q.first_at, q.last_at, h.started_at, q.place = 1 and h.started_at = q.hour_at as is_last,
           q.voltage_mv, q.pf_milli, q.edited, e.*, d.demand_w
    from (
        select s.*, date_trunc('hour', s.at - interval '1 millisecond', %(zone)s) as hour_at,
               date_trunc('hour', s.from_at, %(zone)s) as from_hour_at
        from step s where s.place = 1 or s.place = 2 and s.from_at is not null
    ) q
    cross join lateral generate_series(least(q.hour_at, q.from_hour_at), q.hour_at, interval '1 hour') h(started_at)
    cross join lateral (
        -- Milliseconds since the earlier point of where the hour cuts, and the span's own.
        select (extract(epoch from greatest(h.started_at, q.from_at) - q.from_at) * 1000)::bigint as left_ms,
               (extract(epoch from least(h.started_at + interval '1 hour', q.at) - q.from_at) * 1000)::bigint as right_ms,
               (extract(epoch from q.at - q.from_at) * 1000)::bigint as span_ms,
               q.hour_at > q.from_hour_at as cuts_hour,
               q.hour_at > q.from_hour_at
                   and ((q.from_hour_at at time zone %(zone)s)::date <> (h.started_at at time zone %(zone)s)::date
                        or (q.hour_at at time zone %(zone)s)::date <> (h.started_at at time zone %(zone)s)::date)
                   as cuts_day,
               q.hour_at > q.from_hour_at
                   and (date_trunc('month', q.from_hour_at at time zone %(zone)s)
                            <> date_trunc('month', h.started_at at time zone %(zone)s)
                        or date_trunc('month', q.hour_at at time zone %(zone)s)
                            <> date_trunc('month', h.started_at at time zone %(zone)s))
                   as cuts_month
    ) c
    cross join lateral (
        select c.cuts_hour, c.cuts_day, c.cuts_month,
               case when q.from_at is null then 0
                    when not c.cuts_hour then q.wh - q.from_wh
                    else share_until(q.wh - q.from_wh, c.right_ms, c.span_ms)
                         - share_until(q.wh - q.from_wh, c.left_ms, c.span_ms) end as import_wh,
               case when q.export_wh < q.from_export_wh then null
                    when not c.cuts_hour then q.export_wh - q.from_export_wh
                    else share_until(q.export_wh - q.from_export_wh, c.right_ms, c.span_ms)
                         - share_until(q.export_wh - q.from_export_wh, c.left_ms, c.span_ms) end as export_wh
    ) e
    cross join lateral (
        select greatest(
            case when q.half_hour_wh is not null and (extract(epoch from q.at) * 1000)::bigint %% 1800000 = 0
                 then 2 * (q.wh - q.half_hour_wh) end,
            case when c.span_ms >= 1800000 then share_until(q.wh - q.from_wh, 3600000, c.span_ms) end)
            as demand_w
    ) d
    union all
    -- What rules note of a reading is stored with it, under its instant.
    select b.meter_id, b.first_at, b.last_at, date_trunc('hour', f.at - interval '1 millisecond', %(zone)s), null, null,
           null, null, false, false, false, null, null, null
    from bounds b
    cross join lateral (
        select r.at from reading_flags r
        where r.meter_id = b.meter_id and r.day between (b.first_at at time zone %(zone)s)::date - 1
                                                    and (b.last_at at time zone %(zone)s)::date + 1
          and r.at > b.first_at and r.at <= b.last_at and r.severity <> 'info'
          -- These two are of messages, under the broker's time.
          and r.rule not in ('clock_drift', 'wrong_interval')
          and exists (select from effective_readings c where c.meter_id = b.meter_id and c.read_at = r.at
                        and c.read_at between %(since)s and %(until)s)
    ) f
), made as materialized (
    select p.meter_id, p.started_at, count(*) filter (where p.is_last)::integer as readings,
           coalesce(sum(p.import_wh), 0)::bigint as import_wh,
           coalesce(sum(p.import_wh) filter (where p.cuts_hour), 0)::bigint as estimated_wh,
           coalesce(sum(p.import_wh) filter (where p.cuts_day), 0)::bigint as of_day_wh,
           coalesce(sum(p.import_wh) filter (where p.cuts_month), 0)::bigint as of_month_wh,
           sum(p.export_wh)::bigint as export_wh,
           sum(p.voltage_mv) filter (where p.is_last)::bigint as voltage_sum_mv,
           sum(p.pf_milli) filter (where p.is_last)::bigint as pf_sum_milli,
           nullif(count(p.voltage_mv) filter (where p.is_last), 0)::integer as voltage_n,
           min(p.voltage_mv) filter (where p.is_last) as voltage_min_mv,
           max(p.voltage_mv) filter (where p.is_last) as voltage_max_mv,
           nullif(count(p.pf_milli) filter (where p.is_last), 0)::integer as pf_n,
           (max(least(p.demand_w, 2147483647)) filter (where p.is_last and p.demand_w >= 0))::integer as demand_w,
           greatest(max(case when p.is_last and p.edited then 1 else 0 end),
                    max(case when p.is_last is null then 3 else 0 end))::smallint as mark
    from piece p
    where p.started_at >= p.first_at and p.started_at < p.last_at
    group by p.meter_id, p.started_at
), surplus as materialized (
    -- The curve may end earlier than it did.
    select h.meter_id, h.started_at
    from bounds s
    cross join lateral (
        select r.meter_id, r.started_at from rollup_hours r
        where r.meter_id = s.meter_id and r.started_at >= s.first_at and r.started_at < s.last_at
          and r.started_at >= %(first)s and r.started_at < %(last)s
        offset 0
    ) h
    except
    select meter_id, started_at from made
), gone as (
    delete from rollup_hours h using surplus s where h.meter_id = s.meter_id and h.started_at = s.started_at
)
insert into rollup_hours (meter_id, started_at, readings, import_wh, estimated_wh, of_day_wh, of_month_wh, export_wh,
                          voltage_sum_mv, pf_sum_milli, voltage_n, voltage_min_mv, voltage_max_mv, pf_n, demand_w, mark)
select meter_id, started_at, readings, import_wh, estimated_wh, of_day_wh, of_month_wh, export_wh,
       voltage_sum_mv, pf_sum_milli, voltage_n, voltage_min_mv, voltage_max_mv, pf_n, demand_w, mark
from made
on conflict (meter_id, started_at) do update
    set readings = excluded.readings, import_wh = excluded.import_wh, estimated_wh = excluded.estimated_wh,
        of_day_wh = excluded.of_day_wh, of_month_wh = excluded.of_month_wh, export_wh = excluded.export_wh,
        voltage_sum_mv = excluded.voltage_sum_mv, pf_sum_milli = excluded.pf_sum_milli, voltage_n = excluded.voltage_n,
        voltage_min_mv = excluded.voltage_min_mv, voltage_max_mv = excluded.voltage_max_mv, pf_n = excluded.pf_n,
        demand_w = excluded.demand_w, mark = excluded.mark

-- rollup_days_of: the days that some hours are in, from all their hours
with touched as materialized (
    select distinct s.meter_id, d.day::date as day
    from unnest(%(meter_ids)s::integer[], %(first_ats)s::timestamptz[], %(last_ats)s::timestamptz[])
        as s(meter_id, first_at, last_at)
    cross join lateral generate_series((s.first_at at time zone %(zone)s)::date::timestamp,
                                       (s.last_at - interval '1 hour') at time zone %(zone)s, interval '1 day') d(day)
), made as materialized (
    select t.meter_id, t.day, h.*
    from touched t
    cross join lateral (
        select sum(readings)::integer as readings, sum(import_wh)::bigint as import_wh,
               sum(of_day_wh)::bigint as estimated_wh, sum(of_month_wh)::bigint as of_month_wh,
               sum(export_wh)::bigint as export_wh, sum(voltage_sum_mv)::bigint as voltage_sum_mv,
               sum(pf_sum_milli)::bigint as pf_sum_milli, sum(voltage_n)::integer as voltage_n,
               min(voltage_min_mv) as voltage_min_mv, max(voltage_max_mv) as voltage_max_mv, sum(pf_n)::integer as pf_n,
               max(demand_w) as demand_w, max(mark) as mark
        from rollup_hours
        where meter_id = t.meter_id and started_at >= t.day::timestamp at time zone %(zone)s
          and started_at < (t.day + 1)::timestamp at time zone %(zone)s
          and started_at >= %(first)s - interval '26 hours' and started_at < %(last)s + interval '26 hours'
    ) h
    where h.readings is not null
), gone as (
    delete from rollup_days d
    using (select meter_id, day from touched except select meter_id, day from made) s
    where d.meter_id = s.meter_id and d.day = s.day
)
insert into rollup_days (meter_id, day, readings, import_wh, estimated_wh, of_month_wh, export_wh, voltage_sum_mv,
                         pf_sum_milli, voltage_n, voltage_min_mv, voltage_max_mv, pf_n, demand_w, mark)
select meter_id, day, readings, import_wh, estimated_wh, of_month_wh, export_wh, voltage_sum_mv,
       pf_sum_milli, voltage_n, voltage_min_mv, voltage_max_mv, pf_n, demand_w, mark
from made
on conflict (meter_id, day) do update
    set readings = excluded.readings, import_wh = excluded.import_wh, estimated_wh = excluded.estimated_wh,
        of_month_wh = excluded.of_month_wh, export_wh = excluded.export_wh, voltage_sum_mv = excluded.voltage_sum_mv,
        pf_sum_milli = excluded.pf_sum_milli, voltage_n = excluded.voltage_n, voltage_min_mv = excluded.voltage_min_mv,
        voltage_max_mv = excluded.voltage_max_mv, pf_n = excluded.pf_n, demand_w = excluded.demand_w, mark = excluded.mark

-- rollup_months_of: the months that some hours are in, from all their days
with touched as materialized (
    select distinct s.meter_id, d.month::date as month
    from unnest(%(meter_ids)s::integer[], %(first_ats)s::timestamptz[], %(last_ats)s::timestamptz[])
        as s(meter_id, first_at, last_at)
    cross join lateral generate_series(date_trunc('month', s.first_at at time zone %(zone)s),
                                       (s.last_at - interval '1 hour') at time zone %(zone)s, interval '1 month') d(month)
), made as materialized (
    select t.meter_id, t.month, d.*
    from touched t
    cross join lateral (
        select sum(readings)::integer as readings, sum(import_wh)::bigint as import_wh,
               sum(of_month_wh)::bigint as estimated_wh, sum(export_wh)::bigint as export_wh,
               sum(voltage_sum_mv)::bigint as voltage_sum_mv, sum(pf_sum_milli)::bigint as pf_sum_milli,
               sum(voltage_n)::integer as voltage_n, min(voltage_min_mv) as voltage_min_mv,
               max(voltage_max_mv) as voltage_max_mv, sum(pf_n)::integer as pf_n, max(demand_w) as demand_w,
               max(mark) as mark
        from rollup_days
        where meter_id = t.meter_id and day >= t.month and day < (t.month + interval '1 month')::date
    ) d
    where d.readings is not null
), gone as (
    delete from rollup_months r
    using (select meter_id, month from touched except select meter_id, month from made) s
    where r.meter_id = s.meter_id and r.month = s.month
)
insert into rollup_months (meter_id, month, readings, import_wh, estimated_wh, export_wh, voltage_sum_mv, pf_sum_milli,
                           voltage_n, voltage_min_mv, voltage_max_mv, pf_n, demand_w, mark)
select meter_id, month, readings, import_wh, estimated_wh, export_wh, voltage_sum_mv, pf_sum_milli,
       voltage_n, voltage_min_mv, voltage_max_mv, pf_n, demand_w, mark
from made
on conflict (meter_id, month) do update
    set readings = excluded.readings, import_wh = excluded.import_wh, estimated_wh = excluded.estimated_wh,
        export_wh = excluded.export_wh, voltage_sum_mv = excluded.voltage_sum_mv, pf_sum_milli = excluded.pf_sum_milli,
        voltage_n = excluded.voltage_n, voltage_min_mv = excluded.voltage_min_mv,
        voltage_max_mv = excluded.voltage_max_mv, pf_n = excluded.pf_n, demand_w = excluded.demand_w, mark = excluded.mark

-- save_rollup_marks: up to which reading meters are rolled up, with its energy to date
insert into rollup_marks (meter_id, upto, upto_wh, upto_export_wh)
select k.meter_id, k.upto, r.import_wh + coalesce(s.offset_wh, f.offset_wh, 0), r.export_wh
from unnest(%(meter_ids)s::integer[], %(uptos)s::timestamptz[]) as k(meter_id, upto)
left join lateral (
    select c.import_wh, c.export_wh from current_readings c
    where c.meter_id = k.meter_id and c.read_at = k.upto and c.read_at between %(since)s and %(until)s offset 0
) r on true
left join lateral (
    select g.start_wh - g.register_wh as offset_wh from register_segments g
    where g.meter_id = k.meter_id and g.from_at <= k.upto order by g.from_at desc limit 1
) s on true
left join lateral (
    select g.start_wh - g.register_wh as offset_wh from register_segments g
    where g.meter_id = k.meter_id order by g.from_at limit 1
) f on true
on conflict (meter_id) do update
    set upto = excluded.upto, upto_wh = excluded.upto_wh, upto_export_wh = excluded.upto_export_wh

-- drop_stale: spans that are rolled up again
delete from stale_buckets where id = any(%(ids)s)

-- note_late: readings that came behind later ones, by meter and instant
insert into stale_buckets (meter_id, from_at, to_at)
select k.meter_id, k.read_at, k.read_at
from unnest(%(meter_ids)s::integer[], %(read_ats)s::timestamptz[]) as k(meter_id, read_at)

-- rollup_behind: spans that wait to be rolled up again
select count(*), min(noted_at) from stale_buckets
