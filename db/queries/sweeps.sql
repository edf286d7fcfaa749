-- exact_days: of some accounts those whose first open day is this one and whose register was read at its very end, with
-- one assignment throughout the month, no zones and no demand. The offset keeps the planner from turning the probe of
-- readings around: without statistics, on a fresh day, it compared every pair (50 s instead of 0.1 for 2,000 accounts)
select a.id, a.posted_minor, a.charged_minor, a.before_wh, a.part_start_wh, a.closed_wh,
       r.import_wh + g.offset_wh as to_wh, a.anchor_at, a.opened_on, x.from_day, f.sha256, x.load_w, x.area_type, x.meter_rent
from unnest(%(ids)s::bigint[]) k(id)
join accounts a on a.id = k.id
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
cross join lateral (
    select q.import_wh from effective_readings q
    where q.meter_id = i.meter_id and q.read_at = %(edge_at)s offset 0
) r
cross join lateral (
    select s.start_wh - s.register_wh as offset_wh from register_segments s
    where s.meter_id = i.meter_id and s.from_at <= %(edge_at)s order by s.from_at desc limit 1
) g
cross join lateral (
    select y.from_day, y.tariff_id, y.load_w, y.area_type, y.meter_rent from assignments y
    where y.account_id = a.id and y.replaced_by is null and y.from_day < %(next_month)s
    order by y.from_day desc limit 1
) x
join tariffs f on f.id = x.tariff_id
where a.through = %(day)s and a.anchor_zones is null and not f.asks_demand
  and (x.from_day <= %(month)s or x.from_day = a.opened_on)
order by a.id

-- take_journal_ids: numbers for journals that are written by COPY, rising
select nextval(pg_get_serial_sequence('journals', 'id')) from generate_series(1, %(number)s) order by 1

-- copy_day_journals: days of many accounts and their batch
copy journals (id, kind, account_id, local_day, period, from_wh, to_wh, energy_wh, edge_quality, lines, batch_id)
from stdin

-- copy_legs: the legs of many journals
copy legs (journal_id, n, ledger, line, amount_minor) from stdin

-- save_exact_days: the posted state of accounts after a day that was read at its end; balance and levels are the same,
-- and so is the version, by which a shard's owner knows them
update accounts a set posted_minor = k.posted_minor, charged_minor = k.charged_minor, through = %(through)s,
    before_wh = k.before_wh, part_start_wh = k.part_start_wh, closed_wh = k.to_wh, anchor_wh = k.to_wh,
    anchor_at = %(edge_at)s
from unnest(%(ids)s::bigint[], %(posted_minors)s::bigint[], %(charged_minors)s::bigint[], %(before_whs)s::bigint[],
            %(part_start_whs)s::bigint[], %(to_whs)s::bigint[])
     as k(id, posted_minor, charged_minor, before_wh, part_start_wh, to_wh)
where a.id = k.id
