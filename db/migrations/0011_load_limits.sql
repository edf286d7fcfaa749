-- A load limit is no cut-off: it waits for the hours of its scheme, but not for the limits of an area. Its orders are
-- found in a lane of their own, so that 100,000 of them at an opening cost nothing to a restore or a cut-off.
drop index cut_offs_due;
create index cut_offs_due on supply_orders (area, next_try_at, id) include (shard)
    where relay = 'off' and state in ('pending', 'sent');
create index load_limits_due on supply_orders (shard, next_try_at)
    where relay = 'limited' and state in ('pending', 'sent');
