-- The role that processes work under. It may add journals, legs and tokens, and never change or delete one: a trigger
-- refuses that to everybody, the missing right refuses it before the trigger is asked. The owner of the schema migrates.

do $$
begin
    create role prepaid_app nologin;
exception when duplicate_object or unique_violation then
    -- The role belongs to the whole server: another installation on it, or its administrator, has made it.
    null;
end $$;
do $$
begin
    if not pg_has_role(session_user, 'prepaid_app', 'member') then
        execute format('grant prepaid_app to %I', session_user);
    end if;
end $$;

grant usage on schema public to prepaid_app;
grant select, insert, update, delete on all tables in schema public to prepaid_app;
grant usage, select on all sequences in schema public to prepaid_app;
alter default privileges in schema public grant select, insert, update, delete on tables to prepaid_app;
alter default privileges in schema public grant usage, select on sequences to prepaid_app;
revoke update, delete on journals, legs, tokens from prepaid_app;
revoke insert, update, delete on migrations from prepaid_app;

-- Two things that only the owner may do, done on the role's behalf.

-- A partition is made as a table and then attached, which does not lock readers and writers of the others out.
create function make_readings_partition(day date) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    name text := 'readings_' || to_char(day, 'YYYYMMDD');
begin
    execute format('create table public.%I (like public.readings including defaults including constraints)', name);
    execute format('alter table public.readings attach partition public.%I for values from (%L) to (%L)',
                   name, day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
end $$;

-- Sessions of a paused owner that still hold a lease row locked though the lease ran out: they are ended.
create function end_expired_backends(lease_role text) returns bigint
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    select count(pg_terminate_backend(l.backend_pid))
    from public.shard_leases l join pg_stat_activity a on a.pid = l.backend_pid
    where l.role = lease_role and l.expires_at < clock_timestamp() and l.backend_pid <> pg_backend_pid()
      and a.datname = current_database() and a.application_name = l.owner and a.xact_start is not null
$$;
revoke execute on function make_readings_partition(date), end_expired_backends(text) from public;
grant execute on function make_readings_partition(date), end_expired_backends(text) to prepaid_app;
