-- due_orders: per meter the order to send now: supply first, one in flight, cut-offs capped per area and minute
with due as (
    select distinct on (o.meter_id) o.id, o.kind, o.relay, u.area
    from supply_orders o
    join accounts a on a.id = o.account_id
    join usage_points u on u.id = a.usage_point_id
    where o.shard = any(%(shards)s) and o.state in ('pending', 'sent') and o.next_try_at <= clock_timestamp()
      and (o.kind = 'supply' or not exists (
          select 1 from supply_orders f
          where f.meter_id = o.meter_id and f.state = 'sent' and f.next_try_at > clock_timestamp()))
    order by o.meter_id, o.kind <> 'supply', o.epoch
),
cut as (
    select u.area, count(*) as number
    from supply_orders o
    join accounts a on a.id = o.account_id
    join usage_points u on u.id = a.usage_point_id
    where o.relay = 'off' and o.sent_at > clock_timestamp() - interval '1 minute'
    group by u.area
),
ranked as (
    select d.id, d.relay, coalesce(c.number, 0) + row_number() over (partition by d.area, d.relay order by d.id) as place
    from due d left join cut c on c.area = d.area
)
select id from ranked
where relay is distinct from 'off' or place <= %(cut_offs_per_minute_max)s
order by relay is distinct from 'on', id
limit %(most)s

-- send_orders: claim orders for one try, if they are still current and nobody is changing them; the next backs off
with claimed as (
    select id from supply_orders where id = any(%(ids)s) and state in ('pending', 'sent')
    order by id for update skip locked
)
update supply_orders o set state = 'sent', attempts = o.attempts + 1,
    sent_at = coalesce(o.sent_at, clock_timestamp()),
    next_try_at = clock_timestamp() + least(%(backoff_s_max)s, %(backoff_s_first)s * power(2, least(o.attempts, 20)))
                  * (0.75 + random() / 2) * interval '1 second'
from claimed c, meters m
where o.id = c.id and m.id = o.meter_id
returning o.id, m.serial, o.kind, o.epoch, o.relay, o.level, o.balance_minor, o.threshold_minor

-- mark_published: note when orders left for their meters; those that somebody is changing are noted later
with free as (
    select o.id, p.at from supply_orders o
    join unnest(%(ids)s::bigint[], %(ats)s::timestamptz[]) as p(id, at) on p.id = o.id
    order by o.id for update of o skip locked
)
update supply_orders o set published_at = coalesce(o.published_at, f.at) from free f where o.id = f.id
returning o.id
