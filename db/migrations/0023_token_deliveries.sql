-- Tokens as their meters saw them, and tokens that the head-end enters at a meter itself.

-- What meters say of tokens that were typed or pushed, each once. `token_id` is null for one that was not made here.
create table token_entries (
    meter_id integer not null references meters,
    -- By the meter's clock.
    at timestamptz(3) not null,
    last_digits text not null check (last_digits ~ '^[0-9]{4}$'),
    result text not null,
    tid integer,
    token_id bigint references tokens,
    received_at timestamptz not null default clock_timestamp(),
    primary key (meter_id, at, last_digits, result)
);
-- Tokens that moved a meter's copy of its balance, until the meter is told the account's. One row each, so that a batch
-- of readings that adds one waits for nobody who takes others.
create table local_credits (
    id bigint generated always as identity primary key,
    meter_id integer not null references meters,
    shard smallint not null
);
create index local_credits_by_shard on local_credits (shard, id);

-- A token that its meter has accepted, or knows as used, is delivered: once, whoever brought it.
create table token_deliveries (
    token_id bigint primary key references tokens,
    meter_id integer not null references meters,
    result text not null check (result in ('accepted', 'used')),
    entered_at timestamptz(3) not null,
    delivered_at timestamptz not null default clock_timestamp()
);
create index token_deliveries_by_meter on token_deliveries (meter_id);

-- An order to enter a token; several of one meter may be open, since each counts by its own TID.
alter table supply_orders add column token_id bigint references tokens;
alter table supply_orders drop constraint supply_orders_kind_check;
alter table supply_orders add constraint supply_orders_kind_check
    check (kind in ('supply', 'alarm', 'threshold', 'read', 'token'));
alter table supply_orders drop constraint balance_of_order;
alter table supply_orders add constraint balance_of_order check ((kind in ('read', 'token')) = (balance_minor is null));
alter table supply_orders add constraint token_of_order check ((kind = 'token') = (token_id is not null));
drop index one_open_order;
create unique index one_open_order on supply_orders (meter_id, kind)
    where state in ('pending', 'held', 'sent') and kind <> 'token';
create unique index one_order_of_token on supply_orders (token_id) where state in ('pending', 'held', 'sent');
drop index messages_due;
create index messages_due on supply_orders (shard, next_try_at)
    where kind in ('alarm', 'threshold', 'token') and state in ('pending', 'sent');
