-- record_to_mint: the version that a meter's next token is made under: the pending one, else the one in force
select * from known_records where meter_id = %(meter_id)s and state in ('pending', 'active') order by version desc limit 1

-- record_in_force: the version that a meter is known to hold now
select * from known_records where meter_id = %(meter_id)s and state = 'active'

-- record_of_token: the version that some digits were made under for a meter
select r.* from tokens t join known_records r on r.id = t.record_id
where t.meter_id = %(meter_id)s and t.digits = %(digits)s and t.kind <> 'key_change'
order by t.id desc limit 1

-- records_of_meter: every version of a meter's record, the newest first
select * from known_records where meter_id = %(meter_id)s order by version desc

-- meter_and_account: a meter by its serial, with the account that is billed by it
select m.id, m.serial, m.drn, a.id as account_id
from meters m
left join installations i on i.meter_id = m.id and i.role = 'billing' and i.to_at is null
left join accounts a on a.usage_point_id = i.usage_point_id
where m.serial = %(serial)s

-- lock_meter_state: one change of a meter's record at a time; a statement of its own, look later
select 1 from meter_state where meter_id = %(meter_id)s for no key update

-- name_meter: the DRN of a meter that has none, or has another one by which no token was made yet
update meters m set drn = %(drn)s
where m.id = %(meter_id)s and (m.drn is null or not exists (select from tokens t where t.meter_id = m.id))

-- end_active_record: the version in force is past from now on
update meter_records set state = 'past', valid_to = %(at)s where meter_id = %(meter_id)s and state = 'active'

-- add_record: the next version of a meter's record
insert into meter_records (meter_id, version, state, engine, ea, tct, dkga, sgc, key_type, krn, tariff_index, ken,
                           base_year, key_change_tokens, day_price_minor, capabilities, written_by, reason, valid_from)
select %(meter_id)s, coalesce(max(version), 0) + 1, %(state)s, %(engine)s, %(ea)s, %(tct)s, %(dkga)s, %(sgc)s,
       %(key_type)s, %(krn)s, %(tariff_index)s, %(ken)s, %(base_year)s, %(key_change_tokens)s, %(day_price_minor)s,
       %(capabilities)s, %(written_by)s, %(reason)s, %(valid_from)s
from meter_records where meter_id = %(meter_id)s
returning id, version

-- begin_pending_record: the pending version is in force from now on
update meter_records set state = 'active', valid_from = %(at)s, settled_by = %(by)s
where meter_id = %(meter_id)s and state = 'pending'
returning version

-- withdraw_pending_record: the pending version is given up
update meter_records set state = 'withdrawn', settled_by = %(by)s
where meter_id = %(meter_id)s and state = 'pending'
returning version

-- lock_pending_of_token: the pending version that a credit or management token was made under, and now
select r.version, clock_timestamp(), t.tid from tokens t join meter_records r on r.id = t.record_id
where t.id = %(token_id)s and t.meter_id = %(meter_id)s and t.kind <> 'key_change' and r.state = 'pending'
for no key update of r

-- key_change_set: the tokens that bring a version, in the order of their numbers
select digits from tokens where record_id = %(record_id)s and kind = 'key_change' order by section

-- open_tokens: the newest credit and management tokens made under a version that were not seen at the meter
select t.id, t.kind, t.era, t.tid, right(t.digits, 4) as last_four, t.made_at
from tokens t
where t.meter_id = %(meter_id)s and t.record_id = %(record_id)s and t.kind <> 'key_change'
  and not exists (select from token_deliveries d where d.token_id = t.id)
order by t.id desc limit %(most)s
