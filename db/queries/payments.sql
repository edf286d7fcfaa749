-- add_payment: an order to be paid
insert into payments (order_id, account_id, amount_minor, currency, language, gateway, state, created_at, expires_at,
                      next_ask_at)
values (%(order_id)s, %(account_id)s, %(amount_minor)s, %(currency)s, %(language)s, %(gateway)s, 'created', %(now)s,
        %(expires_at)s, %(next_ask_at)s)

-- count_payments: orders that were begun for an account since an instant
select count(*) from payments where account_id = %(account_id)s and created_at >= %(since)s

-- link_payment: where an order is paid, as its gateway answered; a word about it may have come before
update payments set gateway_order = %(gateway_order)s, pay_link = %(pay_link)s,
    state = case when state = 'created' then 'open' else state end
where order_id = %(order_id)s and gateway_order is null

-- lock_capture: let one word about some money be dealt with at a time; a statement of its own, and the first
select pg_advisory_xact_lock(hashtextextended('capture:' || %(gateway)s::text || ':' || %(capture)s::text, 0))

-- lock_payment: let one word about an order be dealt with at a time; look later
select 1 from payments where order_id = %(order_id)s for no key update

-- payment_by_order: an order, its account and the meter that it is billed by now
select p.id, p.order_id, p.account_id, a.number as account_number, p.amount_minor, p.currency, p.language, p.gateway,
       p.state, p.gateway_order, p.pay_link, p.vend_id, p.refusal, p.created_at, p.expires_at, p.asks,
       m.serial as meter
from payments p
join accounts a on a.id = p.account_id
left join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
left join meters m on m.id = i.meter_id
where p.order_id = %(order_id)s and p.gateway = coalesce(%(gateway)s, p.gateway)

-- capture_named: some money, and the order that it is of
select c.id, c.capture, c.state, c.amount_minor, c.was_credited, c.why, p.order_id
from payment_captures c left join payments p on p.id = c.payment_id
where c.gateway = %(gateway)s and c.capture = %(capture)s

-- captures_of_payment: the money received for an order
select c.id, c.capture, c.state, c.amount_minor, c.was_credited, c.why, %(order_id)s::text as order_id
from payment_captures c join payments p on p.id = c.payment_id
where p.order_id = %(order_id)s
order by c.id

-- add_capture: money that a gateway received
insert into payment_captures (gateway, capture, payment_id, amount_minor, currency, state, was_credited, why, seen_at,
                              refunded_at)
values (%(gateway)s, %(capture)s, %(payment_id)s, %(amount_minor)s, %(currency)s, %(state)s, %(state)s = 'credited',
        %(why)s, %(now)s, case when %(state)s = 'refunded' then %(now)s::timestamptz end)

-- attach_capture: money whose refund came first is of this order
update payment_captures set payment_id = %(payment_id)s
where gateway = %(gateway)s and capture = %(capture)s and payment_id is null

-- capture_gone: money has gone back
update payment_captures set state = 'refunded', why = coalesce(why, %(why)s), refunded_at = %(now)s
where gateway = %(gateway)s and capture = %(capture)s and state <> 'refunded'

-- capture_due: credited money is to be sent back, since somebody asked for it
update payment_captures set state = 'refund_due', why = 'asked', asked_by = %(by)s, reason = %(reason)s
where gateway = %(gateway)s and capture = %(capture)s and state = 'credited'

-- save_payment: where an order stands after a word about it
update payments set state = %(state)s, vend_id = coalesce(%(vend_id)s, vend_id), refusal = coalesce(%(refusal)s, refusal),
    asks = 0, next_ask_at = %(next_ask_at)s
where id = %(id)s

-- payment_event_known: whether a word of a gateway was heard before
select exists (select from payment_events where gateway = %(gateway)s and event_id = %(event_id)s)

-- add_payment_event: a word of a gateway, and what it came to
insert into payment_events (gateway, event_id, source, kind, reference, capture, amount_minor, refunded_minor,
                            body_sha256, outcome, received_at)
values (%(gateway)s, %(event_id)s, %(source)s, %(kind)s, %(reference)s, %(capture)s, %(amount_minor)s,
        %(refunded_minor)s, %(body_sha256)s, %(outcome)s, %(now)s)
on conflict do nothing

-- take_payments_to_ask: some orders that their gateway is asked about now; what is not settled comes again
with due as (
    select id from payments where gateway = %(gateway)s and next_ask_at <= %(now)s
    order by next_ask_at limit %(most)s for no key update skip locked
)
update payments p set next_ask_at = %(until)s from due where p.id = due.id
returning p.order_id

-- payment_asked: when a gateway is asked about an order again, which nothing has changed meanwhile
update payments set asks = asks + 1, next_ask_at = %(next_ask_at)s
where order_id = %(order_id)s and state = %(state)s and asks = %(asks)s

-- vend_of_payment: what an order was answered, and the journal that it was credited by
select v.id, v.state, v.journal_id, v.status, v.answer from vends v where v.id = %(vend_id)s

-- payment_vend_taken_back: the money of a vend has gone back
with moved as (
    update vends v set state = 'reversed' from (select id, state from vends where id = %(vend_id)s for no key update) o
    where v.id = o.id and o.state <> 'reversed'
    returning v.id, o.state as from_state
)
insert into vend_moves (vend_id, at, from_state, to_state, by, reason)
select id, %(now)s, from_state, 'reversed', %(by)s, %(reason)s from moved

-- payment_sums: what gateways received and what went back, and what was credited for it and taken back
select coalesce(sum(amount_minor), 0)::bigint as paid_minor,
       coalesce(sum(amount_minor) filter (where state = 'refunded'), 0)::bigint as refunded_minor,
       coalesce(sum(amount_minor) filter (where state = 'refund_due'), 0)::bigint as refund_due_minor,
       (select coalesce(-sum(l.amount_minor), 0)::bigint from legs l where l.ledger = 'gateway_clearing') as credited_minor,
       (select count(*) from payment_events where outcome in ('unknown_order', 'partial_refund')) as for_people
from payment_captures

-- delivery_of_vend: what a vend's meter said of its token first
select d.result, d.entered_at from tokens t join token_deliveries d on d.token_id = t.id where t.vend_id = %(vend_id)s

-- attempts_of_vend: what was tried to bring a vend's token to its meter or its consumer, oldest first
with t as (
    select t.id, t.digits, v.id as vend_id, v.vendor_id, v.message_id, v.account_id, v.created_at, v.state
    from vends v join tokens t on t.vend_id = v.id where v.id = %(vend_id)s
)
select 'answer' as way, case when t.state = 'held' then 'held' else 'given' end as state, t.created_at as at, 1 as tries,
       null as address
from t
union all
select 'receipt', 'printed', p.printed_at, 1, null
from t join receipt_prints p on p.vendor_id = t.vendor_id and p.message_id = t.message_id
union all
select d.channel, d.state, coalesce(d.sent_at, d.created_at), d.attempts, d.address
from t
join notices n on n.account_id = t.account_id and n.kind in ('recharged', 'token_resend')
              and replace(n.facts ->> 'token', ' ', '') = t.digits
join notice_deliveries d on d.notice_id = n.id
union all
select 'meter', o.state, coalesce(o.confirmed_at, o.sent_at, o.created_at), o.attempts, null
from t join supply_orders o on o.token_id = t.id
order by at, way

-- vend_by_vendor_message: a vend by its vendor's message id, and its token
select v.id, t.id as token_id from vends v left join tokens t on t.vend_id = v.id
where v.vendor_id = %(vendor_id)s and v.message_id = %(message_id)s

-- billing_meter: the serial of the meter that an account is billed by now
select m.serial from accounts a
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
join meters m on m.id = i.meter_id
where a.id = %(account_id)s

-- payment_exceptions: words of gateways that nobody but people can settle, the oldest first
select e.id, e.received_at, e.outcome, e.gateway, e.event_id, e.reference, e.capture, e.amount_minor, e.refunded_minor
from payment_events e
where e.outcome in ('unknown_order', 'partial_refund') and e.id > %(after)s
order by e.id limit %(most)s

-- payment_orders_count: how many orders there are
select count(*) from payments

-- broken_payments: orders whose money, vend and state do not go together, and vends of online money without an order
with found as (
    select p.*, v.id as sold_as, v.vendor_id, v.message_id, v.funding, v.journal_id, v.state as vend_state,
           v.amount_minor as vend_minor, v.account_id as vend_account_id, c.*
    from payments p
    left join vends v on v.id = p.vend_id
    cross join lateral (
        select count(*) filter (where c.was_credited) as credits,
               count(*) filter (where c.state = 'credited') as standing,
               count(*) filter (where c.state = 'refund_due') as due,
               count(*) filter (where c.state = 'refunded') as gone,
               max(c.amount_minor) filter (where c.was_credited) as money_minor,
               max(c.currency) filter (where c.was_credited) as money_currency
        from payment_captures c where c.payment_id = p.id
    ) c
), judged as (
    select f.order_id,
           case when f.credits > 1 then format('credited %%s times', f.credits)
                when f.credits = 1 and f.journal_id is null then 'its money is credited, no vend of it is there'
                when f.credits = 0 and f.journal_id is not null then 'its vend is there, no money is credited'
                when f.sold_as is not null
                     and (f.vendor_id, f.message_id, f.funding) is distinct from (s.id, f.order_id, 'online') then
                    format('its vend is under message %%s', f.message_id)
                when f.credits = 1 and (f.vend_minor, f.vend_account_id, f.money_minor, f.money_currency)
                     is distinct from (f.amount_minor, f.account_id, f.amount_minor, f.currency) then
                    format('of %%s minor, paid %%s, credited %%s', f.amount_minor, f.money_minor, f.vend_minor)
                when f.standing > 0 and f.vend_state = 'reversed' then 'its money is kept, its vend was taken back'
                when f.credits > f.standing and f.vend_state <> 'reversed' then
                    'its money has gone back or is due to, its vend stands'
                when (f.state in ('credited', 'refund_due', 'refunded') or f.standing + f.due + f.gone > 0)
                     and f.state is distinct from case when f.due > 0 then 'refund_due' when f.standing > 0 then 'credited'
                                                       when f.gone > 0 then 'refunded' end then
                    format('is %%s, of its money %%s stand, %%s are due back, %%s went back', f.state, f.standing, f.due,
                           f.gone)
           end as broken
    from found f left join vendors s on s.system = 'online'
)
select order_id, broken from judged where broken is not null
union all
select v.message_id, 'its vend is of no order' from vends v join vendors s on s.id = v.vendor_id
where s.system = 'online' and v.journal_id is not null and not exists (select 1 from payments p where p.vend_id = v.id)
order by 1
