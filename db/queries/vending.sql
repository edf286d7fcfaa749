-- api_key_by_id: an interface key with the vendor it belongs to
select k.key_id, k.sha256, k.role, k.active, k.vendor_id, v.name as vendor_name, v.active as vendor_active, k.account_id
from api_keys k
left join vendors v on v.id = k.vendor_id
where k.key_id = %(key_id)s

-- add_api_key: a new interface key, by the digest of its secret
insert into api_keys (key_id, sha256, role, vendor_id, account_id)
values (%(key_id)s, %(sha256)s, %(role)s, %(vendor_id)s, %(account_id)s)

-- end_api_key: an interface key is taken back
update api_keys set active = false where key_id = %(key_id)s

-- sealed_vending_keys: every vending key, sealed
select sgc, krn, sealed from vending_keys order by sgc, krn

-- add_vending_key: a sealed vending key, unless its supply group and revision have one
insert into vending_keys (sgc, krn, sealed, check_value)
values (%(sgc)s, %(krn)s, %(sealed)s, %(check_value)s)
on conflict (sgc, krn) do nothing

-- vending_key_by_id: the sealed vending key of a supply group and revision
select sealed from vending_keys where sgc = %(sgc)s and krn = %(krn)s

-- lock_message: let one request at a time deal with a vendor's message id; a statement of its own, look later
select pg_advisory_xact_lock(hashtextextended(%(vendor_id)s::bigint::text || ':' || %(message_id)s, 0))

-- vend_by_message: what a vendor's message id was answered
select request_sha256, status, answer from vends where vendor_id = %(vendor_id)s and message_id = %(message_id)s

-- meters_named: the meters that a serial or DRN may mean, each with the account it is billed to
select m.id, m.serial, m.drn, m.make, m.model, a.id as account_id
from meters m
left join installations i on i.meter_id = m.id and i.role = 'billing' and i.to_at is null
left join accounts a on a.usage_point_id = i.usage_point_id
where m.serial = %(meter)s or m.drn = %(meter)s

-- meter_sts: what minting and reading tokens needs of a meter; to mint, under its account's lock
select m.drn, m.ea, m.dkga, m.sgc, m.key_type, m.krn, m.tariff_index, m.ken, m.base_year, s.last_tid
from meters m
join meter_state s on s.meter_id = m.id
where m.id = %(meter_id)s

-- take_tid: remember a meter's latest TID; it only rises
update meter_state set last_tid = %(tid)s where meter_id = %(meter_id)s and (last_tid is null or last_tid < %(tid)s)

-- add_vend: the answer to a vendor's message id, for ever
insert into vends (vendor_id, message_id, request_sha256, account_id, amount_minor, journal_id, status, answer)
values (%(vendor_id)s, %(message_id)s, %(request_sha256)s, %(account_id)s, %(amount_minor)s, %(journal_id)s,
        %(status)s, %(answer)s)
returning id, status, answer

-- add_token: the token of a vend
insert into tokens (vend_id, meter_id, tid, digits, subclass)
values (%(vend_id)s, %(meter_id)s, %(tid)s, %(digits)s, %(subclass)s)

-- token_issued: whether digits were issued here for a meter
select exists (select 1 from tokens where digits = %(digits)s and meter_id = %(meter_id)s)

-- account_by_number: an account's id
select id from accounts where number = %(number)s

-- consumer_name: who holds an account
select c.name from accounts a join consumers c on c.id = a.consumer_id where a.id = %(account_id)s

-- last_recharge: the latest vend credited to an account
select l.amount_minor, j.booked_at
from journals j
join legs l on l.journal_id = j.id and l.ledger = 'prepaid'
where j.account_id = %(account_id)s and j.kind = 'vend'
order by j.id desc limit 1

-- batch_totals_after: counts of the batches after a given one, those that are settled apart from those that may still change
with fresh as (
    select * from batches where id > %(after_id)s
), edge as (
    -- No transaction lives as long as ten minutes: below the first younger row every id is committed or given up.
    select min(id) as young_id from fresh where committed_at >= now() - interval '10 minutes'
)
select (edge.young_id is null or f.id < edge.young_id) as settled, max(f.id) as last_id,
       sum(f.received)::bigint as received, sum(f.stored)::bigint as stored, sum(f.duplicate)::bigint as duplicate,
       sum(f.rejected)::bigint as rejected, sum(f.quarantined)::bigint as quarantined
from fresh f cross join edge
group by settled

-- store_gauges: rows that wait for somebody, and the age of the newest batch
select (select count(*) from quarantine where state = 'held') as quarantine_rows,
       (select count(*) from supply_orders where state in ('pending', 'held', 'sent')) as open_orders,
       (select extract(epoch from clock_timestamp() - committed_at)::float8 from batches order by id desc limit 1)
           as newest_batch_age_s
