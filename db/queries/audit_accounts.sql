-- audit_places: the accounts of the billing meters of an id range
select a.id, i.meter_id
from installations i join accounts a on a.usage_point_id = i.usage_point_id
where i.meter_id > %(after)s and i.meter_id <= %(upto)s and i.role = 'billing' and i.to_at is null
order by a.id

-- audit_places_of: some accounts and their billing meters
select a.id, i.meter_id
from accounts a
left join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
where a.id = any(%(ids)s) order by a.id

-- audit_unmetered: accounts without a billing meter
select a.id from accounts a
where not exists (select 1 from installations i
                  where i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null)
order by a.id

-- audit_recent_shards: shards that stored a batch within the time a crossing takes to settle
select distinct shard from (select shard, committed_at from batches order by id desc limit 10000) b
where committed_at > %(clock)s::timestamptz - %(settle_s)s * interval '1 second' and shard is not null

-- audit_waiting: those of some accounts that ingest has still to look at: asked for, or changed beside a recent batch
select account_id from rechecks where account_id = any(%(ids)s)
union
select f.account_id from change_feed f
join shard_leases l on l.role = 'ingest' and l.shard = f.shard
where f.shard = any(%(recent_shards)s::smallint[]) and f.account_id = any(%(ids)s) and f.xid >= l.feed_from

-- audit_accounts: what alarms and orders say of some accounts, and whether their meters are complete
select a.id, a.number, i.meter_id, i.complete, l.low_arms, l.exhausted_arms, f.further_arms, o.relay as ordered, o.state as order_state
from accounts a
left join lateral (
    select i.meter_id, exists (select 1 from register_segments s where s.meter_id = i.meter_id)
                       and exists (select 1 from meter_state s where s.meter_id = i.meter_id) as complete
    from installations i where i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null limit 1
) i on true
cross join lateral (
    select coalesce(array_agg(l.arm order by l.arm) filter (where l.level = 'low' and l.n = 0), '{}') as low_arms,
           coalesce(array_agg(l.arm order by l.arm) filter (where l.level = 'exhausted'), '{}') as exhausted_arms
    from alarms l where l.account_id = a.id
) l
cross join lateral (
    select coalesce(jsonb_object_agg(g.n, g.arms), '{}') as further_arms
    from (select x.n, jsonb_agg(x.arm order by x.arm) as arms from alarms x
          where x.account_id = a.id and x.level = 'low' and x.n > 0 group by x.n) g
) f
left join lateral (
    select o.relay, o.state from supply_orders o
    where o.meter_id = i.meter_id and o.kind = 'supply' order by o.epoch desc limit 1
) o on true
where a.id = any(%(ids)s)
order by a.id

-- audit_prepaid: the sum of the legs of some accounts
select j.account_id, sum(g.amount_minor)::bigint
from journals j join legs g on g.journal_id = j.id and g.ledger = 'prepaid'
where j.account_id = any(%(ids)s)
group by j.account_id

-- audit_postings: energy, days and order of the journals of some accounts
with own as (
    select account_id, id, kind, local_day, energy_wh, edge_quality,
           assessed_wh <> 0 and (kind <> 'overhaul' or correction_id is null) as undocumented,
           booked_at < lag(booked_at) over earlier as behind,
           kind = 'day' and local_day <= max(local_day) over (earlier rows between unbounded preceding and 1 preceding)
               as day_behind,
           greatest(local_day, period) > (booked_at at time zone %(zone)s)::date as ahead
    from journals where account_id = any(%(ids)s)
    window earlier as (partition by account_id order by id)
)
select account_id, count(*) as journals, sum(energy_wh)::bigint as energy_wh,
       count(*) filter (where kind = 'day') as days, min(local_day) as first_day, max(local_day) as last_day,
       coalesce(array_agg(local_day) filter (where kind = 'day' and edge_quality = 'unread'), '{}') as unread_days,
       count(*) filter (where behind) as behind, count(*) filter (where day_behind) as days_behind,
       count(*) filter (where ahead) as ahead,
       min(id) filter (where behind or day_behind or ahead) as first_out_of_order,
       count(*) filter (where undocumented) as undocumented, min(id) filter (where undocumented) as first_undocumented
from own group by account_id
