-- look_but_readings: accounts, their terms and meter as `look` reads them, without the points of their curves
select a.id, a.number, a.shard, a.mode, a.opened_on, a.emergency_credit_minor, a.threshold_minor, a.absent_until,
       a.posted_minor, a.charged_minor, a.through, a.before_wh, a.part_start_wh, a.closed_wh, a.closed_zones, a.demand_w,
       a.anchor_at, a.anchor_wh, a.anchor_zones,
       a.low_arm, a.low_raised, a.exhausted_arm, a.exhausted_raised, a.desired, a.version,
       t.from_days, t.tariffs, t.categories, t.loads_w, t.area_types, t.meter_rents, t.asks_demand,
       m.id as meter_id, m.serial, m.rated_w, m.register_end_wh, i.from_at as installed_at,
       s.relay, s.relay_at, u.area,
       g.segments, o.id as open_order_id, o.relay as open_order_relay, o.state as open_order_state
from accounts a
join usage_points u on u.id = a.usage_point_id
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
join meters m on m.id = i.meter_id
join meter_state s on s.meter_id = m.id
left join supply_orders o on o.meter_id = m.id and o.kind = 'supply' and o.state in ('pending', 'held', 'sent')
cross join lateral (
    select array_agg(x.from_day order by x.from_day) as from_days, array_agg(f.sha256 order by x.from_day) as tariffs,
           array_agg(x.category order by x.from_day) as categories, array_agg(x.load_w order by x.from_day) as loads_w,
           array_agg(x.area_type order by x.from_day) as area_types,
           array_agg(x.meter_rent order by x.from_day) as meter_rents, bool_or(f.asks_demand) as asks_demand
    from assignments x join tariffs f on f.id = x.tariff_id
    where x.account_id = a.id and x.replaced_by is null
) t
cross join lateral (
    select jsonb_agg(jsonb_build_array(
               (extract(epoch from r.from_at) * 1000)::bigint, r.register_wh, r.start_wh) order by r.from_at) as segments
    from register_segments r where r.meter_id = m.id
) g
where a.id = any(%(ids)s)

-- save_levels: what readings have changed of accounts: raised levels and desired supply
update accounts a set low_raised = k.low_raised, exhausted_raised = k.exhausted_raised, desired = k.desired,
    version = a.version + 1
from unnest(%(ids)s::bigint[], %(low_raised)s::boolean[], %(exhausted_raised)s::boolean[], %(desired)s::text[])
     as k(id, low_raised, exhausted_raised, desired)
where a.id = k.id

-- feed_accounts: tell the shards' owners that accounts changed
insert into change_feed (shard, account_id, version)
select * from unnest(%(shards)s::smallint[], %(ids)s::bigint[], %(versions)s::bigint[])

-- add_alarms: raise alarms, each once for its account, level and arm
insert into alarms (account_id, level, arm, level_minor, balance_minor)
select * from unnest(%(ids)s::bigint[], %(levels)s::text[], %(arms)s::integer[], %(level_minors)s::bigint[],
                     %(balance_minors)s::bigint[])

-- supersede_many: newer orders of a kind replace meters' open ones
update supply_orders set state = 'superseded'
where meter_id = any(%(meter_ids)s) and kind = %(kind)s and state in ('pending', 'held', 'sent')

-- add_orders: order something of meters, each under its next epoch
with epoch as (
    update meter_state set order_epoch = order_epoch + 1 where meter_id = any(%(meter_ids)s)
    returning meter_id, order_epoch
)
insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, level, balance_minor, threshold_minor,
                           cause, state)
select k.meter_id, k.account_id, k.shard, %(kind)s, e.order_epoch, k.relay, %(level)s, k.balance_minor,
       k.threshold_minor, %(cause)s, k.state
from unnest(%(meter_ids)s::integer[], %(ids)s::bigint[], %(shards)s::smallint[], %(relays)s::text[],
            %(balance_minors)s::bigint[], %(threshold_minors)s::bigint[], %(states)s::text[]) with ordinality
     as k(meter_id, account_id, shard, relay, balance_minor, threshold_minor, state, n)
join epoch e on e.meter_id = k.meter_id
order by k.n
returning meter_id, id

-- release_orders: let held orders go, since their meters were heard
update supply_orders set state = 'pending', next_try_at = '-infinity' where id = any(%(ids)s) and state = 'held'

-- wake_dispatchers: tell dispatchers at commit that there are orders
select pg_notify('orders', shard::text) from unnest(%(shards)s::smallint[]) shard

-- add_notices: write notices in the same transaction as their causes
insert into notices (account_id, kind, channel, body)
select k.account_id, k.kind, 'app', k.body
from unnest(%(ids)s::bigint[], %(kinds)s::text[], %(bodies)s::text[]) with ordinality as k(account_id, kind, body, n)
order by k.n
