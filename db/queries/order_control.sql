-- supply_matrix: supply desired of accounts against what their meters report
select a.desired, coalesce(s.relay, 'unknown'), count(*)
from accounts a
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
join meter_state s on s.meter_id = i.meter_id
group by 1, 2 order by 1, 2

-- open_orders: orders that no meter has confirmed, by kind, relay, state and what they wait for
select o.kind, o.relay, o.state,
       case when o.state = 'held' then 'reading' when o.next_try_at > clock_timestamp() then o.waits_for end as waits_for,
       count(*), extract(epoch from max(clock_timestamp() - o.created_at))::bigint as oldest_s
from supply_orders o
where o.state in ('pending', 'held', 'sent')
group by 1, 2, 3, 4 order by 1, 2, 3, 4

-- differing_orders: open supply orders whose meter reports another position than ordered
select count(*)
from supply_orders o join meter_state s on s.meter_id = o.meter_id
where o.kind = 'supply' and o.state in ('pending', 'held', 'sent') and coalesce(s.relay, 'on') <> o.relay

-- oldest_unconfirmed: the supply orders sent first of all that no meter has confirmed yet
select m.serial, m.make, o.id, o.relay, o.area, o.attempts, o.cause,
       extract(epoch from clock_timestamp() - o.created_at)::bigint as age_s
from (
    select id from supply_orders where kind = 'supply' and state = 'sent' order by id limit %(most)s
) k
join supply_orders o on o.id = k.id
join meters m on m.id = o.meter_id
order by o.id

-- success_by_make: supply orders first sent in the last hours, by make: confirmed, superseded, open,
-- not possible for the make, and how long it took
select m.make, count(*) as sent, count(*) filter (where o.state = 'confirmed') as confirmed,
       count(*) filter (where o.state = 'superseded') as superseded,
       count(*) filter (where o.state in ('pending', 'held', 'sent') and o.waits_for is distinct from 'impossible') as open,
       count(*) filter (where o.state = 'impossible' or (o.state = 'pending' and o.waits_for = 'impossible')) as impossible,
       count(*) filter (where o.cause = 'reported') as again,
       (percentile_disc(0.5) within group (order by t.ms) filter (where o.state = 'confirmed'))::bigint as median_ms,
       (percentile_disc(0.95) within group (order by t.ms) filter (where o.state = 'confirmed'))::bigint as p95_ms
from supply_orders o
join meters m on m.id = o.meter_id
cross join lateral (select (extract(epoch from o.confirmed_at - o.sent_at) * 1000)::bigint as ms) t
where o.kind = 'supply' and o.sent_at > clock_timestamp() - %(hours)s * interval '1 hour'
group by m.make order by m.make

-- limited_areas: areas whose cut-offs a limit holds back now, and how many wait
select l.area, l.kind, l.raised_at, l.sent, l.most,
       (select count(*) from supply_orders o
        where o.area = l.area and o.relay = 'off' and o.state in ('pending', 'sent')
          and o.next_try_at <= clock_timestamp()) as waiting
from supply_alarms l where l.ended_at is null
order by l.kind desc, l.area

-- limited_area_counts: how many areas' cut-offs a limit holds back now
select kind, count(*) from supply_alarms where ended_at is null group by kind

-- ended_supply_alarms: the latest that ended, and who released
select area, kind, raised_at, sent, most, ended_at, ended_by, reason
from supply_alarms where ended_at is not null order by ended_at desc, id desc limit %(most)s

-- list_orders: orders, the newest first; of a meter, in a state, held back for a reason
select o.id, m.serial, o.kind, o.relay, o.level, o.state, o.epoch, o.area, o.cause, o.attempts, o.created_at, o.sent_at,
       o.published_at, o.confirmed_at, o.contradicted_at,
       case when o.state = 'held' then 'reading'
            when o.state in ('pending', 'sent') and o.next_try_at > clock_timestamp() then o.waits_for end as waits_for,
       case when o.state in ('pending', 'sent') and isfinite(o.next_try_at) then o.next_try_at end as next_try_at
from supply_orders o join meters m on m.id = o.meter_id
where (%(serial)s::text is null or m.serial = %(serial)s) and (%(states)s::text[] is null or o.state = any(%(states)s)
       or ('impossible' = any(%(states)s) and o.state = 'pending' and o.waits_for = 'impossible'))
  and (%(area)s::text is null or o.area = %(area)s)
order by o.id desc limit %(most)s

-- held_orders: cut-offs that wait: for a fresh reading, for hours, for a transport, after a contradiction
select o.id, m.serial, o.kind, o.relay, o.level, o.state, o.epoch, o.area, o.cause, o.attempts, o.created_at, o.sent_at,
       o.published_at, o.confirmed_at, o.contradicted_at,
       case when o.state = 'held' then 'reading' else o.waits_for end as waits_for,
       case when o.state <> 'held' and isfinite(o.next_try_at) then o.next_try_at end as next_try_at
from supply_orders o join meters m on m.id = o.meter_id
where o.kind = 'supply' and (%(area)s::text is null or o.area = %(area)s)
  and (o.state = 'held'
       or (o.state in ('pending', 'sent') and o.waits_for is not null and o.next_try_at > clock_timestamp()))
order by o.id limit %(most)s

-- lock_area: an area that is to be released, with nobody counting in it
select area from cut_off_areas where area = %(area)s for no key update

-- end_hold: an operator lets the cut-offs of an area go
update supply_alarms set ended_at = clock_timestamp(), ended_by = %(by)s, reason = %(reason)s
where area = %(area)s and kind = 'held' and ended_at is null
returning raised_at, sent, most

-- count_anew: from a release on, the hour's count begins again
update cut_off_areas set counted_from = clock_timestamp() where area = %(area)s

-- waiting_cut_offs: how many cut-offs of an area are due
select count(*) from supply_orders
where area = %(area)s and relay = 'off' and state in ('pending', 'sent') and next_try_at <= clock_timestamp()
