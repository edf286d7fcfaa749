-- batch_outcomes: what all batches so far made of what they received
select coalesce(sum(received), 0)::bigint, coalesce(sum(stored), 0)::bigint, coalesce(sum(duplicate), 0)::bigint,
       coalesce(sum(rejected), 0)::bigint, coalesce(sum(quarantined), 0)::bigint
from batches

-- make_sent_keys: the keys that a replay has sent, for this session
create temporary table sent_keys (meter_id integer not null, serial text not null, read_at timestamptz(3) not null)

-- copy_sent_keys: fill them
copy sent_keys (meter_id, serial, read_at) from stdin (format binary)

-- analyze_sent_keys: let the planner know how many there are
analyze sent_keys

-- count_lost: keys that were sent and are in neither table
select count(*) from sent_keys s
where not exists (select 1 from readings r where r.meter_id = s.meter_id and r.read_at = s.read_at)
  and not exists (select 1 from quarantine q where q.serial = s.serial and q.read_at = s.read_at)

-- meter_ids: meters by serial
select m.serial, m.id, a.id from meters m
join installations i on i.meter_id = m.id and i.to_at is null join accounts a on a.usage_point_id = i.usage_point_id
where m.serial = any(%(serials)s)

-- count_events: alarms, cut-offs and restores of some accounts
select (select count(*) from alarms where account_id = any(%(ids)s)),
       (select count(*) from supply_orders where account_id = any(%(ids)s) and kind = 'supply' and relay = 'off'),
       (select count(*) from supply_orders where account_id = any(%(ids)s) and kind = 'supply' and relay = 'on')

-- account_bills: what journals have booked for some accounts, by bill part and line
select j.account_id, j.period, e.key, sum(e.value::bigint)::bigint
from journals j cross join lateral jsonb_each_text(j.lines) e
where j.account_id = any(%(ids)s) and j.period is not null
group by j.account_id, j.period, e.key

-- account_energy: energy that journals have booked for some accounts, by bill part
select j.account_id, j.period, sum(j.energy_wh + j.assessed_wh)::bigint
from journals j where j.account_id = any(%(ids)s) and j.period is not null
group by j.account_id, j.period

-- readings_there: how many of some meters have a reading at an instant
select count(*) from meters m join readings r on r.meter_id = m.id
where m.serial = any(%(serials)s) and r.read_at = %(at)s

-- alarm_there: whether an account has had an alarm of a level
select exists (select 1 from alarms where account_id = %(account_id)s and level = %(level)s)

-- order_confirmed: whether a meter has confirmed its latest supply order, and that it was this one
select coalesce((
    select o.relay = %(relay)s and o.state = 'confirmed' from supply_orders o
    where o.meter_id = %(meter_id)s and o.kind = 'supply' order by o.epoch desc limit 1), false)

-- order_delays: seconds from writing a supply order to its publication
select extract(epoch from published_at - created_at)::float8 from supply_orders
where kind = 'supply' and relay = %(relay)s and published_at is not null order by 1
