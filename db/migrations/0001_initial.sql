-- The first schema. One transaction; forward only.

-- Who and where -----------------------------------------------------------------------------------------------------

create table consumers (
    id bigint generated always as identity primary key,
    name text not null,
    language text not null default 'en',
    created_at timestamptz not null default now()
);

create table contacts (
    consumer_id bigint not null references consumers,
    kind text not null check (kind in ('phone', 'email')),
    address text not null,
    verified_at timestamptz,
    primary key (consumer_id, kind, address)
);

create table usage_points (
    id bigint generated always as identity primary key,
    code text not null unique,
    area text not null default '',
    feeder text not null default ''
);

-- Meters --------------------------------------------------------------------------------------------------------------

create table meters (
    id integer generated always as identity primary key,
    serial text not null unique check (serial ~ '^[A-Za-z0-9_-]{1,32}$'),
    shard smallint not null check (shard between 0 and 31),
    make text not null default '',
    model text not null default '',
    rated_w integer not null check (rated_w > 0),
    -- The register rolls over to 0 at this many Wh.
    register_end_wh bigint not null check (register_end_wh > 0),
    custody text not null default 'licensee' check (custody in ('consumer', 'licensee')),
    -- STS identity and key record (IEC 62055-41): what a point of sale must hold for the meter.
    drn text unique check (drn ~ '^([0-9]{11}|[0-9]{13})$'),
    ea smallint,
    dkga smallint,
    sgc text check (sgc ~ '^[0-9]{6}$'),
    key_type smallint check (key_type between 0 and 3),
    krn smallint check (krn between 1 and 9),
    tariff_index text check (tariff_index ~ '^[0-9]{2}$'),
    ken smallint check (ken between 0 and 255),
    base_year smallint check (base_year in (1993, 2014, 2035)),
    check (drn is null or num_nulls(ea, dkga, sgc, key_type, krn, tariff_index, ken, base_year) = 0)
);

-- What changes about a meter without being money. One row a meter, changed under its account's lock or by its shard's
-- owner.
create table meter_state (
    meter_id integer primary key references meters,
    order_epoch bigint not null default 0,
    last_tid integer,
    relay text check (relay in ('on', 'off')),
    relay_at timestamptz
) with (fillfactor = 70);

create table installations (
    id bigint generated always as identity primary key,
    usage_point_id bigint not null references usage_points,
    meter_id integer not null references meters,
    role text not null check (role in ('billing', 'check')),
    from_at timestamptz not null,
    to_at timestamptz check (to_at > from_at)
);
create unique index one_billing_meter on installations (usage_point_id) where role = 'billing' and to_at is null;
create unique index one_place_per_meter on installations (meter_id) where to_at is null;

-- Energy to date of a reading = start_wh + (register - register_wh) of the latest segment at or before it.
create table register_segments (
    meter_id integer not null references meters,
    from_at timestamptz not null,
    register_wh bigint not null check (register_wh >= 0),
    start_wh bigint not null check (start_wh >= 0),
    reason text not null check (reason in ('installed', 'rollover', 'reset', 'swap')),
    primary key (meter_id, from_at)
);

-- Money -----------------------------------------------------------------------------------------------------------------

create table tariffs (
    id text primary key,
    document text not null,
    sha256 text not null,
    added_at timestamptz not null default now()
);

-- An account row is a checkpoint of its money, and its alarm and supply state. The running balance is posted_minor less
-- the charge of the readings since.
create table accounts (
    id bigint generated always as identity primary key,
    number text not null unique check (number ~ '^[A-Za-z0-9_-]{1,32}$'),
    consumer_id bigint not null references consumers,
    usage_point_id bigint not null unique references usage_points,
    shard smallint not null check (shard between 0 and 31),
    mode text not null default 'prepaid' check (mode in ('prepaid', 'postpaid')),
    postpaid_approval text,
    category text not null default 'DS',
    tariff_id text not null references tariffs,
    sanctioned_load_w integer not null check (sanctioned_load_w > 0),
    opened_on date not null,
    emergency_credit_minor bigint not null default 0 check (emergency_credit_minor >= 0),
    threshold_minor bigint check (threshold_minor >= 0),
    -- The checkpoint (billing.running.Checkpoint); the anchor is the last point of the curve at or before it.
    posted_minor bigint not null default 0,
    through date not null,
    period_start_wh bigint not null default 0,
    closed_wh bigint not null default 0,
    charged jsonb not null default '{}',
    anchor_at timestamptz not null,
    anchor_wh bigint not null default 0,
    -- Alarm levels and desired supply (billing.supply.Levels).
    low_arm integer not null default 1,
    low_raised boolean not null default false,
    exhausted_arm integer not null default 1,
    exhausted_raised boolean not null default false,
    desired text not null default 'on' check (desired in ('on', 'off')),
    version bigint not null default 1,
    -- A postpaid account is an exception that somebody approved (R-13).
    check (mode = 'prepaid' or postpaid_approval is not null)
) with (fillfactor = 70);

create table journals (
    id bigint generated always as identity primary key,
    kind text not null check (kind in ('opening', 'vend', 'reversal', 'adjustment', 'day', 'late_usage')),
    account_id bigint not null references accounts,
    -- day: the local day closed; others: null.
    local_day date,
    -- The billing period that a usage journal belongs to.
    period date,
    from_wh bigint,
    to_wh bigint,
    energy_wh bigint not null default 0,
    edge_quality text check (edge_quality in ('read', 'estimated', 'unread')),
    reason text,
    booked_at timestamptz not null default clock_timestamp(),
    check ((kind = 'day') = (local_day is not null)),
    check ((kind in ('day', 'late_usage')) = (period is not null))
);
create unique index one_day_journal on journals (account_id, local_day) where kind = 'day';
create index journals_by_account on journals (account_id, id);

create table legs (
    journal_id bigint not null references journals,
    n smallint not null,
    ledger text not null,
    line text not null default '',
    amount_minor bigint not null,
    primary key (journal_id, n)
);

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'table % is append-only: % refused', tg_table_name, tg_op using errcode = 'insufficient_privilege';
end $$;
create trigger append_only before update or delete or truncate on journals
    for each statement execute function refuse_change();
create trigger append_only before update or delete or truncate on legs
    for each statement execute function refuse_change();

-- Readings --------------------------------------------------------------------------------------------------------------

-- One row per meter and instant; never updated. Partitions are one UTC day each, made ahead by db.partitions.
create table readings (
    meter_id integer not null,
    read_at timestamptz(3) not null,
    import_wh bigint not null,
    export_wh bigint,
    voltage_mv integer,
    current_ma integer,
    power_w integer,
    pf_milli integer,
    freq_mhz integer,
    primary key (meter_id, read_at)
) partition by range (read_at);

create table meter_events (
    meter_id integer not null,
    at timestamptz(3) not null,
    code integer not null,
    received_at timestamptz not null default now(),
    primary key (meter_id, at, code)
);

-- What was received and could not be stored as a reading. The same frame again only counts up.
create table quarantine (
    id bigint generated always as identity primary key,
    shard smallint,
    topic text not null,
    serial text,
    read_at timestamptz,
    reason text not null,
    detail text not null,
    raw bytea not null,
    sha256 bytea not null,
    item integer not null,
    times integer not null default 1,
    first_at timestamptz not null default now(),
    last_at timestamptz not null default now(),
    unique (sha256, item)
);
create index quarantine_by_meter on quarantine (serial, read_at);

-- One row per shard of each batch transaction: what came and what became of it. Messages and readings.
create table batches (
    id bigint generated always as identity primary key,
    shard smallint,
    epoch bigint not null,
    messages integer not null,
    received integer not null,
    stored integer not null,
    duplicate integer not null,
    rejected integer not null,
    quarantined integer not null,
    committed_at timestamptz not null default clock_timestamp()
);

-- Who owns what ---------------------------------------------------------------------------------------------------------

create table shard_leases (
    role text not null check (role in ('ingest', 'dispatch')),
    shard smallint not null check (shard between 0 and 31),
    owner text,
    epoch bigint not null default 0,
    backend_pid integer,
    expires_at timestamptz not null default '-infinity',
    -- Change feed rows of transactions at or after this one have not all been seen by the owner.
    feed_from xid8 not null default '0',
    primary key (role, shard)
) with (fillfactor = 50);
insert into shard_leases (role, shard) select role, shard from unnest(array['ingest', 'dispatch']) role, generate_series(0, 31) shard;

create table change_feed (
    shard smallint not null,
    account_id bigint not null,
    version bigint not null,
    xid xid8 not null default pg_current_xact_id()
);
create index change_feed_by_shard on change_feed (shard, xid);

-- Accounts whose balance has to be looked at again, because a batch would not wait for their lock.
create table rechecks (
    account_id bigint primary key references accounts,
    shard smallint not null,
    late_since timestamptz,
    asked_at timestamptz not null default now()
);

-- Alarms, supply, notices -----------------------------------------------------------------------------------------------

create table alarms (
    id bigint generated always as identity primary key,
    account_id bigint not null references accounts,
    level text not null check (level in ('low', 'exhausted')),
    arm integer not null,
    level_minor bigint not null,
    balance_minor bigint not null,
    raised_at timestamptz not null default clock_timestamp(),
    unique (account_id, level, arm)
);

-- Commands to a meter: supply, alarm, threshold. At most one open per meter and kind; epochs rise per meter.
create table supply_orders (
    id bigint generated always as identity primary key,
    meter_id integer not null references meters,
    account_id bigint not null references accounts,
    shard smallint not null,
    kind text not null check (kind in ('supply', 'alarm', 'threshold')),
    epoch bigint not null,
    relay text check (relay in ('on', 'off')),
    level text,
    balance_minor bigint not null,
    threshold_minor bigint,
    cause text not null,
    state text not null default 'pending'
        check (state in ('pending', 'held', 'sent', 'confirmed', 'superseded')),
    attempts integer not null default 0,
    created_at timestamptz not null default clock_timestamp(),
    next_try_at timestamptz not null default '-infinity',
    -- First claimed by a dispatcher, and first seen to have left it.
    sent_at timestamptz,
    published_at timestamptz,
    confirmed_at timestamptz,
    unique (meter_id, epoch),
    check ((kind = 'supply') = (relay is not null))
) with (fillfactor = 70);
create unique index one_open_order on supply_orders (meter_id, kind) where state in ('pending', 'held', 'sent');
create index orders_due on supply_orders (shard, next_try_at) where state in ('pending', 'sent');
-- The dispatcher counts the cut-offs of the last minute before it sends more.
create index cut_offs_sent on supply_orders (sent_at) where relay = 'off';

create table notices (
    id bigint generated always as identity primary key,
    account_id bigint not null references accounts,
    kind text not null,
    channel text not null check (channel in ('sms', 'email', 'app')),
    address text,
    body text not null,
    state text not null default 'shown' check (state in ('pending', 'sent', 'failed', 'shown')),
    created_at timestamptz not null default clock_timestamp()
);
create index notices_by_account on notices (account_id, id);

-- Vending ---------------------------------------------------------------------------------------------------------------

create table vendors (
    id bigint generated always as identity primary key,
    name text not null unique,
    active boolean not null default true
);

-- Interface keys: the key itself is never kept. A consumer's key is bound to one account.
create table api_keys (
    key_id text primary key,
    sha256 bytea not null,
    role text not null check (role in ('vendor', 'engineer', 'consumer')),
    vendor_id bigint references vendors,
    account_id bigint references accounts,
    active boolean not null default true,
    created_at timestamptz not null default now(),
    check ((role = 'vendor') = (vendor_id is not null)),
    check ((role = 'consumer') = (account_id is not null))
);

create table vending_keys (
    sgc text not null,
    krn smallint not null,
    sealed bytea not null,
    check_value text not null,
    primary key (sgc, krn)
);

-- The same (vendor, message id) returns the stored answer for ever; business refusals too.
create table vends (
    id bigint generated always as identity primary key,
    vendor_id bigint not null references vendors,
    message_id text not null,
    request_sha256 bytea not null,
    account_id bigint references accounts,
    amount_minor bigint not null,
    journal_id bigint unique references journals,
    status smallint not null,
    answer jsonb not null,
    created_at timestamptz not null default clock_timestamp(),
    unique (vendor_id, message_id)
);

create table tokens (
    id bigint generated always as identity primary key,
    vend_id bigint not null unique references vends,
    meter_id integer not null references meters,
    tid integer not null,
    digits text not null unique check (digits ~ '^[0-9]{20}$'),
    subclass smallint not null,
    unique (meter_id, tid)
);
create trigger append_only before update or delete or truncate on tokens
    for each statement execute function refuse_change();
