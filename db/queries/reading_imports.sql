-- ingest_lives: whether an ingest process has leases now
select exists (select from shard_leases where role = 'ingest' and expires_at > clock_timestamp())

-- current_xid: the oldest transaction still running, in the form that rows are marked with
select (pg_snapshot_xmin(pg_current_snapshot())::text::bigint & 4294967295)::text

-- import_starts: where meters' registers stand at instants: the latest reading at or before, else their installation's;
-- and their marks
select k.serial, (extract(epoch from i.from_at) * 1000)::bigint, m.register_end_wh,
       coalesce(r.import_wh, s.register_wh, f.register_wh, 0),
       (extract(epoch from coalesce(l.read_at, i.from_at)) * 1000)::bigint
from unnest(%(serials)s::text[], %(ats)s::timestamptz[]) as k(serial, at)
join meters m on m.serial = k.serial
join installations i on i.meter_id = m.id and i.role = 'billing' and i.to_at is null
left join lateral (
    select from_at, register_wh from register_segments
    where meter_id = m.id and from_at <= k.at order by from_at desc limit 1
) s on true
left join lateral (select register_wh from register_segments where meter_id = m.id order by from_at limit 1) f on true
left join lateral (
    select import_wh from effective_readings
    where meter_id = m.id and read_at <= k.at and read_at >= s.from_at order by read_at desc limit 1
) r on true
left join lateral (select read_at from readings where meter_id = m.id order by read_at desc limit 1) l on true

-- make_import_keys: what an import has sent, for this session
create temporary table import_keys (serial text not null, read_at timestamptz(3) not null, import_wh bigint not null)

-- empty_import_keys: before the next file
truncate import_keys

-- copy_import_keys: fill them
copy import_keys (serial, read_at, import_wh) from stdin (format binary)

-- analyze_import_keys: let the planner know how many there are
analyze import_keys

-- import_outcome: what became of what was sent: stored since a transaction, stored before or sent twice, held by reason,
-- or nowhere (no reason)
with sent as (
    select serial, read_at, import_wh, count(*) as times from import_keys group by serial, read_at, import_wh
),
found as (
    select s.serial, s.read_at, s.times, r.import_wh = s.import_wh as is_stored,
           age(r.xmin) <= age(%(since)s::text::xid) as is_new
    from sent s
    left join meters m on m.serial = s.serial
    left join readings r on r.meter_id = m.id and r.read_at = s.read_at
        and r.read_at between %(first)s and %(last)s
)
select case when f.is_stored then 'stored' else q.reason end as outcome,
       sum(case when f.is_stored then f.is_new::integer else f.times end)::bigint,
       sum(case when f.is_stored then f.times - f.is_new::integer else 0 end)::bigint
from found f
left join lateral (
    select h.reason from quarantine h
    where not coalesce(f.is_stored, false) and h.serial = f.serial and h.read_at = f.read_at
    order by h.last_at desc limit 1
) q on true
group by 1
