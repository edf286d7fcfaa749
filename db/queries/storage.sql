-- storage_partitions: partitions of readings and of rollups with their sizes; rows as last analysed, -1 never
select p.relname as table, c.relname as name, c.reltuples::bigint as rows,
       pg_table_size(c.oid) as table_bytes, pg_indexes_size(c.oid) as index_bytes,
       k.packed_at is not null as packed
from pg_inherits i
join pg_class c on c.oid = i.inhrelid
join pg_class p on p.oid = i.inhparent
left join storage_packs k on k.partition = c.relname
where i.inhparent in ('readings'::regclass, 'rollup_hours'::regclass, 'rollup_days'::regclass)
order by p.relname, c.relname

-- storage_sizes: tables without partitions that classes keep, with their sizes
select c.relname as table, greatest(c.reltuples, 0)::bigint as rows, pg_total_relation_size(c.oid) as bytes
from pg_class c where c.oid = any(array['rollup_months', 'quarantine', 'reading_flags', 'meter_events', 'notices',
                                        'batches', 'change_feed', 'stale_buckets']::regclass[])
order by c.relname

-- storage_needs: from when on readings are needed, by who needs them; nothing where nobody does. Late data may come 35
-- days behind an open day and moves the edges of its bill part, which may lie beside a reading as far away; a correction that is not ended may name any account; a case reaches a year back (R-20)
-- No datetime is as early as the beginning.
select n.need, greatest(n.from_at, '0001-01-02 00:00+00') from (
    select 'open day' as need, min(p.from_day)::timestamp at time zone %(zone)s as from_at
    from (select (date_trunc('month', (min(through) - 36)::timestamp) - interval '36 days')::date as from_day from accounts) p
    having min(p.from_day) is not null
    union all
    select 'correction', min(n.from_at) from (
        select (c.scope ->> 'from_day')::date::timestamp at time zone %(zone)s as from_at
        from corrections c where c.state not in ('applied', 'cancelled') and c.scope ? 'from_day'
        union all
        select ((c.scope #>> '{overhaul,first}')::date - interval '1 year')::timestamp at time zone %(zone)s
        from corrections c where c.state not in ('applied', 'cancelled') and c.scope ? 'overhaul'
        union all
        select min((e ->> 'read_at')::timestamptz)
        from corrections c cross join lateral jsonb_array_elements(c.scope -> 'edits') e
        where c.state not in ('applied', 'cancelled') and c.scope ? 'edits'
        union all
        -- What takes another one back needs what that one needed.
        select '-infinity' from corrections c where c.state not in ('applied', 'cancelled') and c.reverses is not null
    ) n having min(n.from_at) is not null
    union all
    select 'open case', min(opened_at) - interval '14 months' from cases where state <> 'closed'
    having min(opened_at) is not null
    union all
    select 'not rolled up', least((select swept_at from rollup_state), (select min(from_at) from stale_buckets))
) n(need, from_at)

-- storage_holds_on: whether somebody holds readings of a span
select exists (select from storage_holds
               where released_at is null and from_at < %(last)s and (to_at is null or to_at >= %(first)s))

-- place_storage_hold: keep readings of a span until the hold is released
insert into storage_holds (meter_id, from_at, to_at, reason, placed_by)
values (%(meter_id)s, %(from_at)s, %(to_at)s, %(reason)s, %(by)s) returning id

-- release_storage_hold: readings of a span may go; one released before stays as it is
update storage_holds set released_by = %(by)s, released_at = clock_timestamp() where id = %(id)s and released_at is null

-- drop_wait: a drop that is not let in gives up soon: whoever comes after it waits behind it
set local lock_timeout = '500ms'

-- note_drop: what is dropped, in the transaction that drops it
insert into storage_drops (class, partition, before_at, rows, bytes, times, refused)
values (%(class)s, %(partition)s, %(before_at)s, %(rows)s, %(bytes)s, %(times)s, %(refused)s)

-- drop_partition: a partition that is noted as dropped
select drop_noted_partition(%(name)s)

-- count_rollup_hours: rows of a span of rollups by hour
select count(*) from rollup_hours where started_at >= %(first)s and started_at < %(last)s

-- count_rollup_days: rows of a span of rollups by day
select count(*) from rollup_days where day >= %(first)s::date and day < %(last)s::date

-- pack_partition: rewrite a partition of readings in the order of its key; nobody reads it meanwhile
with packed as (select * from pack_readings_partition(%(name)s))
insert into storage_packs (partition, bytes_before, bytes_after) select %(name)s, bytes_before, bytes_after from packed
on conflict (partition) do update set bytes_after = excluded.bytes_after, packed_at = clock_timestamp()
returning bytes_before, bytes_after

-- old_quarantine: rows of quarantine decided and last seen before an instant, and how often they came
select count(*), min(last_at) from quarantine
where state in ('stored', 'duplicate', 'rejected') and last_at < %(before)s

-- drop_old_quarantine: a page of them; how many went, how often they had come: held, and refused
with gone as (
    delete from quarantine where id in (
        select id from quarantine where state in ('stored', 'duplicate', 'rejected') and last_at < %(before)s
        order by last_at limit %(most)s)
    returning times, refused
)
select count(*), coalesce(sum(times - refused), 0)::bigint, coalesce(sum(refused), 0)::bigint from gone

-- old_flags: notes of rules from before an instant
select count(*), min(noted_at) from reading_flags where noted_at < %(before)s

-- drop_old_flags: a page of them
with gone as (
    delete from reading_flags f using (
        select meter_id, day, rule from reading_flags where noted_at < %(before)s order by noted_at limit %(most)s) o
    where f.meter_id = o.meter_id and f.day = o.day and f.rule = o.rule returning 1
)
select count(*), 0::bigint, 0::bigint from gone

-- old_events: events of meters received before an instant
select count(*), min(received_at) from meter_events where received_at < %(before)s

-- drop_old_events: a page of them
with gone as (
    delete from meter_events e using (
        select meter_id, at, code from meter_events where received_at < %(before)s
        order by received_at, meter_id limit %(most)s) o
    where e.meter_id = o.meter_id and e.at = o.at and e.code = o.code returning 1
)
select count(*), 0::bigint, 0::bigint from gone

-- old_notices: notices from before an instant that nothing waits for; those that answer a message of a consumer stay
select count(*), min(created_at) from notices n
where n.created_at < %(before)s
  and not exists (select from inbound_messages m where m.notice_id = n.id)
  and not exists (select from notice_deliveries d where d.notice_id = n.id and d.state in ('pending', 'sending'))

-- drop_old_notices: a page of them, with their deliveries
with old as materialized (
    select n.id from notices n
    where n.created_at < %(before)s
      and not exists (select from inbound_messages m where m.notice_id = n.id)
      and not exists (select from notice_deliveries d where d.notice_id = n.id and d.state in ('pending', 'sending'))
    order by n.created_at limit %(most)s
), delivered as (
    delete from notice_deliveries d using old o where d.notice_id = o.id
), gone as (
    delete from notices n using old o where n.id = o.id returning 1
)
select count(*), 0::bigint, 0::bigint from gone

-- counts_dropped: what was dropped of readings and of quarantine, that came all the same
select coalesce(sum(rows) filter (where class = 'readings'), 0)::bigint,
       coalesce(sum(times) filter (where class = 'quarantine'), 0)::bigint,
       coalesce(sum(refused) filter (where class = 'quarantine'), 0)::bigint
from storage_drops
