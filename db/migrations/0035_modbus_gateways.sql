-- Meters that are polled over Modbus: the lines they stand on, and what a gateway must know of each. Gateways share the
-- lines by the leases of shards, as ingest shares the meters.

alter table shard_leases drop constraint shard_leases_role_check;
alter table shard_leases add constraint shard_leases_role_check check (role in ('ingest', 'dispatch', 'gateway'));
insert into shard_leases (role, shard) select 'gateway', generate_series(0, 31);
alter table workers drop constraint workers_role_check;
alter table workers add constraint workers_role_check check (role in ('ingest', 'dispatch', 'gateway'));

create table modbus_lines (
    id integer generated always as identity primary key,
    shard smallint not null generated always as (id % 32) stored,
    name text not null unique check (name ~ '^[A-Za-z0-9_.-]{1,64}$'),
    -- tcp is Modbus TCP; rtu is RTU frames, over TCP where a host is named and on a serial port where a device is.
    framing text not null check (framing in ('tcp', 'rtu')),
    host text check (host <> ''),
    port integer check (port between 1 and 65535),
    device text check (device ~ '^/dev/'),
    baud integer check (baud between 300 and 1000000),
    parity text check (parity in ('none', 'even', 'odd')),
    timeout_ms integer not null check (timeout_ms between 50 and 60000),
    enabled boolean not null default true,
    check (num_nulls(host, port) in (0, 2) and num_nulls(device, baud, parity) in (0, 3)),
    check ((host is null) <> (device is null)),
    -- One session for each line: two lines to one place would talk into each other's answers.
    unique (host, port),
    unique (device),
    check (framing = 'rtu' or host is not null)
);
create index modbus_lines_by_shard on modbus_lines (shard);

create table modbus_meters (
    meter_id integer primary key references meters,
    line_id integer not null references modbus_lines,
    unit smallint not null check (unit between 0 and 255),
    model text not null check (model <> ''),
    poll_s integer not null check (poll_s between 1 and 86400),
    -- What a probe has found where it differs from the model's map; null: as the map says.
    word_order text check (word_order in ('abcd', 'cdab', 'badc', 'dcba')),
    base smallint check (base in (0, 1)),
    -- A map that leaves something to a probe is polled only where one has confirmed it.
    confirmed boolean not null default false,
    -- Where the relay is not the meter's own: a module of that model at another unit of the line, and which of its coils.
    relay_model text check (relay_model <> ''),
    relay_unit smallint check (relay_unit between 0 and 255),
    relay_address integer check (relay_address between 0 and 65535),
    check (num_nulls(relay_model, relay_unit) in (0, 2) and (relay_address is null or relay_model is not null)),
    enabled boolean not null default true,
    -- The latest order of supply that was obeyed: an older one that comes late moves nothing.
    supply_epoch bigint not null default 0,
    supply_order_id bigint,
    -- How polling goes, written when that changes.
    state text not null default 'new',
    detail text,
    state_at timestamptz not null default clock_timestamp(),
    unique (line_id, unit)
) with (fillfactor = 70);
