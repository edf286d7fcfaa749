-- add_token_entries: what meters said of tokens, each once, matched with the tokens made here; returns what is new
insert into token_entries (meter_id, at, last_digits, result, tid, token_id)
select e.meter_id, e.at, e.last_digits, e.result, e.tid, t.id
from unnest(%(meter_ids)s::integer[], %(ats)s::timestamptz[], %(last_digits)s::text[], %(results)s::text[],
            %(tids)s::integer[]) as e(meter_id, at, last_digits, result, tid)
left join lateral (
    select k.id from tokens k
    where k.meter_id = e.meter_id and k.tid is not distinct from e.tid and right(k.digits, 4) = e.last_digits
    order by k.id desc limit 1
) t on true
on conflict do nothing
returning meter_id, at, result, token_id

-- add_token_deliveries: tokens that their meters have accepted or know as used; the first word of each counts
insert into token_deliveries (token_id, meter_id, result, entered_at)
select * from unnest(%(token_ids)s::bigint[], %(meter_ids)s::integer[], %(results)s::text[], %(ats)s::timestamptz[])
on conflict do nothing

-- confirm_delivered: vends that were taken back after their token was given out, and whose meter has it now: they stand
with moved as (
    update vends v set state = 'confirmed'
    from tokens t
    where t.id = any(%(token_ids)s) and v.id = t.vend_id and v.state = 'unknown'
    returning v.id, t.id as token_id
)
insert into vend_moves (vend_id, at, from_state, to_state, by, reason)
select m.id, clock_timestamp(), 'unknown', 'confirmed', 'the meter', 'it has the token' from moved m

-- note_local_credits: meters whose copy of the balance a token has moved
insert into local_credits (meter_id, shard)
select m.id, m.shard from meters m where m.id = any(%(meter_ids)s)

-- take_local_credits: some meters that are to be told their account's balance, each with its account; a meter that stands
-- nowhere has none
with taken as (
    delete from local_credits where id in (
        select id from local_credits where shard = any(%(shards)s) order by id limit %(most)s for update skip locked)
    returning meter_id
)
select distinct t.meter_id, a.id as account_id
from taken t
left join installations i on i.meter_id = t.meter_id and i.role = 'billing' and i.to_at is null
left join accounts a on a.usage_point_id = i.usage_point_id

-- token_to_push: whose meter a token is for, and whether it was seen there
select t.meter_id, a.id as account_id, a.shard,
       exists (select from token_deliveries d where d.token_id = t.id) as delivered,
       exists (select from supply_orders o
               where o.token_id = t.id and o.state in ('pending', 'held', 'sent')) as under_way
from tokens t
join installations i on i.meter_id = t.meter_id and i.role = 'billing' and i.to_at is null
join accounts a on a.usage_point_id = i.usage_point_id
where t.id = %(token_id)s

-- order_token: order a meter to enter a token under its next epoch
with epoch as (
    update meter_state set order_epoch = order_epoch + 1 where meter_id = %(meter_id)s returning order_epoch
)
insert into supply_orders (meter_id, account_id, shard, kind, epoch, cause, token_id)
select %(meter_id)s, %(account_id)s, %(shard)s, 'token', epoch.order_epoch, 'token', %(token_id)s from epoch
returning id

-- digits_of_tokens: the digits of tokens that are about to leave for their meters
select id, digits from tokens where id = any(%(token_ids)s)
