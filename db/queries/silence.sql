-- look_at_contacts: look again at meters not heard of since an instant, a page of them by id: when they were last heard
-- of by reading, event, answer to an order, number or quarantine. A meter that is silent already is looked for only among
-- the readings of the last two days, since no return is in older ones alone.
with due as (
    select c.meter_id, c.heard_at, c.read_at, c.silent, i.from_at, m.serial
    from meter_contacts c
    join meters m on m.id = c.meter_id
    left join installations i on i.meter_id = c.meter_id and i.role = 'billing' and i.to_at is null
    where c.heard_at < %(cutoff)s and c.meter_id > %(after)s
    order by c.meter_id limit %(most)s
), looked as materialized (
    select d.meter_id, d.from_at, r.read_at, greatest(r.read_at, w.heard_at) as heard_at
    from due d
    left join lateral (
        select r.read_at from readings r
        where r.meter_id = d.meter_id
          and r.read_at > greatest(coalesce(d.read_at, d.from_at),
                                   case when d.silent then %(now)s - interval '2 days' end)
          and r.read_at < %(now)s + interval '1 day'
        order by r.read_at desc limit 1
    ) r on true
    cross join lateral (
        select greatest(
            (select e.received_at from meter_events e where e.meter_id = d.meter_id order by e.at desc limit 1),
            (select max(o.confirmed_at) from supply_orders o where o.meter_id = d.meter_id),
            (select s.heard_at from meter_sequences s where s.meter_id = d.meter_id),
            (select max(q.last_at) from quarantine q where q.serial = d.serial)) as heard_at
    ) w
), gone as (
    delete from meter_contacts c using looked l where c.meter_id = l.meter_id and l.from_at is null
), changed as (
    update meter_contacts c
    set heard_at = greatest(c.heard_at, l.heard_at), read_at = greatest(c.read_at, l.read_at),
        silent = greatest(c.heard_at, l.heard_at, l.from_at) < %(cutoff)s
    from looked l
    where c.meter_id = l.meter_id and l.from_at is not null
      and (l.heard_at > c.heard_at or l.read_at is not null
           or c.silent is distinct from (greatest(c.heard_at, l.heard_at, l.from_at) < %(cutoff)s))
)
select count(*), max(meter_id) from looked

-- heard_again: meters that were silent by a longer time, or are heard of since
update meter_contacts set silent = false where silent and heard_at >= %(cutoff)s

-- list_silent: installed meters not heard of since an instant, by id, a page of them
select c.meter_id, m.serial, u.area, a.number as account, nullif(greatest(c.read_at, r.read_at), '-infinity') as read_at,
       nullif(w.heard_at, '-infinity') as heard_at, i.from_at as installed_at, s.relay, a.desired
from meter_contacts c
join meters m on m.id = c.meter_id
join installations i on i.meter_id = c.meter_id and i.role = 'billing' and i.to_at is null
join usage_points u on u.id = i.usage_point_id
join accounts a on a.usage_point_id = u.id
left join meter_state s on s.meter_id = c.meter_id
left join lateral (
    select r.read_at from readings r
    where r.meter_id = c.meter_id
      and r.read_at > greatest(coalesce(c.read_at, i.from_at), case when c.silent then %(now)s - interval '2 days' end)
      and r.read_at < %(now)s + interval '1 day'
    order by r.read_at desc limit 1
) r on true
cross join lateral (
    select greatest(
        c.heard_at, r.read_at,
        (select e.received_at from meter_events e where e.meter_id = c.meter_id order by e.at desc limit 1),
        (select max(o.confirmed_at) from supply_orders o where o.meter_id = c.meter_id),
        (select q.heard_at from meter_sequences q where q.meter_id = c.meter_id),
        (select max(q.last_at) from quarantine q where q.serial = m.serial)) as heard_at
) w
where c.heard_at < %(cutoff)s and c.meter_id > %(after)s and (%(area)s::text is null or u.area = %(area)s)
  and greatest(w.heard_at, i.from_at) < %(cutoff)s
order by c.meter_id limit %(most)s

-- silent_by_area: silent meters by area, as the last look has found them
select u.area, count(*) as meters, min(nullif(c.heard_at, '-infinity')) as since
from meter_contacts c
join installations i on i.meter_id = c.meter_id and i.role = 'billing' and i.to_at is null
join usage_points u on u.id = i.usage_point_id
where c.silent
group by u.area order by count(*) desc, u.area
