-- accounts_at_meters: accounts that meters are installed for, by meter
select i.meter_id, a.id
from installations i join accounts a on a.usage_point_id = i.usage_point_id
where i.meter_id = any(%(meter_ids)s) and i.role = 'billing' and i.to_at is null

-- power_events_beside: of each failure or return of power what came directly after the failure or before the return;
-- what is more than 30 days off belongs to no outage
select e.meter_id, (extract(epoch from e.at) * 1000)::bigint, e.code,
       (extract(epoch from n.at) * 1000)::bigint, n.code
from unnest(%(meter_ids)s::integer[], %(ats)s::timestamptz[], %(codes)s::integer[]) as e(meter_id, at, code)
left join lateral (
    (select m.at, m.code from meter_events m
     where e.code = %(back)s and m.meter_id = e.meter_id and m.at < e.at and m.at > e.at - interval '30 days'
       and m.code in (%(failed)s, %(back)s)
     order by m.at desc limit 1)
    union all
    (select m.at, m.code from meter_events m
     where e.code = %(failed)s and m.meter_id = e.meter_id and m.at > e.at and m.at < e.at + interval '30 days'
       and m.code in (%(failed)s, %(back)s)
     order by m.at limit 1)
) n on true

-- note_outages: failures of power that are told of if they last
insert into outages_to_tell (meter_id, since)
select * from unnest(%(meter_ids)s::integer[], %(sinces)s::timestamptz[])
on conflict do nothing

-- take_outages: failures of power that have lasted, each taken by one process
delete from outages_to_tell o
using (
    select meter_id, since from outages_to_tell where since <= %(until)s
    order by since limit %(most)s for update skip locked
) d
where o.meter_id = d.meter_id and o.since = d.since
returning o.meter_id, (extract(epoch from o.since) * 1000)::bigint

-- events_told_lately: what some accounts were told of their meters; an event is told within a day or not at all
select account_id, kind, facts from notices
where account_id = any(%(account_ids)s) and kind in ('tamper', 'outage', 'restored_power')
  and created_at > clock_timestamp() - interval '25 hours'
