-- audit_next_meters: the ids of the next meters
select id from meters where id > %(after)s order by id limit %(most)s

-- audit_former_places: since when meters stood that have been taken away from somewhere
select meter_id, date_trunc('milliseconds', min(from_at)) from installations where to_at is not null group by meter_id

-- audit_meters: the meters of an id range, or some of it: present places, accounts and register segments
select m.id, m.serial, date_trunc('milliseconds', i.from_at) as from_at, a.id as account_id,
       s.segment_ats, s.registers_wh, s.starts_wh, s.moved_ats
from meters m
left join installations i on i.meter_id = m.id and i.to_at is null
left join accounts a on a.usage_point_id = i.usage_point_id and i.role = 'billing'
left join lateral (
    select array_agg(s.from_at order by s.from_at) as segment_ats,
           array_agg(s.register_wh order by s.from_at) as registers_wh,
           array_agg(s.start_wh order by s.from_at) as starts_wh,
           array_agg(s.from_at order by s.from_at) filter (where s.reason = 'swap') as moved_ats
    from register_segments s where s.meter_id = m.id
) s on true
where m.id > %(after)s and m.id <= %(upto)s and (%(ids)s::integer[] is null or m.id = any(%(ids)s))

-- audit_readings: readings by meter of an id range, or some of it: microseconds since 2000 and Wh, 8 bytes each
select r.meter_id, string_agg(timestamptz_send(r.read_at) || int8send(r.import_wh), ''::bytea order by r.read_at)
from readings r
where r.meter_id > %(after)s and r.meter_id <= %(upto)s and (%(ids)s::integer[] is null or r.meter_id = any(%(ids)s))
group by r.meter_id

-- audit_edits: what stands in the place of the registers of some meters' readings; null where the reading is void
select meter_id, read_at, import_wh from reading_edits
where meter_id > %(after)s and meter_id <= %(upto)s and (%(ids)s::integer[] is null or meter_id = any(%(ids)s))
  and replaced_by is null

-- audit_estimates: estimated registers of some meters that hold, in gaps of what was read
select meter_id, read_at, import_wh from held_estimates
where meter_id > %(after)s and meter_id <= %(upto)s and (%(ids)s::integer[] is null or meter_id = any(%(ids)s))

-- audit_orders: meters of an id range, or some of it: orders, epochs, open supply orders, cut-offs they must not get
select o.meter_id, coalesce(m.serial, '?') as serial, min(o.account_id) as account_id, count(*) as orders,
       max(o.epoch) as epoch,
       max(coalesce(s.order_epoch, 0)) as order_epoch, count(*) filter (where o.epoch <= o.epoch_before) as fallen,
       count(*) filter (where o.kind = 'supply' and o.state in ('pending', 'held', 'sent')) as open_supply,
       count(*) filter (where o.relay <> 'on' and a.mode = 'postpaid') as postpaid_cut
from (
    select *, lag(epoch) over (partition by meter_id order by id) as epoch_before
    from supply_orders
    where meter_id > %(after)s and meter_id <= %(upto)s and (%(ids)s::integer[] is null or meter_id = any(%(ids)s))
) o
left join accounts a on a.id = o.account_id
left join meters m on m.id = o.meter_id
left join meter_state s on s.meter_id = o.meter_id
group by o.meter_id, m.serial order by o.meter_id

-- audit_batches: batches, readings stored by them and not dropped since, and batches whose outcomes do not add up
select count(*),
       coalesce(sum(stored), 0)::bigint
           - (select coalesce(sum(rows), 0)::bigint from storage_drops where class = 'readings'),
       count(*) filter (where received <> stored + duplicate + rejected + quarantined)
from batches

-- audit_broken_batches: the first batches whose outcomes do not add up
select id, shard, received, stored, duplicate, rejected, quarantined from batches
where received <> stored + duplicate + rejected + quarantined order by id limit %(most)s
