-- Several balances to be warned at, and a load limit in the place of a cut-off where the meter can.

-- What a consumer wants to be warned by, as asked for, and the balance that it means now. The first amount stands in
-- accounts.threshold_minor, which the meter keeps; these are the further ones, counted from 1.
create table alarm_thresholds (
    account_id bigint not null references accounts,
    n smallint not null check (n between 1 and 9),
    kind text not null check (kind in ('amount', 'days', 'percent')),
    -- Minor units, days left at present use, percent of the last recharge.
    value bigint not null check (value >= 0),
    -- Null while it is not known: no recharge yet, too few days of use.
    level_minor bigint,
    arm integer not null default 1,
    raised boolean not null default false,
    primary key (account_id, n)
);
create index thresholds_by_days on alarm_thresholds (account_id) where kind = 'days';

alter table alarms add column n smallint not null default 0;
alter table alarms drop constraint alarms_account_id_level_arm_key;
alter table alarms add constraint one_alarm unique (account_id, level, n, arm);

alter table meters add column can_limit boolean not null default false;
alter table meter_state drop constraint meter_state_relay_check;
alter table meter_state add constraint meter_state_relay_check check (relay in ('on', 'limited', 'off'));
alter table supply_orders drop constraint supply_orders_relay_check;
alter table supply_orders add constraint supply_orders_relay_check check (relay in ('on', 'limited', 'off'));
alter table supply_orders add column limit_w integer check (limit_w > 0);
alter table supply_orders add constraint limit_of_limited check ((limit_w is not null) = (relay is not distinct from 'limited'));
