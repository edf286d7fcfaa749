-- audit_next_vends: the last of the next vends in id order
select max(id) from (select id from vends where id > %(after)s order by id limit %(most)s) next

-- audit_next_tokens: the last of the next tokens in id order
select max(id) from (select id from tokens where id > %(after)s order by id limit %(most)s) next

-- audit_vends: how many vends an id range holds
select count(*) from vends v
where v.id > %(after)s and v.id <= %(upto)s and (%(ids)s::bigint[] is null or v.account_id = any(%(ids)s))

-- audit_broken_vends: vends of an id range whose answer, state, journal, reversal and token do not go together
select v.id, v.account_id, v.message_id, v.status, v.amount_minor, v.journal_id, v.state, v.funding, a.number,
       c.journal_ok, c.credited_minor, c.source, c.tokens, c.repeated, c.reversals, c.reversed_minor, c.moved_to
from vends v
left join accounts a on a.id = v.account_id
cross join lateral (
    select (select j.kind = 'vend' and j.account_id = v.account_id from journals j where j.id = v.journal_id)
               as journal_ok,
           (select sum(g.amount_minor)::bigint from legs g where g.journal_id = v.journal_id and g.ledger = 'prepaid')
               as credited_minor,
           (select min(g.ledger) from legs g where g.journal_id = v.journal_id and g.ledger <> 'prepaid') as source,
           (select count(*) from tokens t where t.vend_id = v.id) as tokens,
           exists (select 1 from vends o where o.vendor_id = v.vendor_id and o.message_id = v.message_id
                                           and o.id <> v.id) as repeated,
           (select count(*) from journals r where r.about_id = v.journal_id and r.kind = 'reversal') as reversals,
           (select sum(g.amount_minor)::bigint from journals r join legs g on g.journal_id = r.id
            where r.about_id = v.journal_id and r.kind = 'reversal' and g.ledger = 'prepaid') as reversed_minor,
           (select o.to_state from vend_moves o where o.vend_id = v.id order by o.id desc limit 1) as moved_to
) c
where v.id > %(after)s and v.id <= %(upto)s and (%(ids)s::bigint[] is null or v.account_id = any(%(ids)s))
  and (c.repeated
       or c.tokens <> case when v.status between 200 and 299 then 1 else 0 end
       or (v.journal_id is not null) <> (v.status between 200 and 299)
       or (v.journal_id is not null and (c.journal_ok is not true or c.credited_minor is distinct from v.amount_minor
               or c.source is distinct from case v.funding when 'vendor' then 'vendor_clearing'
                      when 'coupon' then 'coupons' when 'online' then 'gateway_clearing'
                      when 'free_issue' then 'free_issues' else 'subsidy_receivable' end))
       or c.reversals <> case when v.state = 'reversed' and v.journal_id is not null then 1 else 0 end
       or (c.reversals = 1 and c.reversed_minor is distinct from -v.amount_minor)
       or (c.moved_to is not null and c.moved_to <> v.state))
order by v.id

-- audit_tokens: how many tokens an id range holds
select count(*) from tokens t
where t.id > %(after)s and t.id <= %(upto)s and (%(meter_ids)s::integer[] is null or t.meter_id = any(%(meter_ids)s))

-- audit_broken_tokens: tokens of an id range that nobody bought or asked for, of another account's or meter's record,
-- or with a TID not its own in its era
select t.id, v.account_id, m.serial, t.tid, s.last_tid, c.sold, c.at_home, c.repeated, c.recorded
from tokens t
left join meters m on m.id = t.meter_id
left join last_tids s on s.meter_id = t.meter_id and s.era = t.era
left join vends v on v.id = t.vend_id
left join accounts a on a.id = v.account_id
cross join lateral (
    select t.kind <> 'credit' or coalesce(v.status between 200 and 299, false) as sold,
           t.kind <> 'credit' or exists (select 1 from installations i
                   where i.meter_id = t.meter_id and i.to_at is null and i.usage_point_id = a.usage_point_id)
           or coalesce((a.usage_point_id, t.meter_id) in (
                  select usage_point_id, meter_id from installations where to_at is not null), false) as at_home,
           exists (select 1 from tokens o where o.meter_id = t.meter_id and o.era = t.era and o.tid = t.tid
                                            and o.id <> t.id) as repeated,
           exists (select 1 from meter_records r
                   where r.id = t.record_id and r.meter_id = t.meter_id and r.engine = t.engine
                     and (t.kind = 'key_change' or coalesce(r.base_year, 0) = t.era)) as recorded
) c
where t.id > %(after)s and t.id <= %(upto)s and (%(meter_ids)s::integer[] is null or t.meter_id = any(%(meter_ids)s))
  and (c.repeated or not c.sold or not c.at_home or not c.recorded
       or (t.tid is not null and (s.last_tid is null or t.tid > s.last_tid)))
order by t.id

-- audit_next_records: the last of the next meters in id order
select max(id) from (select id from meters where id > %(after)s order by id limit %(most)s) next

-- audit_records: how many meters of an id range have a record
select count(distinct r.meter_id) from meter_records r
where r.meter_id > %(after)s and r.meter_id <= %(upto)s
  and (%(meter_ids)s::integer[] is null or r.meter_id = any(%(meter_ids)s))

-- audit_broken_records: meters of an id range whose versions do not follow upon each other
select r.meter_id as id, m.serial, r.versions, r.last, r.active, r.gaps, r.pending
from (
    select r.meter_id, count(*) as versions, max(r.version) as last,
           count(*) filter (where r.state = 'active') as active,
           -- A version begins when the one in force before it ended.
           count(*) filter (where r.valid_from <> r.before_to) as gaps,
           min(r.version) filter (where r.state = 'pending' and not exists (
               select 1 from tokens t where t.record_id = r.id and t.kind = 'key_change')) as pending
    from (
        select *, lag(valid_to) over (partition by meter_id, valid_from is not null order by version) as before_to
        from meter_records
        where meter_id > %(after)s and meter_id <= %(upto)s
          and (%(meter_ids)s::integer[] is null or meter_id = any(%(meter_ids)s))
    ) r
    group by r.meter_id
) r
join meters m on m.id = r.meter_id
where r.versions <> r.last or r.active <> 1 or r.gaps > 0 or r.pending is not null
order by r.meter_id
