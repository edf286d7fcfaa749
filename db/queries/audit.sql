-- audit_snapshot: one snapshot for the whole audit, nothing written; its longest statements read millions of rows
set transaction isolation level repeatable read, read only;
set local statement_timeout = '10min'; set local work_mem = '64MB'

-- audit_next_meters: the last of the next meters in id order
select max(id) from (select id from meters where id > %(after)s order by id limit %(most)s) next

-- audit_next_journals: the last of the next journals in id order
select max(id) from (select id from journals where id > %(after)s order by id limit %(most)s) next

-- audit_next_vends: the last of the next vends in id order
select max(id) from (select id from vends where id > %(after)s order by id limit %(most)s) next

-- audit_next_tokens: the last of the next tokens in id order
select max(id) from (select id from tokens where id > %(after)s order by id limit %(most)s) next

-- audit_next_accounts: the next accounts in id order
select id from accounts where id > %(after)s order by id limit %(most)s

-- audit_journals: an id range of the ledger: journals, sum of legs, journals that are broken or lack their vend
with sums as (
    select coalesce(j.id, g.journal_id) as id, j.kind, j.account_id, count(g.n) as legs,
           coalesce(sum(g.amount_minor), 0)::bigint as amount_minor
    from (select id, kind, account_id from journals where id > %(after)s and id <= %(upto)s) j
    full join (select journal_id, n, amount_minor from legs
               where journal_id > %(after)s and journal_id <= %(upto)s) g on g.journal_id = j.id
    group by 1, 2, 3
)
select count(s.kind), coalesce(sum(s.amount_minor), 0)::bigint,
       coalesce(jsonb_agg(jsonb_build_array(s.id, a.number, s.legs, s.amount_minor) order by s.id)
                filter (where s.kind is null or s.legs = 0 or s.amount_minor <> 0), '[]'),
       coalesce(jsonb_agg(jsonb_build_array(s.id, a.number) order by s.id)
                filter (where s.kind = 'vend' and not exists (select 1 from vends v where v.journal_id = s.id)), '[]')
from sums s left join accounts a on a.id = s.account_id

-- audit_vends: how many vends an id range holds
select count(*) from vends where id > %(after)s and id <= %(upto)s

-- audit_broken_vends: vends of an id range whose answer, journal and token do not go together
select v.id, v.message_id, v.status, v.amount_minor, v.journal_id, a.number, c.journal_ok, c.credited_minor, c.tokens,
       c.repeated
from vends v
left join accounts a on a.id = v.account_id
cross join lateral (
    select (select j.kind = 'vend' and j.account_id = v.account_id from journals j where j.id = v.journal_id)
               as journal_ok,
           (select sum(g.amount_minor)::bigint from legs g where g.journal_id = v.journal_id and g.ledger = 'prepaid')
               as credited_minor,
           (select count(*) from tokens t where t.vend_id = v.id) as tokens,
           exists (select 1 from vends o where o.vendor_id = v.vendor_id and o.message_id = v.message_id
                                           and o.id <> v.id) as repeated
) c
where v.id > %(after)s and v.id <= %(upto)s
  and (c.repeated
       or c.tokens <> case when v.status between 200 and 299 then 1 else 0 end
       or (v.journal_id is not null) <> (v.status between 200 and 299)
       or (v.journal_id is not null and (c.journal_ok is not true or c.credited_minor is distinct from v.amount_minor)))
order by v.id

-- audit_tokens: how many tokens an id range holds
select count(*) from tokens where id > %(after)s and id <= %(upto)s

-- audit_broken_tokens: tokens of an id range of no accepted vend, of another account's meter, or with a TID not its own
select t.id, m.serial, t.tid, s.last_tid, c.sold, c.at_home, c.repeated
from tokens t
left join meters m on m.id = t.meter_id
left join meter_state s on s.meter_id = t.meter_id
cross join lateral (
    select exists (select 1 from vends v where v.id = t.vend_id and v.status between 200 and 299) as sold,
           exists (select 1 from vends v join accounts a on a.id = v.account_id
                   join installations i on i.usage_point_id = a.usage_point_id
                   where v.id = t.vend_id and i.meter_id = t.meter_id) as at_home,
           exists (select 1 from tokens o where o.meter_id = t.meter_id and o.tid = t.tid and o.id <> t.id) as repeated
) c
where t.id > %(after)s and t.id <= %(upto)s
  and (c.repeated or not c.sold or not c.at_home or s.last_tid is null or t.tid > s.last_tid)
order by t.id

-- audit_curves: each meter of an id range: readings, those from before its installation, falls of its energy to date
with places as (
    select meter_id, date_trunc('milliseconds', min(from_at)) as from_at
    from installations where meter_id > %(after)s and meter_id <= %(upto)s group by meter_id
),
stretches as (
    select s.meter_id, s.start_wh - s.register_wh as offset_wh, first_value(s.start_wh) over m as first_wh,
           case when lag(s.from_at) over m is null then '-infinity' else s.from_at end as since,
           coalesce(lead(s.from_at) over m, 'infinity') as until
    from register_segments s where s.meter_id > %(after)s and s.meter_id <= %(upto)s
    window m as (partition by s.meter_id order by s.from_at)
),
registers as (
    select r.meter_id, r.read_at, r.import_wh, lag(r.read_at) over m as before_at, lag(r.import_wh) over m as before_wh
    from readings r where r.meter_id > %(after)s and r.meter_id <= %(upto)s
    window m as (partition by r.meter_id order by r.read_at)
),
curve as (
    select r.meter_id, r.read_at, p.from_at is null or r.read_at < p.from_at as outside,
           r.import_wh + s.offset_wh < coalesce(r.before_wh + b.offset_wh, s.first_wh) as falls
    from registers r
    left join stretches s on s.meter_id = r.meter_id and r.read_at >= s.since and r.read_at < s.until
    left join stretches b on b.meter_id = r.meter_id and r.before_at >= b.since and r.before_at < b.until
    left join places p on p.meter_id = r.meter_id
)
select c.meter_id, coalesce(m.serial, '?') as serial, count(*) as readings,
       count(*) filter (where c.outside) as outside, min(c.read_at) filter (where c.outside) as outside_at,
       count(*) filter (where c.falls) as falls, min(c.read_at) filter (where c.falls) as falls_at
from curve c left join meters m on m.id = c.meter_id
group by c.meter_id, m.serial order by c.meter_id

-- audit_orders: each meter of an id range: its orders, their epochs, open supply orders, cut-offs it must not get
select o.meter_id, coalesce(m.serial, '?') as serial, count(*) as orders, max(o.epoch) as epoch,
       max(coalesce(s.order_epoch, 0)) as order_epoch, count(*) filter (where o.epoch <= o.epoch_before) as fallen,
       count(*) filter (where o.kind = 'supply' and o.state in ('pending', 'held', 'sent')) as open_supply,
       count(*) filter (where o.relay = 'off' and a.mode = 'postpaid') as postpaid_cut
from (
    select *, lag(epoch) over (partition by meter_id order by id) as epoch_before
    from supply_orders where meter_id > %(after)s and meter_id <= %(upto)s
) o
left join accounts a on a.id = o.account_id
left join meters m on m.id = o.meter_id
left join meter_state s on s.meter_id = o.meter_id
group by o.meter_id, m.serial order by o.meter_id

-- audit_batches: batches, readings stored by them, and batches whose outcomes do not add up
select count(*), coalesce(sum(stored), 0)::bigint,
       count(*) filter (where received <> stored + duplicate + rejected + quarantined)
from batches

-- audit_broken_batches: the first batches whose outcomes do not add up
select id, shard, received, stored, duplicate, rejected, quarantined from batches
where received <> stored + duplicate + rejected + quarantined order by id limit %(most)s

-- audit_recent_shards: shards that stored a batch within the time a crossing takes to settle
select distinct shard from (select shard, committed_at from batches order by id desc limit 10000) b
where committed_at > now() - %(settle_s)s * interval '1 second' and shard is not null

-- audit_waiting: those of some accounts that ingest has still to look at: asked for, or changed beside a recent batch
select account_id from rechecks where account_id = any(%(ids)s)
union
select f.account_id from change_feed f
join shard_leases l on l.role = 'ingest' and l.shard = f.shard
where f.shard = any(%(recent_shards)s::smallint[]) and f.account_id = any(%(ids)s) and f.xid >= l.feed_from

-- audit_accounts: what journals, alarms, orders and readings say of some accounts, beside their checkpoints
select a.id, a.number, i.meter_id, i.complete,
       j.prepaid_minor, j.energy_wh, j.days, j.first_day, j.last_day, j.unread_days,
       l.low_arms, l.exhausted_arms, o.relay as ordered, o.state as order_state,
       r.read_at as last_at, r.import_wh as last_register_wh
from accounts a
left join lateral (
    select i.meter_id, exists (select 1 from register_segments s where s.meter_id = i.meter_id)
                       and exists (select 1 from meter_state s where s.meter_id = i.meter_id) as complete
    from installations i where i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null limit 1
) i on true
cross join lateral (
    select coalesce(sum(g.prepaid_minor), 0)::bigint as prepaid_minor,
           coalesce(sum(k.energy_wh), 0)::bigint as energy_wh,
           count(*) filter (where k.kind = 'day') as days, min(k.local_day) as first_day, max(k.local_day) as last_day,
           coalesce(array_agg(k.local_day) filter (where k.kind = 'day' and k.edge_quality = 'unread'), '{}')
               as unread_days
    from journals k
    left join lateral (
        select sum(g.amount_minor) as prepaid_minor from legs g where g.journal_id = k.id and g.ledger = 'prepaid'
    ) g on true
    where k.account_id = a.id
) j
cross join lateral (
    select coalesce(array_agg(l.arm order by l.arm) filter (where l.level = 'low'), '{}') as low_arms,
           coalesce(array_agg(l.arm order by l.arm) filter (where l.level = 'exhausted'), '{}') as exhausted_arms
    from alarms l where l.account_id = a.id
) l
left join lateral (
    select o.relay, o.state from supply_orders o
    where o.meter_id = i.meter_id and o.kind = 'supply' order by o.epoch desc limit 1
) o on true
left join lateral (
    select r.read_at, r.import_wh from readings r where r.meter_id = i.meter_id order by r.read_at desc limit 1
) r on true
where a.id = any(%(ids)s)
order by a.id

-- audit_edges: the readings on both sides of bill part edges, for many meters
select k.account_id, n.read_at, n.import_wh
from unnest(%(account_ids)s::bigint[], %(meter_ids)s::integer[], %(edges)s::timestamptz[])
     as k(account_id, meter_id, edge)
cross join lateral (
    (select r.read_at, r.import_wh from readings r
     where r.meter_id = k.meter_id and r.read_at < k.edge order by r.read_at desc limit 1)
    union all
    (select r.read_at, r.import_wh from readings r
     where r.meter_id = k.meter_id and r.read_at >= k.edge order by r.read_at limit 1)
) n

-- import_tariffs: tariffs that an account may be opened on
select id from tariffs

-- import_drns: meters that hold some DRNs already
select drn, serial from meters where drn = any(%(drns)s)

-- import_serials: meters by serial: where the register ends, and whether each stands somewhere
select m.serial, m.register_end_wh, i.id is not null as installed
from meters m left join installations i on i.meter_id = m.id and i.to_at is null
where m.serial = any(%(serials)s)

-- import_numbers: those of some account numbers that are taken
select number from accounts where number = any(%(numbers)s)

-- import_usage_points: those of some usage point codes that are taken
select code from usage_points where code = any(%(codes)s)

-- account_demands: energy, greatest demand and assessed energy that journals have booked for some accounts, by bill part
select j.account_id, j.period, sum(j.energy_wh)::bigint, coalesce(max(j.demand_w), 0), sum(j.assessed_wh)::bigint
from journals j where j.account_id = any(%(ids)s) and j.period is not null
group by j.account_id, j.period
