-- claim_accounts: lock those accounts that nobody else holds, never waiting, and tell which version they are
select id, number, version from accounts where id = any(%(ids)s) order by id for no key update skip locked

-- orders_open_at: what meters were ordered and have not confirmed; of locked accounts no other comes
select account_id, kind, id, relay, state from supply_orders
where meter_id = any(%(meter_ids)s) and state in ('pending', 'held', 'sent')

-- save_levels: what readings have changed of accounts, raised levels and desired supply, told to their shards' owners
with saved as (
    update accounts a set low_raised = k.low_raised, exhausted_raised = k.exhausted_raised,
        exhausted_at = k.exhausted_at, desired = k.desired, version = a.version + 1
    from unnest(%(ids)s::bigint[], %(shards)s::smallint[], %(low_raised)s::boolean[], %(exhausted_raised)s::boolean[],
                %(exhausted_ats)s::timestamptz[], %(desired)s::text[])
         as k(id, shard, low_raised, exhausted_raised, exhausted_at, desired)
    where a.id = k.id
    returning k.shard, a.id, a.version
)
insert into change_feed (shard, account_id, version) select * from saved

-- add_alarms: raise alarms, each once for its account, level, threshold and arm
insert into alarms (account_id, level, n, arm, level_minor, balance_minor)
select * from unnest(%(ids)s::bigint[], %(levels)s::text[], %(ns)s::smallint[], %(arms)s::integer[], %(level_minors)s::bigint[],
                     %(balance_minors)s::bigint[])

-- supersede_many: newer orders of a kind replace meters' open ones
update supply_orders o set state = 'superseded'
from unnest(%(meter_ids)s::integer[], %(kinds)s::text[]) as k(meter_id, kind)
where o.meter_id = k.meter_id and o.kind = k.kind and o.state in ('pending', 'held', 'sent')

-- add_orders: order something of meters, each under its next epoch, and tell dispatchers at commit that there are orders
with wanted as (
    select k.*, row_number() over (partition by k.meter_id order by k.n) as place
    from unnest(%(meter_ids)s::integer[], %(kinds)s::text[], %(ids)s::bigint[], %(shards)s::smallint[],
                %(relays)s::text[], %(limits_w)s::integer[], %(balance_minors)s::bigint[], %(threshold_minors)s::bigint[], %(states)s::text[])
         with ordinality as k(meter_id, kind, account_id, shard, relay, limit_w, balance_minor,
                           threshold_minor, state, n)
),
epoch as (
    update meter_state m set order_epoch = m.order_epoch + w.number
    from (select meter_id, count(*) as number from wanted group by meter_id) w
    where m.meter_id = w.meter_id
    returning m.meter_id, m.order_epoch - w.number as before
),
added as (
    insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, limit_w, level, balance_minor,
                               threshold_minor, cause, state)
    select w.meter_id, w.account_id, w.shard, w.kind, e.before + w.place, w.relay, w.limit_w,
           case w.kind when 'alarm' then 'low' end, w.balance_minor, w.threshold_minor,
           case w.kind when 'alarm' then 'alarm' else %(cause)s end, w.state
    from wanted w join epoch e on e.meter_id = w.meter_id
    order by w.n
    returning meter_id, kind, id, shard
)
select meter_id, kind, id, pg_notify('orders', shard::text) from added

-- release_orders: let held orders go, since their meters were heard
with released as (
    update supply_orders set state = 'pending', next_try_at = '-infinity' where id = any(%(ids)s) and state = 'held'
    returning shard
)
select pg_notify('orders', shard::text) from released
