-- audit_next_vends: the last of the next vends in id order
select max(id) from (select id from vends where id > %(after)s order by id limit %(most)s) next

-- audit_next_tokens: the last of the next tokens in id order
select max(id) from (select id from tokens where id > %(after)s order by id limit %(most)s) next

-- audit_vends: how many vends an id range holds
select count(*) from vends v
where v.id > %(after)s and v.id <= %(upto)s and (%(ids)s::bigint[] is null or v.account_id = any(%(ids)s))

-- audit_broken_vends: vends of an id range whose answer, journal and token do not go together
select v.id, v.account_id, v.message_id, v.status, v.amount_minor, v.journal_id, a.number, c.journal_ok,
       c.credited_minor, c.tokens, c.repeated
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
where v.id > %(after)s and v.id <= %(upto)s and (%(ids)s::bigint[] is null or v.account_id = any(%(ids)s))
  and (c.repeated
       or c.tokens <> case when v.status between 200 and 299 then 1 else 0 end
       or (v.journal_id is not null) <> (v.status between 200 and 299)
       or (v.journal_id is not null and (c.journal_ok is not true or c.credited_minor is distinct from v.amount_minor)))
order by v.id

-- audit_tokens: how many tokens an id range holds
select count(*) from tokens t
where t.id > %(after)s and t.id <= %(upto)s and (%(meter_ids)s::integer[] is null or t.meter_id = any(%(meter_ids)s))

-- audit_broken_tokens: tokens of an id range of no accepted vend, of another account's meter, or with a TID not its own
select t.id, v.account_id, m.serial, t.tid, s.last_tid, c.sold, c.at_home, c.repeated
from tokens t
left join meters m on m.id = t.meter_id
left join meter_state s on s.meter_id = t.meter_id
left join vends v on v.id = t.vend_id
left join accounts a on a.id = v.account_id
cross join lateral (
    select coalesce(v.status between 200 and 299, false) as sold,
           exists (select 1 from installations i
                   where i.meter_id = t.meter_id and i.to_at is null and i.usage_point_id = a.usage_point_id)
           or coalesce((a.usage_point_id, t.meter_id) in (
                  select usage_point_id, meter_id from installations where to_at is not null), false) as at_home,
           exists (select 1 from tokens o where o.meter_id = t.meter_id and o.tid = t.tid and o.id <> t.id) as repeated
) c
where t.id > %(after)s and t.id <= %(upto)s and (%(meter_ids)s::integer[] is null or t.meter_id = any(%(meter_ids)s))
  and (c.repeated or not c.sold or not c.at_home or s.last_tid is null or t.tid > s.last_tid)
order by t.id
