-- take_leases: take shards whose owner is gone; the epoch fences whoever had them. No lease is longer than 300 s: one
-- that ends later was written before the clock was set back
with free as materialized (
    select role, shard from shard_leases
    where role = %(role)s and shard = any(%(shards)s)
      and (expires_at < clock_timestamp() or expires_at > clock_timestamp() + interval '300 seconds')
    order by shard for update skip locked
), whole as materialized (
    select shard %% %(lanes)s as lane from free group by 1 having count(*) = %(shards_a_lane)s
    order by 1 limit %(lanes_most)s
)
update shard_leases l set owner = %(owner)s, epoch = l.epoch + 1,
    expires_at = clock_timestamp() + %(lease_s)s * interval '1 second'
from free
where l.role = free.role and l.shard = free.shard and free.shard %% %(lanes)s in (select lane from whole)
returning l.shard, l.epoch, l.feed_from::text::bigint

-- end_expired_backends: end sessions that still hold a lease row locked though the lease ran out
select end_expired_backends(%(role)s)

-- fence: renew leases; fewer rows than shards means that another owner has one
update shard_leases set expires_at = clock_timestamp() + %(lease_s)s * interval '1 second'
where role = %(role)s and owner = %(owner)s and epoch = (%(epochs)s::bigint[])[shard + 1]

-- hold_leases: lock the leases of a batch, of which an owner may have two at a time; fewer rows than shards means that
-- another owner has one
select shard from shard_leases
where role = %(role)s and owner = %(owner)s and epoch = (%(epochs)s::bigint[])[shard + 1]
order by shard for share

-- release_leases: give shards back at a clean stop
update shard_leases set owner = null, expires_at = '-infinity'
where role = %(role)s and owner = %(owner)s

-- begin_batch: the first word of a batch's transaction
begin

-- commit_batch: the last word of a batch's transaction
commit

-- rollback_batch: a batch that failed leaves nothing
rollback

-- plan_once: statements of this transaction are planned once in the session, since none looks at readings; by index,
-- since a plan may be made while a table is still empty and stays for the session
select set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)

-- plan_each: statements of this transaction look at readings; only plans of their own leave partitions out
select set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'on', true),
       set_config('enable_hashjoin', 'on', true), set_config('enable_mergejoin', 'on', true)

-- find_meters: billing meters and their accounts by serial
select m.serial, m.id as meter_id, m.shard, a.id as account_id
from meters m
left join installations i on i.meter_id = m.id and i.role = 'billing' and i.to_at is null
left join accounts a on a.usage_point_id = i.usage_point_id
where m.serial = any(%(serials)s)

-- read_feed: accounts changed by transactions that the last refresh may not have seen, and where to go on from
select account_id, max(version) from change_feed
where shard = any(%(shards)s) and xid >= %(since)s::text::xid8 group by account_id

-- feed_horizon: the oldest transaction still running; everything before it is visible now
select pg_snapshot_xmin(pg_current_snapshot())::text::bigint

-- save_feed_position: keep the refresh position in the lease rows
update shard_leases set feed_from = %(since)s::text::xid8 where role = 'ingest' and shard = any(%(shards)s) and owner = %(owner)s

-- trim_feed: drop change-feed rows that every shard's owner has seen
delete from change_feed c using shard_leases l
where l.role = 'ingest' and l.shard = c.shard and c.xid < l.feed_from

-- copy_readings: the hot path
copy readings (meter_id, read_at, import_wh, export_wh, voltage_mv, current_ma, power_w, pf_milli, freq_mhz)
from stdin (format binary)

-- make_staging: where late readings wait to be compared; one per session
create temporary table if not exists staging (
    n integer not null, meter_id integer not null, read_at timestamptz(3) not null, import_wh bigint not null,
    export_wh bigint, voltage_mv integer, current_ma integer, power_w integer, pf_milli integer, freq_mhz integer
) on commit delete rows

-- copy_staging: fill the staging table
copy staging (n, meter_id, read_at, import_wh, export_wh, voltage_mv, current_ma, power_w, pf_milli, freq_mhz)
from stdin (format binary)

-- probe_by_key: keep the planner on index probes; a scan of a day's readings for a few late ones would stall ingest
set local enable_hashjoin = off; set local enable_mergejoin = off; set local enable_seqscan = off

-- compare_staging: which late readings are known, and with the same content. The offset keeps the planner from
-- turning the probe around: without statistics, right after a load, it compared every pair (60 s instead of 5)
select s.n, (r.import_wh, r.export_wh, r.voltage_mv, r.current_ma, r.power_w, r.pf_milli, r.freq_mhz)
         is not distinct from
         (s.import_wh, s.export_wh, s.voltage_mv, s.current_ma, s.power_w, s.pf_milli, s.freq_mhz) as same
from staging s
cross join lateral (
    select * from readings
    where meter_id = s.meter_id and read_at = s.read_at and read_at between %(first)s and %(last)s
    offset 0
) r

-- neighbours: the readings on both sides of late ones
select k.n, b.read_at, b.import_wh, c.read_at, c.import_wh
from unnest(%(ns)s::integer[], %(meter_ids)s::integer[], %(ats)s::timestamptz[]) as k(n, meter_id, at)
left join lateral (
    select r.read_at, r.import_wh from effective_readings r
    where r.meter_id = k.meter_id and r.read_at < k.at order by r.read_at desc limit 1
) b on true
left join lateral (
    select r.read_at, r.import_wh from effective_readings r
    where r.meter_id = k.meter_id and r.read_at > k.at order by r.read_at limit 1
) c on true

-- latest_stored: the instants of meters' latest stored readings, void or not, from some instant on
select k.meter_id, (extract(epoch from l.read_at) * 1000)::bigint
from unnest(%(meter_ids)s::integer[]) k(meter_id)
cross join lateral (
    select r.read_at from readings r
    where r.meter_id = k.meter_id and r.read_at >= %(since)s order by r.read_at desc limit 1
) l

-- add_segment: a register rolled over, was reset or swapped
insert into register_segments (meter_id, from_at, register_wh, start_wh, reason)
values (%(meter_id)s, %(from_at)s, %(register_wh)s, %(start_wh)s,
        coalesce(%(reason)s::text, (select s.reason from register_segments s
                                    where s.meter_id = %(meter_id)s and s.from_at > %(from_at)s
                                    order by s.from_at limit 1)))
on conflict (meter_id, from_at) do nothing

-- add_quarantine: keep what could not be stored, each frame and item once; the same again only counts up
insert into quarantine (shard, topic, serial, read_at, reason, detail, raw, sha256, item, times, severity, stored_at,
                        refused)
select q.shard, q.topic, q.serial, q.read_at, q.reason, q.detail, q.raw, q.sha256, q.item, q.times, q.severity,
       q.stored_at, case when q.rejected then q.times else 0 end
from unnest(%(shards)s::smallint[], %(topics)s::text[], %(serials)s::text[], %(read_ats)s::timestamptz[],
            %(reasons)s::text[], %(details)s::text[], %(raws)s::bytea[], %(sha256s)s::bytea[], %(items)s::integer[],
            %(times)s::integer[], %(severities)s::text[], %(stored_ats)s::timestamptz[],
            %(rejecteds)s::boolean[])
     with ordinality as q(shard, topic, serial, read_at, reason, detail, raw, sha256, item, times, severity, stored_at,
                          rejected, n)
order by q.n
on conflict (sha256, item) do update set times = quarantine.times + excluded.times,
    refused = quarantine.refused + excluded.refused, last_at = now()

-- add_batches: what came to each shard in this transaction and what became of it
insert into batches (shard, epoch, messages, received, stored, duplicate, rejected, quarantined)
select * from unnest(%(shards)s::smallint[], %(epochs)s::bigint[], %(messages)s::integer[], %(received)s::integer[],
                     %(stored)s::integer[], %(duplicate)s::integer[], %(rejected)s::integer[],
                     %(quarantined)s::integer[])

-- add_events: meter events, each once; returns those that are new
insert into meter_events (meter_id, at, code)
select * from unnest(%(meter_ids)s::integer[], %(ats)s::timestamptz[], %(codes)s::integer[])
on conflict do nothing
returning meter_id, (extract(epoch from at) * 1000)::bigint, code

-- save_relay: what a meter says its relay does, if that is newer than what is known
update meter_state set relay = %(relay)s, relay_at = %(at)s
where meter_id = %(meter_id)s and (relay_at is null or relay_at <= %(at)s) and relay is distinct from %(relay)s

-- confirm_order: a meter's answer that it has done the order it names; a stale one changes nothing. One that names the
-- other position of the relay contradicts: the epoch is used up. An order that is being sent again or superseded just
-- now is not waited for: the meter is asked again and answers again.
with answered as (
    select id, relay is not distinct from %(relay)s::text as agrees from supply_orders
    where id = %(order_id)s and meter_id = %(meter_id)s and epoch = %(epoch)s and state in ('pending', 'sent')
      and (relay is null or %(relay)s::text is not null)
    for update skip locked
)
update supply_orders o set state = case when a.agrees then 'confirmed' else o.state end,
    confirmed_at = case when a.agrees then clock_timestamp() end,
    contradicted_at = case when not a.agrees then clock_timestamp() end
from answered a where o.id = a.id

-- order_impossible: a meter's answer that it can never do the order it names. A message ends by it. An order of supply that
-- the meter does not report yet stands, so that nothing is ordered anew, and is not tried; returns those.
with answered as (
    select o.id, o.kind = 'supply' and o.relay <> coalesce(s.relay, 'on') as stands
    from supply_orders o join meter_state s on s.meter_id = o.meter_id
    where o.id = %(order_id)s and o.meter_id = %(meter_id)s and o.epoch = %(epoch)s and o.state in ('pending', 'sent')
      and o.waits_for is distinct from 'impossible'
    for update of o skip locked
), ended as (
    update supply_orders o set state = case when a.stands then 'pending' else 'impossible' end,
        waits_for = case when a.stands then 'impossible' end,
        next_try_at = case when a.stands then 'infinity' else o.next_try_at end, looked_at = clock_timestamp()
    from answered a where o.id = a.id
    returning o.id, a.stands
)
select id from ended where stands

-- lock_partitions: one process at a time makes partitions; held to the end of the transaction
select pg_advisory_xact_lock(7405206102)

-- make_partition: a day's partition of the readings
select make_readings_partition(%(day)s)

-- partition_days: days that have a partition of readings
select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'readings'::regclass
