-- Orders that converge: cut-offs limited by area, orders that wait and say for what, the same state ordered again.

-- How commands reach a meter; a dispatcher needs a port of that name.
alter table meters add column transport text not null default 'mqtt' check (transport ~ '^[a-z0-9_]{1,32}$');

alter table supply_orders
    -- Of a cut-off: the usage point's when it was written; cut-offs are limited by it.
    add column area text not null default '',
    -- When a dispatcher last sent the order or put it off. Later than now: the clock was set back meanwhile.
    add column looked_at timestamptz,
    -- What the dispatcher last put the order off for: the scheme's hours, a port for the meter's transport, the meter's
    -- other command in flight, or time since the same was ordered of a meter that contradicts it.
    add column waits_for text check (waits_for in ('hours', 'transport', 'lane', 'contradicting')),
    -- The meter answered that it had done this very order, and named the other position of its relay.
    add column contradicted_at timestamptz;
update supply_orders o set area = u.area
from accounts a join usage_points u on u.id = a.usage_point_id
where a.id = o.account_id and o.state in ('pending', 'held', 'sent') and u.area <> '';

-- Whoever writes a cut-off cannot leave its area out and so evade the limits. Sessions ask for a plan of its own for
-- every statement: 180 microseconds a row, against 10 with a plan that is kept (2026-11-22).
create function know_area_of_order() returns trigger language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    new.area := coalesce((select u.area from accounts a join usage_points u on u.id = a.usage_point_id
                          where a.id = new.account_id), '');
    return new;
end $$;
create trigger knows_area before insert on supply_orders for each row when (new.relay <> 'on')
    execute function know_area_of_order();

-- What is due is found in its own lane, so that 100,000 cut-offs held back cost nothing to a restore.
drop index orders_due, cut_offs_sent;
create index restores_due on supply_orders (shard, next_try_at)
    where relay = 'on' and state in ('pending', 'sent');
create index cut_offs_due on supply_orders (area, next_try_at, id) include (shard)
    where relay <> 'on' and state in ('pending', 'sent');
create index messages_due on supply_orders (shard, next_try_at)
    where kind <> 'supply' and state in ('pending', 'sent');
-- Success by make over the last hours.
create index supply_sent on supply_orders (sent_at) where kind = 'supply';

-- Areas that were ever cut off in. A dispatcher locks an area's row before it counts and sends.
create table cut_off_areas (
    area text primary key,
    -- The hour's count begins here: at the last release.
    counted_from timestamptz not null default '-infinity'
);

-- Cut-off commands that left, by area and ten seconds.
create table cut_off_counts (
    area text not null references cut_off_areas,
    at timestamptz not null,
    sent integer not null,
    primary key (area, at)
);

-- What an operator has to see: an area whose cut-offs wait for the minute's limit (`capped`, ends by itself), or for
-- somebody to release them, since the hour's was reached (`held`).
create table supply_alarms (
    id bigint generated always as identity primary key,
    area text not null references cut_off_areas,
    kind text not null check (kind in ('capped', 'held')),
    raised_at timestamptz not null default clock_timestamp(),
    -- Cut-offs that had left within the minute or hour, and the limit.
    sent integer not null,
    most integer not null,
    ended_at timestamptz,
    ended_by text check (ended_by <> ''),
    reason text check (reason <> ''),
    check (num_nulls(ended_by, reason) in (0, 2)),
    check (ended_at is not null or ended_by is null),
    check (kind = 'capped' or ended_at is null or ended_by is not null)
);
create unique index one_open_supply_alarm on supply_alarms (area, kind) where ended_at is null;

-- Where the meter's word may differ from what is desired: meters that report no supply, accounts that should have none.
create index meters_off on meter_state (meter_id) where relay <> 'on';
create index accounts_off on accounts (id) where desired <> 'on';
