-- Keeping and dropping by class: what must stay for somebody, what was dropped, and partitions that may be dropped.

-- Readings that a dispute or another case needs, of one meter or of all: partitions of its span stay until it is released.
create table storage_holds (
    id bigint generated always as identity primary key,
    meter_id integer references meters,
    from_at timestamptz not null,
    to_at timestamptz check (to_at >= from_at),
    reason text not null check (reason <> ''),
    placed_by text not null check (placed_by <> ''),
    placed_at timestamptz not null default clock_timestamp(),
    released_by text check (released_by <> ''),
    released_at timestamptz,
    check (num_nulls(released_by, released_at) in (0, 2))
);
create index storage_holds_open on storage_holds (from_at) where released_at is null;

-- What was dropped, once a partition or a run: rows of the class before `before_at`. `times` and `refused` are those of
-- quarantine, so that what came still adds up with what is there and what was dropped (db.counting).
create table storage_drops (
    id bigint generated always as identity primary key,
    class text not null check (class <> ''),
    partition text,
    before_at timestamptz not null,
    rows bigint not null check (rows >= 0),
    bytes bigint,
    times bigint not null default 0,
    refused bigint not null default 0,
    dropped_at timestamptz not null default clock_timestamp()
);
create index storage_drops_of_class on storage_drops (class, before_at);
create index drops_of_partition on storage_drops (partition) where partition is not null;
create trigger append_only before update or delete or truncate on storage_drops
    for each statement execute function refuse_change();
revoke update, delete on storage_drops from prepaid_app;

-- Readers and writers wait in the queue behind a drop that waits: it gives up by the caller's lock timeout. Only a
-- partition of these tables goes, and only one that was noted as dropped in the same transaction.
create function drop_noted_partition(name text) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    perform from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where c.relname = name and c.relnamespace = 'public'::regnamespace
      and i.inhparent::regclass::text in ('readings', 'rollup_hours', 'rollup_days');
    if not found then
        raise exception 'partition: expected one of readings or rollups, got %', name;
    end if;
    perform from public.storage_drops d where d.partition = name;
    if not found then
        raise exception 'partition %: expected to be noted in storage_drops first', name;
    end if;
    execute format('drop table public.%I', name);
end $$;
revoke execute on function drop_noted_partition(text) from public;
grant execute on function drop_noted_partition(text) to prepaid_app;

-- Partitions of readings that were rewritten in the order of their key, with what they took before and after.
create table storage_packs (
    partition text primary key,
    bytes_before bigint not null,
    bytes_after bigint not null,
    packed_at timestamptz not null default clock_timestamp()
);

-- Nobody reads or writes the partition meanwhile. Only one of readings.
create function pack_readings_partition(name text) returns table (bytes_before bigint, bytes_after bigint)
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    perform from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where c.relname = name and c.relnamespace = 'public'::regnamespace and i.inhparent = 'public.readings'::regclass;
    if not found then
        raise exception 'partition: expected one of readings, got %', name;
    end if;
    bytes_before := pg_total_relation_size(format('public.%I', name)::regclass);
    execute format('cluster public.%I using %I', name, name || '_pkey');
    execute format('analyze public.%I', name);
    bytes_after := pg_total_relation_size(format('public.%I', name)::regclass);
    return next;
end $$;
revoke execute on function pack_readings_partition(text) from public;
grant execute on function pack_readings_partition(text) to prepaid_app;

-- What old rows are looked for by.
create index if not exists quarantine_decided on quarantine (last_at) where state in ('stored', 'duplicate', 'rejected');
create index if not exists notices_by_time on notices (created_at);
