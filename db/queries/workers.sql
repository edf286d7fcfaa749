-- beat: a process says that it lives; returns how many of its role do, itself included. What was not heard of for a day
-- is forgotten. A word from ahead of the clock, before that was set back, does not count
with mine as (
    insert into workers (name, role, lag_ms) values (%(name)s, %(role)s, %(lag_ms)s)
    on conflict (name) do update set seen_at = clock_timestamp(), lag_ms = excluded.lag_ms
), forgotten as (
    delete from workers
    where role = %(role)s and name <> %(name)s and seen_at < clock_timestamp() - interval '1 day'
)
select 1 + count(*) from workers
where role = %(role)s and name <> %(name)s
  and seen_at between clock_timestamp() - %(live_s)s * interval '1 second' and clock_timestamp()

-- retire: a process that stops is not waited for
delete from workers where name = %(name)s

-- list_workers: processes that were heard of within a day or own a shard, and which shards
select coalesce(w.role, h.role) as role, coalesce(w.name, h.owner) as name, w.started_at,
       extract(epoch from clock_timestamp() - w.seen_at)::float8 as silent_s, w.lag_ms,
       coalesce(h.shards, '{}') as shards
from workers w
full join (
    select role, owner, array_agg(shard::integer order by shard) as shards from shard_leases
    where owner is not null and expires_at > clock_timestamp() group by role, owner
) h on h.role = w.role and h.owner = w.name
order by 1, 3 nulls last, 2

-- unowned_shards: shards of a role that nobody owns
select shard::integer from shard_leases
where role = %(role)s and (owner is null or expires_at <= clock_timestamp()) order by shard

-- give_back: some shards are for others to take; what was taken from us meanwhile stays theirs
update shard_leases set owner = null, expires_at = '-infinity'
where role = %(role)s and owner = %(owner)s and shard = any(%(shards)s)
