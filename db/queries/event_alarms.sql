-- standing_flags_of: what some meters' readings repeat
select meter_id, code, (extract(epoch from since) * 1000)::bigint, (extract(epoch from last_at) * 1000)::bigint
from standing_flags where meter_id = any(%(meter_ids)s)

-- save_flags: what readings repeat, as it stands now
insert into standing_flags (meter_id, code, since, last_at)
select * from unnest(%(meter_ids)s::integer[], %(codes)s::integer[], %(sinces)s::timestamptz[],
                     %(lasts)s::timestamptz[])
on conflict (meter_id, code) do update set since = excluded.since, last_at = excluded.last_at

-- end_flags: what readings no longer repeat is over, and so are its alarms; a page at most
with over as (
    delete from standing_flags f using (
        select meter_id, code from standing_flags where last_at < %(before)s
        order by last_at limit %(most)s for update skip locked
    ) o
    where f.meter_id = o.meter_id and f.code = o.code
    returning f.meter_id, f.code, f.last_at
), ended as (
    update event_alarms a set last_at = greatest(a.last_at, o.last_at), ended_at = greatest(a.last_at, o.last_at)
    from over o where a.meter_id = o.meter_id and a.code = o.code and a.ended_at is null and a.last_at <= o.last_at
)
select count(*) from over

-- moves_without_order: moves of load switches for which no order of ours was on its way; a token at the meter, its load
-- limit and a lever are such
select k.meter_id, (extract(epoch from k.at) * 1000)::bigint, k.code
from unnest(%(meter_ids)s::integer[], %(ats)s::timestamptz[], %(codes)s::integer[]) as k(meter_id, at, code)
where not exists (
    select 1 from supply_orders o
    where o.meter_id = k.meter_id and o.kind = 'supply' and o.sent_at is not null
      and (o.relay = 'off') = (k.code = %(opened)s)
      and k.at >= o.sent_at - %(slack_ms)s * interval '1 millisecond'
      and k.at <= greatest(o.sent_at, o.looked_at, o.published_at, o.confirmed_at)
                  + %(slack_ms)s * interval '1 millisecond'
)

-- ring_alarms: events that ring: again, where the same rings or has ended only just, else anew
with rung as (
    select * from unnest(%(meter_ids)s::integer[], %(codes)s::integer[], %(severities)s::text[],
                         %(firsts)s::timestamptz[], %(lasts)s::timestamptz[], %(times)s::integer[])
                  as r(meter_id, code, severity, first_at, last_at, times)
), same as (
    select r.*, a.id from rung r
    left join lateral (
        select a.id from event_alarms a
        where a.meter_id = r.meter_id and a.code = r.code
          and (a.ended_at is null
               or (a.ended_at >= r.first_at - %(within_ms)s * interval '1 millisecond' and a.first_at <= r.last_at))
        order by a.id desc limit 1
    ) a on true
), again as (
    update event_alarms a set times = a.times + s.times, first_at = least(a.first_at, s.first_at),
           last_at = greatest(a.last_at, s.last_at), ended_at = null
    from same s where a.id = s.id
)
insert into event_alarms (meter_id, area, code, severity, first_at, last_at, times)
select s.meter_id, coalesce(u.area, ''), s.code, s.severity, s.first_at, s.last_at, s.times
from same s
left join installations i on i.meter_id = s.meter_id and i.to_at is null
left join usage_points u on u.id = i.usage_point_id
where s.id is null

-- end_alarms: what rings and has its end after it, whichever came first
update event_alarms a set ended_at = e.at
from unnest(%(meter_ids)s::integer[], %(codes)s::integer[], %(ends)s::integer[]) as k(meter_id, code, end_code)
cross join lateral (
    select min(m.at) as at from meter_events m
    where m.meter_id = k.meter_id and m.code = k.end_code
      and m.at >= (select l.last_at from event_alarms l
                   where l.meter_id = k.meter_id and l.code = k.code and l.ended_at is null)
) e
where a.meter_id = k.meter_id and a.code = k.code and a.ended_at is null and e.at is not null

-- list_events: meter events, the latest that came first; before one that was seen already
select m.serial, e.at, e.code, e.received_at, e.meter_id
from meter_events e join meters m on m.id = e.meter_id
where (%(serial)s::text is null or m.serial = %(serial)s) and (%(codes)s::integer[] is null or e.code = any(%(codes)s))
  and e.at >= %(since)s and e.at < %(until)s
  and (%(before_at)s::timestamptz is null
       or (e.received_at, e.meter_id, e.at, e.code)
          < (%(before_at)s, %(before_meter)s::integer, %(before_event)s::timestamptz, %(before_code)s::integer))
order by e.received_at desc, e.meter_id desc, e.at desc, e.code desc limit %(most)s

-- list_alarms: alarms of events, the gravest and latest first; those of many meters of an area with the same code in one
-- line, with how many meters it is about and no meter's name
with found as (
    select a.*, m.serial,
           count(*) over (partition by a.area, a.code, a.meter_id is null, a.ended_at is null) as alike
    from event_alarms a left join meters m on m.id = a.meter_id
    where (%(severity)s::text is null or a.severity = %(severity)s) and (%(code)s::integer is null or a.code = %(code)s)
      and (%(serial)s::text is null or m.serial = %(serial)s) and (%(area)s::text is null or a.area = %(area)s)
      and (%(ended)s or a.ended_at is null) and (a.ended_at is null or a.ended_at >= %(since)s)
), grouped as (
    select *, a.meter_id is not null and a.ended_at is null and a.alike >= %(group_from)s and %(serial)s::text is null
              as is_group
    from found a
)
select max(id) as id, case when count(*) = 1 then max(serial) end as serial, area, code, severity,
       sum(meters)::integer as meters, sum(times)::bigint as times, min(first_at) as first_at, max(last_at) as last_at,
       case when bool_and(ended_at is not null) then max(ended_at) end as ended_at,
       case when bool_and(acknowledged_by is not null) then max(acknowledged_by) end as acknowledged_by,
       case when bool_and(acknowledged_by is not null) then max(acknowledged_at) end as acknowledged_at,
       case when count(*) = 1 then max(note) end as note, bool_or(meter_id is null) or bool_or(is_group) as of_area
from grouped
group by case when is_group then null else id end, area, code, severity
order by (severity = 'alarm') desc, max(last_at) desc, max(id) desc offset %(skip)s limit %(most)s

-- acknowledge_alarm: somebody has seen an alarm; one that nothing else can end is over by it
update event_alarms set acknowledged_by = %(by)s, acknowledged_at = clock_timestamp(), note = %(note)s,
       ended_at = case when ended_at is null and not (code = any(%(ending)s)) then greatest(last_at, clock_timestamp())
                       else ended_at end
where id = %(id)s and acknowledged_by is null
returning id

-- acknowledge_area: the same of all alarms of a code in an area that nobody has seen
update event_alarms set acknowledged_by = %(by)s, acknowledged_at = clock_timestamp(), note = %(note)s,
       ended_at = case when not (code = any(%(ending)s)) then greatest(last_at, clock_timestamp()) end
where area = %(area)s and code = %(code)s and ended_at is null and acknowledged_by is null

-- alarm_seen_by: who has seen an alarm
select acknowledged_by from event_alarms where id = %(id)s

-- raise_area_alarms: many meters of an area that are not heard of any more, which is one alarm
insert into event_alarms (area, meters, code, severity, first_at, last_at)
select u.area, count(*), %(code)s, 'alarm', min(c.heard_at), max(c.heard_at)
from meter_contacts c
join installations i on i.meter_id = c.meter_id and i.role = 'billing' and i.to_at is null
join usage_points u on u.id = i.usage_point_id
where c.silent and c.heard_at >= %(recent)s
group by u.area having count(*) >= %(meters_min)s
on conflict (area, code) where ended_at is null and meter_id is null
do update set meters = greatest(event_alarms.meters, excluded.meters), last_at = greatest(event_alarms.last_at, excluded.last_at)

-- end_area_alarms: areas of whose meters most are heard of again
with still as (
    select a.id, count(c.meter_id) as meters
    from event_alarms a
    left join usage_points u on u.area = a.area
    left join installations i on i.usage_point_id = u.id and i.role = 'billing' and i.to_at is null
    left join meter_contacts c on c.meter_id = i.meter_id and c.silent and c.heard_at >= a.first_at
    where a.code = %(code)s and a.meter_id is null and a.ended_at is null
    group by a.id
)
update event_alarms a set ended_at = greatest(a.last_at, %(now)s) from still s
where s.id = a.id and s.meters < %(meters_min)s
returning a.id

-- raise_silence: meters that are not heard of, but for those of an area that is lost as a whole
insert into event_alarms (meter_id, area, code, severity, first_at, last_at)
select c.meter_id, u.area, %(code)s, 'warning', greatest(c.heard_at, i.from_at), greatest(c.heard_at, i.from_at)
from meter_contacts c
join installations i on i.meter_id = c.meter_id and i.role = 'billing' and i.to_at is null
join usage_points u on u.id = i.usage_point_id
where c.silent
  and not exists (select 1 from event_alarms a where a.area = u.area and a.code = %(code)s
                  and a.meter_id is null and a.ended_at is null and a.first_at <= greatest(c.heard_at, i.from_at))
on conflict (meter_id, code) where ended_at is null do nothing

-- end_silence: meters that are heard of again, or have been taken away
update event_alarms a set ended_at = greatest(a.last_at, case when isfinite(c.heard_at) then c.heard_at end)
from meter_contacts c
where a.meter_id = c.meter_id and a.code = %(code)s and a.ended_at is null and not c.silent
