-- listen_for_orders: be woken when an order was committed
listen orders

-- database_clock: what the dispatcher's schedule goes by
select clock_timestamp()

-- due_restores: orders that give supply, due now; none waits for a limit or for another order
select o.id
from unnest(%(shards)s::smallint[]) as s(shard)
cross join lateral (
    select r.id, r.next_try_at from supply_orders r
    where r.shard = s.shard and r.relay = 'on' and r.state in ('pending', 'sent')
      and r.next_try_at <= clock_timestamp()
    order by r.next_try_at limit %(of_shard)s
) o
order by o.next_try_at, o.id limit %(most)s

-- due_load_limits: orders that limit the load, due now: they wait for their hours, not for the limits of an area
select o.id
from unnest(%(shards)s::smallint[]) as s(shard)
cross join lateral (
    select r.id, r.next_try_at from supply_orders r
    where r.shard = s.shard and r.relay = 'limited' and r.state in ('pending', 'sent')
      and r.next_try_at <= clock_timestamp()
    order by r.next_try_at limit %(of_shard)s
) o
order by o.next_try_at, o.id limit %(most)s

-- due_messages: alarms, thresholds and tokens due now; of a meter the oldest
select distinct on (o.meter_id) o.id
from unnest(%(shards)s::smallint[]) as s(shard)
cross join lateral (
    select r.id, r.meter_id, r.epoch from supply_orders r
    where r.shard = s.shard and r.kind in ('alarm', 'threshold', 'token') and r.state in ('pending', 'sent')
      and r.next_try_at <= clock_timestamp()
    order by r.next_try_at limit %(of_shard)s
) o
order by o.meter_id, o.epoch limit %(most)s

-- due_reads: orders to send stored readings again, due now; they come after everything else
select o.id
from unnest(%(shards)s::smallint[]) as s(shard)
cross join lateral (
    select r.id, r.next_try_at from supply_orders r
    where r.shard = s.shard and r.kind = 'read' and r.state in ('pending', 'sent')
      and r.next_try_at <= clock_timestamp()
    order by r.next_try_at limit %(of_shard)s
) o
order by o.next_try_at, o.id limit %(most)s

-- waiting_areas: some areas with a cut-off due now, any, and whether they have a row to count in; one step for each
-- area with an open cut-off
with recursive open_areas as (
    select min(o.area) as area from supply_orders o where o.relay = 'off' and o.state in ('pending', 'sent')
    union all
    select (select min(o.area) from supply_orders o
            where o.relay = 'off' and o.state in ('pending', 'sent') and o.area > a.area)
    from open_areas a where a.area is not null
)
select a.area, exists (select from cut_off_areas k where k.area = a.area) from open_areas a
where a.area is not null
  and exists (
      select from supply_orders o
      where o.area = a.area and o.relay = 'off' and o.state in ('pending', 'sent')
        and o.next_try_at <= clock_timestamp() and o.shard = any(%(shards)s))
order by random() limit %(areas_most)s

-- know_areas: areas that are cut off in for the first time get their row; a statement of its own, since another
-- dispatcher that adds the same one would wait for it
insert into cut_off_areas (area) select a.area from unnest(%(areas)s::text[]) as a(area) on conflict do nothing

-- lock_areas: take the areas that no other dispatcher counts in just now; never wait
select area from cut_off_areas where area = any(%(areas)s) order by area for no key update skip locked

-- carry_counts: what was counted under a clock that has been set back since counts as of now
with later as (
    delete from cut_off_counts where area = any(%(areas)s) and at > clock_timestamp() returning area, sent, first_tries
)
insert into cut_off_counts (area, at, sent, first_tries)
select area, date_bin(%(minute_s)s / 6 * interval '1 second', clock_timestamp(), '2000-01-01'), sum(sent),
       sum(first_tries)
from later group by area
on conflict (area, at) do update set sent = cut_off_counts.sent + excluded.sent,
    first_tries = cut_off_counts.first_tries + excluded.first_tries

-- cut_off_places: commands that left in the last minute, first ones in the last hour, a step of the count longer, and
-- whether all are held
select a.area, n.minute_sent, n.hour_sent,
       exists (select from supply_alarms h where h.area = a.area and h.kind = 'held' and h.ended_at is null)
from cut_off_areas a
cross join lateral (
    select coalesce(sum(c.sent) filter (where c.at > clock_timestamp() - %(minute_s)s * 7 / 6 * interval '1 second'),
                    0)::integer as minute_sent,
           coalesce(sum(c.first_tries) filter (where c.at > a.counted_from), 0)::integer as hour_sent
    from cut_off_counts c
    where c.area = a.area and c.at > clock_timestamp() - (%(hour_s)s + %(minute_s)s / 6) * interval '1 second'
) n
where a.area = any(%(areas)s)

-- due_cut_offs: the cut-offs due now of some areas, each area at most its number; first those never sent
select o.id
from unnest(%(areas)s::text[], %(numbers)s::integer[]) as a(area, number)
cross join lateral (
    select r.id, r.next_try_at from supply_orders r
    where r.area = a.area and r.relay = 'off' and r.state in ('pending', 'sent')
      and r.next_try_at <= clock_timestamp() and r.shard = any(%(shards)s)
    order by r.next_try_at, r.id limit a.number
) o
order by o.next_try_at, o.id limit %(most)s

-- count_cut_offs: note how many cut-offs leave now, and how many of them for the first time
insert into cut_off_counts (area, at, sent, first_tries)
select k.area, date_bin(%(minute_s)s / 6 * interval '1 second', clock_timestamp(), '2000-01-01'), k.number, k.first_tries
from unnest(%(areas)s::text[], %(numbers)s::integer[], %(first_tries)s::integer[]) as k(area, number, first_tries)
on conflict (area, at) do update set sent = cut_off_counts.sent + excluded.sent,
    first_tries = cut_off_counts.first_tries + excluded.first_tries

-- order_facts: what decides whether due orders are sent now: transport, category, and what went before
select o.id, o.meter_id, m.transport, o.kind, o.relay, o.area, c.category, o.contradicted_at is not null as contradicted,
       o.sent_at is null as is_first_try,
       (extract(epoch from clock_timestamp() - o.created_at) * 1000)::bigint as age_ms,
       p.age_ms as same_before_ms, f.busy_ms
from supply_orders o
join meters m on m.id = o.meter_id
left join lateral (
    select x.category from assignments x
    where o.relay <> 'on' and x.account_id = o.account_id and x.replaced_by is null and x.from_day <= %(today)s
    order by x.from_day desc limit 1
) c on true
left join lateral (
    select case when b.relay = o.relay and (b.state = 'confirmed' or b.contradicted_at is not null)
           then (extract(epoch from clock_timestamp() - b.sent_at) * 1000)::bigint end as age_ms
    from supply_orders b
    where o.kind = 'supply' and o.sent_at is null
      and b.meter_id = o.meter_id and b.kind = 'supply' and b.epoch < o.epoch
    order by b.epoch desc limit 1
) p on true
left join lateral (
    select (extract(epoch from max(b.next_try_at) - clock_timestamp()) * 1000)::bigint as busy_ms
    from supply_orders b
    where o.kind <> 'supply'
      and b.meter_id = o.meter_id and b.id <> o.id and b.state = 'sent' and b.next_try_at > clock_timestamp()
) f on true
where o.id = any(%(ids)s) and o.state in ('pending', 'sent')

-- put_off_orders: look at orders again later, and say why; those that somebody is changing come again anyway
with free as (
    select o.id, p.wait_ms, p.why from supply_orders o
    join unnest(%(ids)s::bigint[], %(waits_ms)s::bigint[], %(whys)s::text[]) as p(id, wait_ms, why) on p.id = o.id
    where o.state in ('pending', 'sent')
    order by o.id for update of o skip locked
)
update supply_orders o set next_try_at = clock_timestamp() + f.wait_ms * interval '1 millisecond',
    looked_at = clock_timestamp(), waits_for = f.why,
    cause = case f.why when 'contradicting' then 'reported' else o.cause end
from free f where o.id = f.id

-- free_contradicted: contradicted orders whose row and whose meter's epoch nobody is changing; never wait
select o.id from supply_orders o join meter_state s on s.meter_id = o.meter_id
where o.id = any(%(ids)s) and o.state in ('pending', 'sent') and o.contradicted_at is not null
order by o.id for update of o, s skip locked

-- end_contradicted: a meter never executes an epoch again that it has executed
update supply_orders set state = 'superseded' where id = any(%(ids)s)

-- order_again: order the same of meters that contradicted, under their next epochs
with epoch as (
    update meter_state s set order_epoch = s.order_epoch + 1
    from supply_orders o where o.id = any(%(ids)s) and s.meter_id = o.meter_id
    returning o.id, s.order_epoch
)
insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, limit_w, level, balance_minor,
                           threshold_minor, cause)
select o.meter_id, o.account_id, o.shard, o.kind, e.order_epoch, o.relay, o.limit_w, o.level, o.balance_minor,
       o.threshold_minor, 'reported'
from epoch e join supply_orders o on o.id = e.id
order by o.id

-- send_orders: claim orders for one try, if they are still current and nobody is changing them; the next backs off
with claimed as (
    select id from supply_orders where id = any(%(ids)s) and state in ('pending', 'sent')
    order by id for update skip locked
)
update supply_orders o set state = 'sent', attempts = o.attempts + 1,
    sent_at = coalesce(o.sent_at, clock_timestamp()), looked_at = clock_timestamp(), waits_for = null,
    next_try_at = clock_timestamp() + interval '1 second' * (0.75 + random() / 2)
        * case when o.relay = 'off' and o.attempts >= %(long_away_attempts)s then %(long_away_backoff_s)s
               else least(case o.relay when 'on' then %(restore_backoff_s_max)s else %(backoff_s_max)s end,
                          %(backoff_s_first)s * power(2, least(o.attempts, 20))) end
from claimed c, meters m
where o.id = c.id and m.id = o.meter_id
returning o.id, m.serial, m.transport, o.area, o.kind, o.attempts = 1 as is_first_try, o.epoch, o.relay, o.limit_w, o.level, o.balance_minor,
          o.threshold_minor, o.read_from, o.read_to, o.account_id, o.token_id

-- mark_published: note when orders left for their meters; those that somebody is changing are noted later
with free as (
    select o.id, p.at from supply_orders o
    join unnest(%(ids)s::bigint[], %(ats)s::timestamptz[]) as p(id, at) on p.id = o.id
    order by o.id for update of o skip locked
)
update supply_orders o set published_at = coalesce(o.published_at, f.at) from free f where o.id = f.id
returning o.id

-- raise_supply_alarms: tell operators that an area's cut-offs are held back; once until it ends
insert into supply_alarms (area, kind, sent, most)
select k.area, k.kind, k.sent, k.most
from unnest(%(areas)s::text[], %(kinds)s::text[], %(sents)s::integer[], %(mosts)s::integer[]) as k(area, kind, sent, most)
where not exists (select from supply_alarms a where a.area = k.area and a.kind = k.kind and a.ended_at is null)
on conflict do nothing
returning area, kind

-- end_capped: the minute's limit holds nothing back any more in an area, or the hour's does
update supply_alarms l set ended_at = clock_timestamp()
where l.kind = 'capped' and l.ended_at is null
  and (not exists (
          select from supply_orders o
          where o.area = l.area and o.relay = 'off' and o.state in ('pending', 'sent')
            and o.next_try_at <= clock_timestamp())
       or exists (select from supply_alarms h where h.area = l.area and h.kind = 'held' and h.ended_at is null))
returning l.area

-- trim_counts: counts older than any hour that is looked at
delete from cut_off_counts where at < clock_timestamp() - 2 * %(hour_s)s * interval '1 second'

-- retry_after_clock: what was looked at later than now was scheduled under a clock that has been set back
update supply_orders set next_try_at = '-infinity', looked_at = clock_timestamp()
where shard = any(%(shards)s) and state in ('pending', 'sent') and looked_at > clock_timestamp()

-- ask_off_meters: of some meters that report no supply, ask for a look where something else is desired and nothing ordered
with part as (
    select meter_id, relay from meter_state where relay <> 'on' and meter_id > %(after)s order by meter_id limit %(most)s
),
asked as (
    insert into rechecks (account_id, shard)
    select a.id, a.shard
    from part s
    join installations i on i.meter_id = s.meter_id and i.role = 'billing' and i.to_at is null
    join accounts a on a.usage_point_id = i.usage_point_id and a.desired <> s.relay
    where a.shard = any(%(shards)s)
      and not exists (select from supply_orders o where o.meter_id = s.meter_id and o.kind = 'supply'
                                                    and o.state in ('pending', 'held', 'sent'))
    on conflict (account_id) do nothing
    returning account_id
)
select (select max(meter_id) from part), (select count(*) from asked)

-- ask_off_accounts: of some accounts without supply, ask for a look where the meter reports other and nothing is ordered
with part as (
    select id, usage_point_id, shard, desired from accounts where desired <> 'on' and id > %(after)s order by id limit %(most)s
),
asked as (
    insert into rechecks (account_id, shard)
    select a.id, a.shard
    from part a
    join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
    join meter_state s on s.meter_id = i.meter_id and coalesce(s.relay, 'on') <> a.desired
    where a.shard = any(%(shards)s)
      and not exists (select from supply_orders o where o.meter_id = s.meter_id and o.kind = 'supply'
                                                    and o.state in ('pending', 'held', 'sent'))
    on conflict (account_id) do nothing
    returning account_id
)
select (select max(id) from part), (select count(*) from asked)
