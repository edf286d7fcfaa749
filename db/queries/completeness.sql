-- last_meter: the highest id of a meter
select coalesce(max(id), 0) from meters

-- intervals_of_day: of meters of an id range, by area: how many intervals a day should have, and how many it has. An
-- interval's reading is at its end; readings off the interval's edges count for the one they are in
with placed as (
    select i.meter_id, i.usage_point_id, greatest(i.from_at, %(first)s) as from_at, %(last)s as to_at
    from installations i
    where i.meter_id > %(after)s and i.meter_id <= %(upto)s and i.to_at is null and i.role = 'billing'
      and i.from_at < %(last)s
    union all
    select i.meter_id, i.usage_point_id, greatest(i.from_at, %(first)s), least(i.to_at, %(last)s)
    from installations i
    where i.meter_id > %(after)s and i.meter_id <= %(upto)s and i.to_at is not null and i.role = 'billing'
      and i.from_at < %(last)s and i.to_at > %(first)s
), due as (
    select p.*, u.area, s.interval_ms,
           floor(date_part('epoch', p.to_at - p.from_at) * 1000 / s.interval_ms)::bigint as expected
    from placed p
    join meters m on m.id = p.meter_id
    join usage_points u on u.id = p.usage_point_id
    cross join lateral (select coalesce(m.interval_s, %(interval_s)s) * 1000 as interval_ms) s
)
select d.area, count(*) as meters, count(*) filter (where t.present >= d.expected) as whole,
       sum(d.expected)::bigint as expected, sum(least(t.present, d.expected))::bigint as present
from due d
-- A probe a meter, in the order of the key: without statistics a join of two sums compared every pair.
cross join lateral (
    select count(*) as readings,
           count(*) filter (where (date_part('epoch', r.read_at - %(first)s) * 1000)::bigint %% d.interval_ms <> 0) as off
    from readings r
    where r.meter_id = d.meter_id and r.read_at > d.from_at and r.read_at <= d.to_at
      and r.read_at > %(first)s and r.read_at <= %(last)s
    offset 0
) n
cross join lateral (
    -- Readings at the edges are one an interval, since a meter has one an instant.
    select case when n.off = 0 then n.readings else (
        select count(distinct ceil(date_part('epoch', r.read_at - %(first)s) * 1000 / d.interval_ms))
        from readings r
        where r.meter_id = d.meter_id and r.read_at > d.from_at and r.read_at <= d.to_at
          and r.read_at > %(first)s and r.read_at <= %(last)s) end as present
    offset 0
) t
where d.expected > 0
group by d.area

-- add_completeness: a day's intervals by area as they were at an hour; what was taken then stays
insert into completeness (day, hour, area, meters, whole, expected, present, taken_at)
select %(day)s, %(hour)s, c.*, %(taken_at)s
from unnest(%(areas)s::text[], %(meters)s::integer[], %(whole)s::integer[], %(expected)s::bigint[],
            %(present)s::bigint[]) as c(area, meters, whole, expected, present)
on conflict do nothing

-- completeness_taken: whether a day's intervals were taken at an hour
select exists (select 1 from completeness where day = %(day)s and hour = %(hour)s)

-- completeness_of: a day's intervals by hour and area, as they were taken
select hour, area, meters, whole, expected, present, taken_at from completeness
where day = %(day)s and (%(area)s::text is null or area = %(area)s) order by hour, area

-- lock_completeness: one process at a time takes a day's intervals; held by the session
select pg_try_advisory_lock(7405206104)

-- unlock_completeness: another one may
select pg_advisory_unlock(7405206104)
