-- write_notices: notices as facts, in the same transaction as their causes
insert into notices (account_id, kind, channel, facts)
select k.account_id, k.kind, 'app', k.facts
from unnest(%(account_ids)s::bigint[], %(kinds)s::text[], %(facts)s::jsonb[]) with ordinality
     as k(account_id, kind, facts, n)
order by k.n
returning id

-- write_answer: a notice for the one contact that has asked for it
insert into notices (account_id, kind, channel, facts, contact_id, language)
values (%(account_id)s, %(kind)s, 'app', %(facts)s, %(contact_id)s, %(language)s)
returning id

-- plan_alone: one process at a time plans, so that the day's messages are counted once
select pg_try_advisory_xact_lock(%(key)s)

-- notices_to_plan: notices that have no way to a person yet, or whose last one has failed for good; what a day or a month
-- brings everybody comes after all else
select n.id, n.account_id, a.consumer_id, n.kind, n.created_at, n.contact_id, n.language
from notices n join accounts a on a.id = n.account_id
where n.planned_at is null
order by (n.kind in ('forecast', 'statement_ready')), n.id limit %(most)s

-- contacts_to_plan: where some consumers are reached, and who has asked for something
select id, consumer_id, channel, address, language, priority, verified_at is not null as verified,
       failed_at is not null as failing, stopped_at is not null as stopped
from contacts
where (consumer_id = any(%(consumer_ids)s) and removed_at is null) or id = any(%(ids)s)

-- deliveries_tried: what has become of earlier ways of some notices
select notice_id, channel, state from notice_deliveries where notice_id = any(%(notice_ids)s)

-- deliveries_today: how many messages some accounts get on a local day, by channel
select account_id, channel, count(*)
from notice_deliveries
where account_id = any(%(account_ids)s) and created_at >= %(since)s and state <> 'skipped' and capped
group by account_id, channel

-- add_deliveries: ways of notices, to be tried or passed over
insert into notice_deliveries (notice_id, account_id, channel, contact_id, address, language, state, rank, capped,
                               next_try_at, expires_at, last_error, message_id, created_at)
select k.*, %(now)s
from unnest(%(notice_ids)s::bigint[], %(account_ids)s::bigint[], %(channels)s::text[], %(contact_ids)s::bigint[],
            %(addresses)s::text[], %(languages)s::text[], %(states)s::text[], %(ranks)s::smallint[],
            %(cappeds)s::boolean[], %(next_tries)s::timestamptz[], %(expiries)s::timestamptz[],
            %(skips)s::text[], %(message_ids)s::text[]) as k

-- notices_planned: these have their ways; a code that goes nowhere is forgotten
update notices set planned_at = %(now)s,
    facts = case when kind = 'otp' and id <> all(%(under_way)s) then facts - 'code' else facts end
where id = any(%(ids)s)

-- claim_deliveries: take what is due on a channel for one try; what is not ended by then comes again
with due as (
    select id from notice_deliveries
    where channel = %(channel)s and state in ('pending', 'sending') and next_try_at <= %(now)s
    order by rank, next_try_at limit %(most)s for update skip locked
)
update notice_deliveries d set state = 'sending', attempts = d.attempts + 1, claimed = d.claimed + 1,
    next_try_at = %(until)s
from due, notices n, accounts a
where d.id = due.id and n.id = d.notice_id and a.id = d.account_id
returning d.id, d.claimed, d.attempts, d.notice_id, d.address, d.language, d.message_id, d.expires_at, d.last_error,
          n.kind, n.facts, n.body, n.created_at, a.number as account_number

-- delivery_sent: a try has succeeded; its contact works, and a code is forgotten
with sent as (
    update notice_deliveries set state = 'sent', sent_at = %(now)s, last_error = null
    where id = %(id)s and claimed = %(claimed)s and state = 'sending'
    returning notice_id, contact_id
), works as (
    update contacts c set failed_at = null from sent where c.id = sent.contact_id and c.failed_at is not null
), forgotten as (
    update notices n set facts = n.facts - 'code' from sent where n.id = sent.notice_id and n.kind = 'otp'
)
select count(*) from sent

-- delivery_later: a try has failed for now
update notice_deliveries set state = 'pending', next_try_at = %(next_try)s, last_error = %(error)s
where id = %(id)s and claimed = %(claimed)s and state = 'sending'

-- delivery_put_back: a try was not made after all
update notice_deliveries set state = 'pending', next_try_at = %(next_try)s, attempts = attempts - 1
where id = %(id)s and claimed = %(claimed)s and state = 'sending'

-- delivery_dead: tries have ended without success; the notice looks for another way, a code is forgotten
with dead as (
    update notice_deliveries set state = 'dead', last_error = %(error)s
    where id = %(id)s and claimed = %(claimed)s and state = 'sending'
    returning notice_id, contact_id
), fails as (
    update contacts c set failed_at = %(now)s from dead
    where %(contact_fails)s and c.id = dead.contact_id and c.failed_at is null
), again as (
    update notices n set planned_at = null, facts = case when n.kind = 'otp' then n.facts - 'code' else n.facts end
    from dead where n.id = dead.notice_id
)
select count(*) from dead

-- notices_of_account: what an account's consumer was told, newest first; codes are for their contact alone
select n.id, n.kind, n.facts, n.body, n.created_at, a.number as account_number
from notices n join accounts a on a.id = n.account_id
where n.account_id = %(account_id)s and n.kind <> 'otp' and n.id < %(before_id)s
order by n.id desc limit %(most)s

-- deliveries_of_notices: each way of some notices with its state
select id, notice_id, channel, address, language, state, attempts, next_try_at, last_error, message_id, sent_at
from notice_deliveries
where notice_id = any(%(notice_ids)s)
order by notice_id, id

-- dead_deliveries: messages that could not be delivered, newest first
select d.id, d.notice_id, a.number as account_number, n.kind, d.channel, d.address, d.attempts, d.last_error, d.created_at
from notice_deliveries d
join notices n on n.id = d.notice_id
join accounts a on a.id = d.account_id
where d.state = 'dead' and d.id < %(before_id)s
order by d.id desc limit %(most)s

-- retry_dead: dead messages are tried again under the same message id; a code is not, it has expired
update notice_deliveries d set state = 'pending', next_try_at = %(now)s, expires_at = %(expires)s
from notices n
where d.id = any(%(ids)s) and d.state = 'dead' and n.id = d.notice_id and n.kind <> 'otp'
returning d.id

-- delivery_states: messages by channel and state, skipped ones also by reason
select channel, state, case when state = 'skipped' then last_error end as reason, count(*), min(created_at) as oldest_at
from notice_deliveries
group by 1, 2, 3 order by 1, 2, 3

-- notices_unplanned: how many notices wait for their way, and since when
select count(*), min(created_at) from notices where planned_at is null
