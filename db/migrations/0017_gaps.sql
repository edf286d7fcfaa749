-- Gaps in a meter's readings, and orders to meters to send stored readings again.

-- Seconds between a meter's readings: told at its registration, or learnt from what it sends. Null: not known yet.
alter table meters add column if not exists interval_s integer check (interval_s between 1 and 86400);
-- Whether the meter obeys an order to send its stored readings again.
alter table meters add column can_read_again boolean not null default true;

-- Spans between two readings of a meter in which others should have come, both ends stored. `noted` by ingest from what
-- is known of the interval; `open` when looked at; `asked` while an order for it is on its way or being answered.
create table gaps (
    id bigint generated always as identity primary key,
    meter_id integer not null,
    shard smallint not null,
    from_at timestamptz(3) not null,
    to_at timestamptz(3) not null,
    state text not null default 'noted' check (state in ('noted', 'open', 'asked', 'filled', 'given_up')),
    -- Intervals missing when last looked at.
    missing integer not null,
    order_id bigint references supply_orders,
    asks smallint not null default 0,
    -- Of the orders asked: those answered after which something was missing still.
    answers smallint not null default 0,
    noted_at timestamptz not null default clock_timestamp(),
    look_at timestamptz not null default clock_timestamp(),
    -- No order before this: a meter that comes back sends what it has kept by itself.
    ask_at timestamptz not null default clock_timestamp() + interval '5 minutes',
    closed_at timestamptz,
    check (from_at < to_at),
    check ((state in ('filled', 'given_up')) = (closed_at is not null)),
    unique (meter_id, from_at)
) with (fillfactor = 70);
create index gaps_due on gaps (look_at) include (shard) where state in ('noted', 'open', 'asked');
create index gaps_live on gaps (meter_id) where state in ('noted', 'open', 'asked');
create index gaps_closed on gaps (closed_at) where closed_at is not null;

-- An order to read carries no balance: the meter's copy must not be set back by an old one.
alter table supply_orders alter column balance_minor drop not null;
alter table supply_orders drop constraint supply_orders_kind_check;
alter table supply_orders add constraint supply_orders_kind_check check (kind in ('supply', 'alarm', 'threshold', 'read'));
alter table supply_orders add column read_from timestamptz(3), add column read_to timestamptz(3);
alter table supply_orders add constraint span_of_read
    check (num_nulls(read_from, read_to) = case when kind = 'read' then 0 else 2 end and read_from <= read_to);
alter table supply_orders add constraint balance_of_order check ((kind = 'read') = (balance_minor is null));
-- Orders to read have a lane of their own behind all others.
drop index messages_due;
create index messages_due on supply_orders (shard, next_try_at)
    where kind in ('alarm', 'threshold') and state in ('pending', 'sent');
create index reads_due on supply_orders (shard, next_try_at) where kind = 'read' and state in ('pending', 'sent');
create index reads_open on supply_orders (area) where kind = 'read' and state in ('pending', 'sent');
