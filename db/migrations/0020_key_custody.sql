-- Custody of vending keys: who loaded which, by two people; what a security module has made on a day.

-- Which derivation a key is for: DKGA02 (8 bytes), DKGA03 (16) or DKGA04 (20), as the sealed key itself says by its length.
alter table vending_keys add column dkga smallint not null default 4 check (dkga in (2, 3, 4));

-- A vending key comes as two components, each known to one person. The first waits here, sealed, for the second; it is
-- erased when the load ends, whichever way.
create table key_loads (
    id bigint generated always as identity primary key,
    sgc text not null check (sgc ~ '^[0-9]{6}$'),
    krn smallint not null check (krn between 1 and 9),
    dkga smallint not null check (dkga in (2, 3, 4)),
    state text not null default 'waiting' check (state in ('waiting', 'complete', 'cancelled', 'lapsed')),
    component bytea,
    check_value text not null,
    begun_by text not null,
    begun_at timestamptz not null,
    lapses_at timestamptz not null,
    check ((state = 'waiting') = (component is not null))
);
create unique index key_loads_waiting on key_loads (sgc, krn) where state = 'waiting';

-- What was done to vending keys, for ever. `by` and `beside` are two people where two are needed.
create table key_events (
    id bigint generated always as identity primary key,
    at timestamptz not null,
    event text not null check (event in ('generated', 'begun', 'loaded', 'cancelled', 'lapsed', 'retired')),
    sgc text not null,
    krn smallint not null,
    dkga smallint not null,
    -- Of the component for a load that is begun or given up, else of the key.
    check_value text not null,
    by text not null,
    beside text,
    reason text
);
create trigger append_only before update or delete or truncate on key_events
    for each statement execute function refuse_change();
revoke update, delete on key_events from prepaid_app;

-- What processes have taken of a security module's limits of a local day: an upper bound of what it has made.
create table risk_days (
    module text not null,
    day date not null,
    tokens bigint not null default 0 check (tokens >= 0),
    -- Credit in currency, minor units.
    minor bigint not null default 0 check (minor >= 0),
    -- Credit in units: 0.1 kWh, 0.1 m3 or 0.1 minute.
    tenths bigint not null default 0 check (tenths >= 0),
    primary key (module, day)
);
