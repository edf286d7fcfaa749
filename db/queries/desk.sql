-- desk_meter: a meter's id by its serial
select id from meters where serial = %(meter)s

-- desk_meters_of_account: meters that bill or billed an account
select distinct i.meter_id from accounts a
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing'
where a.number = %(account)s order by 1

-- desk_meters_of_consumer: meters that bill or billed a consumer's accounts
select distinct i.meter_id from accounts a
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing'
where a.consumer_id = %(consumer)s order by 1

-- desk_meters_after: the next meters in id order
select id from meters where id > %(after)s order by id limit %(most)s

-- desk_meters_of_area: the next meters in id order that stand or stood in an area
select distinct i.meter_id from usage_points u
join installations i on i.usage_point_id = u.id
where u.area = %(area)s and i.meter_id > %(after)s order by 1 limit %(most)s

-- desk_meters_of_feeder: the next meters in id order that stand or stood at a feeder
select distinct i.meter_id from usage_points u
join installations i on i.usage_point_id = u.id
where u.feeder = %(feeder)s and u.feeder <> '' and i.meter_id > %(after)s order by 1 limit %(most)s

-- desk_whole_meters: meters wherever they stood
select id, serial from meters
where id = any(%(ids)s) and (%(make)s::text is null or make = %(make)s) order by id

-- desk_places: where some meters stood, with the end of the stay before at another place and the begin of the one after
select m.id, m.serial, i.from_at, i.to_at, b.apart_from, b.apart_to
from meters m
join installations i on i.meter_id = m.id
join usage_points u on u.id = i.usage_point_id
left join accounts a on a.usage_point_id = u.id
cross join lateral (
    select max(o.to_at) filter (where o.to_at <= i.from_at) as apart_from,
           min(o.from_at) filter (where o.from_at >= i.to_at) as apart_to
    from installations o where o.meter_id = i.meter_id and o.usage_point_id <> i.usage_point_id
) b
where m.id = any(%(ids)s)
  -- A check meter is asked for by its own serial.
  and (%(meter)s::text is not null or i.role = 'billing')
  and (%(make)s::text is null or m.make = %(make)s)
  and (%(account)s::text is null or a.number = %(account)s)
  and (%(consumer)s::bigint is null or a.consumer_id = %(consumer)s)
  and (%(area)s::text is null or u.area = %(area)s)
  and (%(feeder)s::text is null or u.feeder = %(feeder)s)
  and (%(only_area)s::text is null or u.area = %(only_area)s)
order by m.id, i.from_at

-- desk_readings: readings of some meters as they hold now, each within its window
select w.meter_id, r.*
from unnest(%(meter_ids)s::integer[], %(froms)s::timestamptz[], %(tos)s::timestamptz[]) as w(meter_id, from_at, to_at)
cross join lateral (
    select c.read_at, c.import_wh, c.export_wh, c.voltage_mv, c.current_ma, c.power_w, c.pf_milli, c.freq_mhz,
           c.received_wh, c.edited,
           -- A rule notes a day's first; its day is the local one, which lies within a day of the UTC one.
           case when %(with_flags)s then (
               select array_agg(f.rule order by f.rule) from reading_flags f
               where f.meter_id = c.meter_id and f.at = c.read_at
                 and f.day between c.read_at::date - 1 and c.read_at::date + 1) end as flags
    from current_readings c
    where c.meter_id = w.meter_id and c.read_at >= w.from_at and c.read_at < w.to_at
      and c.read_at >= %(first)s and c.read_at < %(last)s
    order by c.read_at limit %(most)s
) r
order by 1, 2 limit %(most)s

-- desk_hours: hours of some meters, each within its window
select w.meter_id, h.*, k.upto
from unnest(%(meter_ids)s::integer[], %(froms)s::timestamptz[], %(tos)s::timestamptz[]) as w(meter_id, from_at, to_at)
left join rollup_marks k on k.meter_id = w.meter_id
cross join lateral (
    select r.started_at, r.readings, r.import_wh, r.export_wh, r.estimated_wh, r.demand_w, r.voltage_min_mv,
           r.voltage_max_mv, r.voltage_avg_mv, r.pf_avg_milli, r.quality
    from hour_rollups r
    where r.meter_id = w.meter_id and r.started_at >= w.from_at and r.started_at < w.to_at
      and r.started_at >= %(first)s and r.started_at < %(last)s
    order by r.started_at limit %(most)s
) h
order by 1, 2 limit %(most)s

-- desk_days: local days of some meters, each within its window
select w.meter_id, d.*, k.upto
from unnest(%(meter_ids)s::integer[], %(froms)s::date[], %(tos)s::date[]) as w(meter_id, from_day, to_day)
left join rollup_marks k on k.meter_id = w.meter_id
cross join lateral (
    select r.day, r.readings, r.import_wh, r.export_wh, r.estimated_wh, r.demand_w, r.voltage_min_mv,
           r.voltage_max_mv, r.voltage_avg_mv, r.pf_avg_milli, r.quality
    from day_rollups r
    where r.meter_id = w.meter_id and r.day >= w.from_day and r.day < w.to_day
      and r.day >= %(first)s and r.day < %(last)s
    order by r.day limit %(most)s
) d
order by 1, 2 limit %(most)s

-- desk_months: calendar months of some meters, each within its window
select w.meter_id, d.*, k.upto
from unnest(%(meter_ids)s::integer[], %(froms)s::date[], %(tos)s::date[]) as w(meter_id, from_day, to_day)
left join rollup_marks k on k.meter_id = w.meter_id
cross join lateral (
    select r.month, r.readings, r.import_wh, r.export_wh, r.estimated_wh, r.demand_w, r.voltage_min_mv,
           r.voltage_max_mv, r.voltage_avg_mv, r.pf_avg_milli, r.quality
    from month_rollups r
    where r.meter_id = w.meter_id and r.month >= w.from_day and r.month < w.to_day
    order by r.month limit %(most)s
) d
order by 1, 2 limit %(most)s

-- desk_hour_sums: hours of some meters put together; the limit keeps the look at each meter by its key
select h.started_at, count(*), sum(h.readings)::bigint, sum(h.import_wh)::bigint, sum(h.export_wh)::bigint,
       sum(h.estimated_wh)::bigint, min(h.voltage_min_mv), max(h.voltage_max_mv), sum(h.voltage_sum_mv)::bigint,
       sum(h.voltage_n)::bigint, sum(h.pf_sum_milli)::bigint, sum(h.pf_n)::bigint, max(h.quality), min(k.upto)
from unnest(%(meter_ids)s::integer[], %(froms)s::timestamptz[], %(tos)s::timestamptz[]) as w(meter_id, from_at, to_at)
left join rollup_marks k on k.meter_id = w.meter_id
cross join lateral (
    select r.started_at, r.readings, r.import_wh, r.export_wh, r.estimated_wh, r.voltage_min_mv, r.voltage_max_mv,
           r.voltage_sum_mv, r.voltage_n, r.pf_sum_milli, r.pf_n, r.quality
    from hour_rollups r
    where r.meter_id = w.meter_id and r.started_at >= w.from_at and r.started_at < w.to_at
      and r.started_at >= %(first)s and r.started_at < %(last)s
    offset 0
) h
group by 1

-- desk_day_sums: local days of some meters put together
select h.day, count(*), sum(h.readings)::bigint, sum(h.import_wh)::bigint, sum(h.export_wh)::bigint,
       sum(h.estimated_wh)::bigint, min(h.voltage_min_mv), max(h.voltage_max_mv), sum(h.voltage_sum_mv)::bigint,
       sum(h.voltage_n)::bigint, sum(h.pf_sum_milli)::bigint, sum(h.pf_n)::bigint, max(h.quality), min(k.upto)
from unnest(%(meter_ids)s::integer[], %(froms)s::date[], %(tos)s::date[]) as w(meter_id, from_day, to_day)
left join rollup_marks k on k.meter_id = w.meter_id
cross join lateral (
    select r.day, r.readings, r.import_wh, r.export_wh, r.estimated_wh, r.voltage_min_mv, r.voltage_max_mv,
           r.voltage_sum_mv, r.voltage_n, r.pf_sum_milli, r.pf_n, r.quality
    from day_rollups r
    where r.meter_id = w.meter_id and r.day >= w.from_day and r.day < w.to_day
      and r.day >= %(first)s and r.day < %(last)s
    offset 0
) h
group by 1

-- desk_month_sums: calendar months of some meters put together
select h.month, count(*), sum(h.readings)::bigint, sum(h.import_wh)::bigint, sum(h.export_wh)::bigint,
       sum(h.estimated_wh)::bigint, min(h.voltage_min_mv), max(h.voltage_max_mv), sum(h.voltage_sum_mv)::bigint,
       sum(h.voltage_n)::bigint, sum(h.pf_sum_milli)::bigint, sum(h.pf_n)::bigint, max(h.quality), min(k.upto)
from unnest(%(meter_ids)s::integer[], %(froms)s::date[], %(tos)s::date[]) as w(meter_id, from_day, to_day)
left join rollup_marks k on k.meter_id = w.meter_id
cross join lateral (
    select r.month, r.readings, r.import_wh, r.export_wh, r.estimated_wh, r.voltage_min_mv, r.voltage_max_mv,
           r.voltage_sum_mv, r.voltage_n, r.pf_sum_milli, r.pf_n, r.quality
    from month_rollups r
    where r.meter_id = w.meter_id and r.month >= w.from_day and r.month < w.to_day
    offset 0
) h
group by 1

-- desk_points: a meter's curve of energy to date within a span, with the points next to it on both sides
with span as (
    select coalesce((select r.read_at from effective_readings r
                     where r.meter_id = %(meter_id)s and r.read_at <= %(first)s order by r.read_at desc limit 1),
                    %(first)s) as before_at,
           coalesce((select r.read_at from effective_readings r
                     where r.meter_id = %(meter_id)s and r.read_at >= %(last)s order by r.read_at limit 1),
                    %(last)s) as after_at
)
select c.read_at, c.import_wh + coalesce(
           (select s.start_wh - s.register_wh from register_segments s
            where s.meter_id = c.meter_id and date_trunc('milliseconds', s.from_at) <= c.read_at
            order by s.from_at desc limit 1),
           (select s.start_wh - s.register_wh from register_segments s
            where s.meter_id = c.meter_id order by s.from_at limit 1), 0) as wh,
       false as opens, c.export_wh, c.voltage_mv, c.pf_milli, c.edited,
       exists (select from reading_flags f
               where f.meter_id = c.meter_id and f.at = c.read_at and f.severity <> 'info'
                 and f.rule not in ('clock_drift', 'wrong_interval')
                 and f.day between c.read_at::date - 1 and c.read_at::date + 1) as suspect
from span
cross join lateral (
    select * from current_readings r
    where r.meter_id = %(meter_id)s and r.read_at >= span.before_at and r.read_at <= span.after_at
    offset 0
) c
union all
select date_trunc('milliseconds', s.from_at), s.start_wh, true, null, null, null, false, false
from register_segments s
where s.meter_id = %(meter_id)s and s.reason in ('installed', 'swap')
  and s.from_at >= least((select max(o.from_at) from register_segments o
                          where o.meter_id = s.meter_id and o.reason in ('installed', 'swap')
                            and o.from_at <= %(first)s),
                         %(first)s)
  and s.from_at < %(last)s
order by 1, 3 desc

-- desk_events: events of some meters, each within its window and after a code at its first instant
select w.meter_id, e.*
from unnest(%(meter_ids)s::integer[], %(froms)s::timestamptz[], %(tos)s::timestamptz[], %(codes)s::integer[])
         as w(meter_id, from_at, to_at, after_code)
cross join lateral (
    select v.at, v.code, v.received_at from meter_events v
    where v.meter_id = w.meter_id and (v.at, v.code) > (w.from_at, w.after_code) and v.at < w.to_at
    order by v.at, v.code limit %(most)s
) e
order by 1, 2, 3 limit %(most)s

-- desk_meters_listed: meters with where they stand now, or stood last
select m.id, m.serial as meter, m.make, m.model, m.rated_w, m.custody, i.role, a.number as account,
       u.code as usage_point, u.area, u.feeder, i.from_at as installed_at, s.relay, s.relay_at,
       k.upto as readings_until
from meters m
left join meter_state s on s.meter_id = m.id
left join rollup_marks k on k.meter_id = m.id
left join lateral (
    select * from installations p where p.meter_id = m.id and p.to_at is null limit 1
) i on true
left join usage_points u on u.id = i.usage_point_id
left join accounts a on a.usage_point_id = u.id
where m.id = any(%(ids)s)
  and (%(make)s::text is null or m.make = %(make)s)
  and (%(account)s::text is null or a.number = %(account)s)
  and (%(consumer)s::bigint is null or a.consumer_id = %(consumer)s)
  and (%(area)s::text is null or u.area = %(area)s)
  and (%(feeder)s::text is null or u.feeder = %(feeder)s)
  and (%(only_area)s::text is null or u.area = %(only_area)s)
order by m.id limit %(most)s

-- desk_account: an account's id by its number
select id from accounts where number = %(account)s

-- desk_accounts_of_consumer: a consumer's accounts
select id from accounts where consumer_id = %(consumer)s order by id

-- desk_accounts_of_meter: accounts that a meter bills or billed
select distinct a.id from meters m
join installations i on i.meter_id = m.id and i.role = 'billing'
join accounts a on a.usage_point_id = i.usage_point_id
where m.serial = %(meter)s order by 1

-- desk_accounts_after: the next accounts in id order
select id from accounts where id > %(after)s order by id limit %(most)s

-- desk_accounts_of_area: the next accounts of an area in id order
select a.id from usage_points u join accounts a on a.usage_point_id = u.id
where u.area = %(area)s and a.id > %(after)s order by 1 limit %(most)s

-- desk_accounts_of_feeder: the next accounts of a feeder in id order
select a.id from usage_points u join accounts a on a.usage_point_id = u.id
where u.feeder = %(feeder)s and u.feeder <> '' and a.id > %(after)s order by 1 limit %(most)s

-- desk_accounts_fitting: those of some accounts that fit everything that is asked for
select a.id from accounts a
join usage_points u on u.id = a.usage_point_id
where a.id = any(%(ids)s)
  and (%(account)s::text is null or a.number = %(account)s)
  and (%(consumer)s::bigint is null or a.consumer_id = %(consumer)s)
  and (%(area)s::text is null or u.area = %(area)s)
  and (%(feeder)s::text is null or u.feeder = %(feeder)s)
  and (%(only_area)s::text is null or u.area = %(only_area)s)
  and ((%(meter)s::text is null and %(make)s::text is null)
       or exists (select from installations i join meters m on m.id = i.meter_id
                  where i.usage_point_id = u.id and i.role = 'billing'
                    and (%(meter)s::text is null or m.serial = %(meter)s)
                    and (%(make)s::text is null or m.make = %(make)s)))
order by a.id

-- desk_accounts_listed: accounts with their terms of the first day that is not closed
select a.id, a.number as account, a.consumer_id as consumer, m.serial as meter, u.code as usage_point, u.area, u.feeder,
       x.category, x.tariff_id as tariff, x.load_w, a.mode, a.opened_on, a.threshold_minor,
       a.desired as supply_desired, s.relay as supply_reported
from accounts a
join usage_points u on u.id = a.usage_point_id
left join installations i on i.usage_point_id = u.id and i.role = 'billing' and i.to_at is null
left join meters m on m.id = i.meter_id
left join meter_state s on s.meter_id = m.id
left join lateral (
    select y.category, y.tariff_id, y.load_w from assignments y
    where y.account_id = a.id and y.replaced_by is null and y.from_day <= a.through order by y.from_day desc limit 1
) x on true
where a.id = any(%(ids)s) order by a.id

-- desk_charges: usage journals of some accounts, each after a journal: closed days by their day, others by when they were
-- booked
select j.account_id, j.id, a.number as account, j.kind, j.local_day as day, j.period, j.booked_at, j.from_wh, j.to_wh,
       j.energy_wh, coalesce((select sum(l.value::bigint) from jsonb_each_text(j.lines) l), 0)::bigint as charge_minor,
       j.lines, j.edge_quality as quality, j.reason
from unnest(%(account_ids)s::bigint[], %(afters)s::bigint[]) as w(account_id, after)
join accounts a on a.id = w.account_id
cross join lateral (
    select * from journals n
    where n.account_id = w.account_id and n.id > w.after and n.kind in ('day', 'late_usage', 'overhaul')
      and case when n.kind = 'day' then n.local_day >= %(first_day)s and n.local_day < %(last_day)s
               else n.booked_at >= %(first)s and n.booked_at < %(last)s end
    order by n.id limit %(most)s
) j
order by 1, 2 limit %(most)s

-- desk_charge_sums: usage of some accounts by bill part, or by calendar month of its days; lines of each journal
select w.account_id, (p.period - date '2000-01-01')::bigint as n, a.number as account, p.period, p.journals, p.energy_wh,
       p.lines
from unnest(%(account_ids)s::bigint[], %(afters)s::bigint[]) as w(account_id, after)
join accounts a on a.id = w.account_id
cross join lateral (
    select s.period, count(*) as journals, sum(s.energy_wh)::bigint as energy_wh, jsonb_agg(s.lines) as lines
    from (
        select n.energy_wh, n.lines,
               case when %(by_month)s then date_trunc('month', coalesce(n.local_day, n.period)::timestamp)::date
                    else n.period end as period
        from journals n
        where n.account_id = w.account_id and n.kind in ('day', 'late_usage', 'overhaul')
    ) s
    where s.period >= %(first_day)s and s.period < %(last_day)s and s.period - date '2000-01-01' > w.after
    group by s.period order by s.period limit %(most)s
) p
order by 1, 2 limit %(most)s

-- desk_similar: what other accounts of a category, load band and area used on some local days, as count and quartiles;
-- those that had one meter all the time and a bucket for each day
select count(*), percentile_disc(array[0.25, 0.5, 0.75]) within group (order by s.import_wh)
from (
    select d.import_wh
    from usage_points u
    join accounts a on a.usage_point_id = u.id
    join installations i on i.usage_point_id = u.id and i.role = 'billing'
         and i.from_at <= %(first_at)s and (i.to_at is null or i.to_at >= %(last_at)s)
    cross join lateral (
        select y.category, y.load_w from assignments y
        where y.account_id = a.id and y.replaced_by is null and y.from_day <= %(first)s
        order by y.from_day desc limit 1
    ) x
    cross join lateral (
        select sum(r.import_wh)::bigint as import_wh, count(*) as days from day_rollups r
        where r.meter_id = i.meter_id and r.day >= %(first)s and r.day < %(last)s
        offset 0
    ) d
    where u.area = %(area)s and a.id <> %(account_id)s and x.category = %(category)s
      and x.load_w > %(above_w)s and (%(to_w)s::integer is null or x.load_w <= %(to_w)s) and d.days = %(days)s
) s

-- desk_feeder: whether a feeder is there, and all of it in an area where one is named
select bool_and(%(only_area)s::text is null or area = %(only_area)s) from usage_points
where feeder = %(feeder)s and feeder <> ''

-- desk_feeder_days: local days of the meters at the head of a feeder
select r.day, r.import_wh, r.export_wh, r.quality
from (
    select f.meter_id, f.from_day, lead(f.from_day) over (order by f.from_day) as to_day
    from feeder_meters f where f.feeder = %(feeder)s
) f
cross join lateral (
    select d.day, d.import_wh, d.export_wh, d.quality from day_rollups d
    where d.meter_id = f.meter_id and d.day >= f.from_day and (f.to_day is null or d.day < f.to_day)
      and d.day >= %(first)s and d.day < %(last)s
    offset 0
) r
order by 1

-- desk_set_feeder_meter: a meter measures what goes into a feeder from a local day on
insert into feeder_meters (feeder, from_day, meter_id, set_by)
select %(feeder)s, %(from_day)s, m.id, %(set_by)s from meters m where m.serial = %(meter)s
on conflict do nothing
