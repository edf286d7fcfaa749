-- consumer_account: an account by its id or its number
select id, number from accounts where id = %(id)s or number = %(number)s

-- consumer_entries: an account's journals of some local days: use by day or bill part, everything by day of booking
select j.kind, j.booked_at, j.local_day, j.period, j.energy_wh, j.edge_quality, j.lines,
       case when j.lines is null then coalesce((
           select sum(l.amount_minor) from legs l where l.journal_id = j.id and l.ledger = 'prepaid'
       ), 0)::bigint end as amount_minor
from (
    select d.* from journals d
    where d.account_id = %(account_id)s and d.kind = 'day' and d.local_day between %(first)s and %(last)s
    union all
    select m.* from journals m
    where m.account_id = %(account_id)s and m.kind <> 'day'
      and (m.booked_at >= %(first_at)s and m.booked_at < %(end_at)s or m.period between %(first)s and %(last)s)
) j
order by j.id
limit %(most)s

-- consumer_recharges: an account's recharges before one, newest first, each with its token and what arrears took of it
select j.id, j.booked_at,
       (select sum(l.amount_minor)::bigint from legs l where l.journal_id = j.id and l.ledger = 'prepaid')
           as amount_minor,
       coalesce((select sum(l.amount_minor)::bigint from arrears_recoveries r join legs l on l.journal_id = r.journal_id
                 where r.cause_id = j.id and l.ledger = 'arrears'), 0) as recovered_minor,
       v.name as vendor, s.message_id, t.digits,
       (select b.booked_at from journals b where b.about_id = j.id and b.kind = 'reversal') as reversed_at
from (
    select id, booked_at from journals
    where account_id = %(account_id)s and kind = 'vend' and id < %(before)s
    order by id desc
    limit %(most)s
) j
left join vends s on s.journal_id = j.id
left join vendors v on v.id = s.vendor_id
left join tokens t on t.vend_id = s.id
order by j.id desc

-- consumer_orders: supply orders of an account's meters before one, newest first
select o.id, o.serial as meter_serial, o.relay, o.cause, o.state, o.balance_minor, o.created_at, o.confirmed_at,
       case when o.state in ('pending', 'sent') and o.next_try_at > clock_timestamp() then o.waits_for end as waits_for
from accounts a
cross join lateral (
    select distinct i.meter_id from installations i where i.usage_point_id = a.usage_point_id and i.role = 'billing'
) i
cross join lateral (
    select f.*, m.serial from supply_orders f join meters m on m.id = f.meter_id
    where f.meter_id = i.meter_id and f.account_id = a.id and f.kind = 'supply' and f.id < %(before)s
    order by f.epoch desc
    limit %(most)s
) o
where a.id = %(account_id)s
order by o.id desc
limit %(most)s

-- consumer_relay: what the meter that an account is billed by last reported of its relay
select m.serial, s.relay, s.relay_at
from accounts a
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
join meters m on m.id = i.meter_id
join meter_state s on s.meter_id = i.meter_id
where a.id = %(account_id)s

-- consumer_thresholds: what an account's consumer asked to be warned by, besides the amount that the meter keeps
select kind, value, level_minor, raised and level_minor is not null
from alarm_thresholds where account_id = %(account_id)s order by n
