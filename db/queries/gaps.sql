-- note_gaps: spans of meters that may lack readings; returns what is known of the meters' intervals
with span as (
    select s.meter_id, m.shard, m.interval_s, s.from_at, s.to_at, s.missing
    from unnest(%(meter_ids)s::integer[], %(froms)s::timestamptz[], %(tos)s::timestamptz[], %(missings)s::integer[])
         as s(meter_id, from_at, to_at, missing)
    join meters m on m.id = s.meter_id
),
noted as (
    insert into gaps (meter_id, shard, from_at, to_at, missing)
    select meter_id, shard, from_at, to_at, missing from span
    where interval_s is null or extract(epoch from to_at - from_at) * 4 >= interval_s * 7
    on conflict (meter_id, from_at) do nothing
)
select distinct meter_id, interval_s from span where interval_s is not null

-- touch_gaps: meters have sent what came late: look at their gaps at once. One that is looked at just now comes again
with free as (
    select id from gaps where meter_id = any(%(meter_ids)s) and state in ('noted', 'open', 'asked')
    for update skip locked
)
update gaps g set look_at = '-infinity' from free f where g.id = f.id

-- due_gaps: gaps to be looked at, with what is stored inside and around them, and their order
select g.id, g.meter_id, g.shard, g.state, g.asks, g.answers, m.interval_s, m.can_read_again, coalesce(u.area, '') as area,
       (extract(epoch from g.from_at) * 1000)::bigint as from_ms, (extract(epoch from g.to_at) * 1000)::bigint as to_ms,
       case when isfinite(g.ask_at)
            then (extract(epoch from g.ask_at - clock_timestamp()) * 1000)::bigint end as ask_in_ms,
       g.order_id,
       o.state as order_state,
       (extract(epoch from clock_timestamp() - o.created_at) * 1000)::bigint as order_age_ms,
       (extract(epoch from clock_timestamp() - o.confirmed_at) * 1000)::bigint as answered_ms,
       array(select (extract(epoch from r.read_at) * 1000)::bigint from readings r
             where r.meter_id = g.meter_id and r.read_at > g.from_at and r.read_at < g.to_at
             order by r.read_at) as inside_ms,
       case when m.interval_s is null then array(
           select (extract(epoch from r.read_at) * 1000)::bigint from readings r
           where r.meter_id = g.meter_id and r.read_at <= g.from_at and r.read_at > g.from_at - interval '10 days'
           order by r.read_at desc limit 5) else '{}' end as before_ms,
       case when m.interval_s is null then array(
           select (extract(epoch from r.read_at) * 1000)::bigint from readings r
           where r.meter_id = g.meter_id and r.read_at >= g.to_at and r.read_at < g.to_at + interval '10 days'
           order by r.read_at limit 5) else '{}' end as after_ms
from (
    select * from gaps
    where state in ('noted', 'open', 'asked') and look_at <= clock_timestamp() and shard = any(%(shards)s)
    order by look_at limit %(most)s for update skip locked
) g
join meters m on m.id = g.meter_id
left join installations i on i.meter_id = g.meter_id and i.role = 'billing' and i.to_at is null
left join usage_points u on u.id = i.usage_point_id
left join supply_orders o on o.id = g.order_id

-- save_gaps: what became of gaps that were looked at
update gaps g set from_at = k.from_at, to_at = k.to_at, missing = k.missing, state = k.state, answers = k.answers,
    order_id = case when k.keeps_order then g.order_id end,
    look_at = clock_timestamp() + k.look_in_ms * interval '1 millisecond',
    ask_at = case when k.ask_in_ms is null then g.ask_at
                  else clock_timestamp() + k.ask_in_ms * interval '1 millisecond' end,
    closed_at = case when k.state in ('filled', 'given_up') then clock_timestamp() end
from unnest(%(ids)s::bigint[], %(froms)s::timestamptz[], %(tos)s::timestamptz[], %(missings)s::integer[],
            %(states)s::text[], %(answers)s::smallint[], %(keep_orders)s::boolean[], %(looks_in_ms)s::bigint[],
            %(asks_in_ms)s::bigint[])
     as k(id, from_at, to_at, missing, state, answers, keeps_order, look_in_ms, ask_in_ms)
where g.id = k.id

-- drop_gaps: spans that turned out to lack nothing
delete from gaps where id = any(%(ids)s)

-- learn_intervals: keep the intervals of meters that were learnt from what they send
update meters m set interval_s = k.interval_s
from unnest(%(meter_ids)s::integer[], %(intervals_s)s::integer[]) as k(meter_id, interval_s)
where m.id = k.meter_id and m.interval_s is null

-- open_reads: orders to read that no meter has answered yet, by area
select area, count(*) from supply_orders where kind = 'read' and state in ('pending', 'sent') group by area

-- free_readers: of some meters those whose epoch nobody is changing and that have no open order to read
select s.meter_id from meter_state s
where s.meter_id = any(%(meter_ids)s)
  and not exists (select from supply_orders o
                  where o.meter_id = s.meter_id and o.kind = 'read' and o.state in ('pending', 'held', 'sent'))
order by s.meter_id for update of s skip locked

-- order_reads: order meters to send the stored readings of a span again
with epoch as (
    update meter_state s set order_epoch = s.order_epoch + 1
    from unnest(%(meter_ids)s::integer[], %(froms)s::timestamptz[], %(tos)s::timestamptz[])
         as k(meter_id, read_from, read_to)
    where s.meter_id = k.meter_id
    returning s.meter_id, s.order_epoch, k.read_from, k.read_to
)
insert into supply_orders (meter_id, account_id, shard, kind, epoch, cause, area, read_from, read_to)
select e.meter_id, a.id, a.shard, 'read', e.order_epoch, 'gap', u.area, e.read_from, e.read_to
from epoch e
join installations i on i.meter_id = e.meter_id and i.role = 'billing' and i.to_at is null
join usage_points u on u.id = i.usage_point_id
join accounts a on a.usage_point_id = i.usage_point_id
returning meter_id, id

-- mark_asked: gaps for which an order was written
update gaps g set state = 'asked', order_id = k.order_id, asks = g.asks + 1,
    look_at = clock_timestamp() + %(look_in_ms)s * interval '1 millisecond'
from unnest(%(ids)s::bigint[], %(order_ids)s::bigint[]) as k(id, order_id)
where g.id = k.id

-- end_reads: orders to read that nobody needs any more; one that is being answered just now ends by its answer
with free as (
    select o.id from supply_orders o
    where o.id in (select k.order_id from unnest(%(order_ids)s::bigint[]) as k(order_id))
      and o.state in ('pending', 'sent')
      and not exists (select from gaps g
                      where g.meter_id = o.meter_id and g.state = 'asked' and g.order_id = o.id)
    order by o.id for update skip locked
)
update supply_orders o set state = 'superseded' from free f where o.id = f.id

-- trim_gaps: closed gaps that nobody asks about any more
delete from gaps where id in (
    select id from gaps where closed_at < clock_timestamp() - %(days)s * interval '1 day' order by closed_at limit %(most)s)

-- gap_counts: gaps by state and what they lack
select state, count(*), coalesce(sum(missing), 0)::bigint from gaps group by state

-- list_gaps: gaps, the longest noted first; of a meter, in some states
select g.id, m.serial, coalesce(u.area, '') as area, g.from_at, g.to_at, m.interval_s, g.missing, g.state, g.asks, g.answers,
       g.noted_at, g.closed_at
from gaps g
join meters m on m.id = g.meter_id
left join installations i on i.meter_id = g.meter_id and i.role = 'billing' and i.to_at is null
left join usage_points u on u.id = i.usage_point_id
where (%(serial)s::text is null or m.serial = %(serial)s) and g.state = any(%(states)s) and g.id > %(after)s
order by g.id limit %(most)s
