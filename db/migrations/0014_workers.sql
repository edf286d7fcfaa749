-- Processes that share the shards of a role: each says every second that it lives, by the database's clock.

create table workers (
    name text primary key,
    role text not null check (role in ('ingest', 'dispatch')),
    started_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp(),
    -- Age of the last message at its commit; null before the first one.
    lag_ms bigint
) with (fillfactor = 50);
