-- balances_snapshot: one snapshot for one range of accounts, nothing written; each account is found by its keys, since a
-- scan of all meters or of a day's readings for one range would take longer than the range
set transaction isolation level repeatable read, read only;
set local enable_hashjoin = off; set local enable_mergejoin = off; set local enable_seqscan = off

-- balances_last_id: how far the walk goes
select max(id) from accounts

-- balances_range: the last of the next accounts in id order, and from when on their readings matter
select max(n.id), min(n.anchor_at)
from (
    select a.id, a.anchor_at from accounts a where a.id > %(after)s and a.shard = any(%(shards)s)
    order by a.id limit %(most)s
) n

-- balances_states: posted state, terms of the open month and latest point of each account of a range. What was assigned
-- before the open month is as good as assigned on its first day; the point is the anchor until there is a later one
select a.id, i.meter_id, a.mode, -a.emergency_credit_minor as cut_at_minor,
       a.posted_minor, a.charged_minor, a.through, a.before_wh, a.part_start_wh, a.closed_wh, a.demand_w,
       c.anchor_ms, a.anchor_wh, c.opened_on, t.terms, c.read_ms, greatest(c.read_ms, c.anchor_ms) as last_ms,
       case when c.read_ms > c.anchor_ms then l.import_wh + g.offset_wh else a.anchor_wh end as last_wh
from accounts a
left join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
left join lateral (
    select r.read_at, r.import_wh from effective_readings r
    where r.meter_id = i.meter_id and r.read_at >= %(since)s and r.read_at >= a.anchor_at order by r.read_at desc limit 1
) l on true
left join lateral (
    select s.start_wh - s.register_wh as offset_wh from register_segments s
    where s.meter_id = i.meter_id and s.from_at::timestamptz(3) <= l.read_at order by s.from_at desc limit 1
) g on true
cross join lateral (
    select greatest(a.opened_on, date_trunc('month', a.through::timestamp)::date) as opened_on,
           floor(extract(epoch from a.anchor_at) * 1000)::bigint as anchor_ms,
           floor(extract(epoch from l.read_at) * 1000)::bigint as read_ms
) c
cross join lateral (
    select json_agg(json_build_array(greatest(x.from_day, c.opened_on), x.tariff_id, x.load_w, x.area_type, x.meter_rent)
                    order by x.from_day)::text as terms
    from assignments x
    where x.account_id = a.id and x.replaced_by is null
      and x.from_day < date_trunc('month', a.through::timestamp) + interval '1 month'
) t
where a.id > %(after)s and a.id <= %(upto)s and a.shard = any(%(shards)s)
  and (%(category)s::text is null or %(category)s = (
      select x.category from assignments x
      where x.account_id = a.id and x.replaced_by is null and x.from_day <= a.through order by x.from_day desc limit 1))
order by a.id

-- balances_tariffs: checksums of tariffs by id
select id, sha256 from tariffs where id = any(%(ids)s)

-- balances_uses: energy and charge of the last closed days of some accounts, and how many days these are
select a.id, count(*), sum(j.energy_wh)::bigint, sum(m.charge_minor)::bigint
from accounts a
join journals j on j.account_id = a.id and j.kind = 'day' and j.local_day < a.through
               and j.local_day >= a.through - %(days)s::integer
cross join lateral (
    select coalesce(sum(e.value::bigint), 0)::bigint as charge_minor from jsonb_each_text(j.lines) e
) m
where a.id = any(%(ids)s)
group by a.id

-- balances_facts: what a person is told of some accounts: category of the first open day, supply, phone, alarm. Scalar
-- subqueries are always probed; as a join or `exists`, all alarms or contacts could be read for one range
select a.id, a.number,
       (select x.category from assignments x
        where x.account_id = a.id and x.replaced_by is null and x.from_day <= a.through
        order by x.from_day desc limit 1) as category,
       a.desired, s.relay,
       coalesce((select true from contacts c
                 where c.consumer_id = a.consumer_id and c.channel = 'sms' and c.verified_at is not null
                   and c.removed_at is null limit 1), false)
           as phone_verified,
       (select floor(extract(epoch from e.raised_at) * 1000)::bigint from alarms e
        where e.account_id = a.id and e.level = 'exhausted' and e.arm = a.exhausted_arm and a.exhausted_raised)
           as exhausted_ms
from accounts a
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
join meter_state s on s.meter_id = i.meter_id
where a.id = any(%(ids)s)
