-- An owner of shards writes on two connections in turn. Both bear its name: whichever still holds a lease row locked
-- after the lease ran out is ended, whatever it waits for.
create or replace function end_expired_backends(lease_role text) returns bigint
language sql security definer set search_path = pg_catalog, public, pg_temp as $$
    select count(pg_terminate_backend(pid)) from (
        select distinct a.pid
        from public.shard_leases l join pg_stat_activity a on a.application_name = l.owner
        where l.role = lease_role and l.expires_at < clock_timestamp() and a.pid <> pg_backend_pid()
          and a.datname = current_database() and a.xact_start is not null
    ) paused
$$;
