-- What meters notice and what each day brings, told to consumers once.

-- Power that has failed and was not back when that was stored: told once it has lasted a while, forgotten then.
create table outages_to_tell (
    meter_id integer not null references meters,
    since timestamptz(3) not null,
    primary key (meter_id, since)
);
create index outages_to_tell_by_since on outages_to_tell (since);

-- What an account was told of its meter's events lately: the same again within minutes is not told.
create index notices_of_events on notices (account_id, created_at) where kind in ('tamper', 'outage', 'restored_power');

-- The last of each kind that close-day has told an account: of which recharge the forecast was, of which month the
-- statement. One row an account and kind, so that the table does not grow with the years.
create table daily_notices (
    account_id bigint not null references accounts,
    kind text not null check (kind in ('forecast', 'statement_ready')),
    period_key text not null,
    told_at timestamptz not null default clock_timestamp(),
    primary key (account_id, kind)
) with (fillfactor = 80);

-- A month's end brings a statement for every account: nobody's cut-off waits behind them.
drop index notices_to_plan;
create index notices_to_plan on notices ((kind in ('forecast', 'statement_ready')), id) where planned_at is null;
