-- contacts_of_consumer: where the consumer of an account is reached
select c.id, c.channel, c.address, c.language, c.priority, c.verified_at, c.failed_at, c.stopped_at
from contacts c join accounts a on a.consumer_id = c.consumer_id
where a.id = %(account_id)s and c.removed_at is null
order by c.priority, c.id

-- count_contacts: how many contacts the consumer of an account has in use
select count(*) from contacts c join accounts a on a.consumer_id = c.consumer_id
where a.id = %(account_id)s and c.removed_at is null

-- put_contact: where a consumer is reached; one that was taken out of use has to be proven again
insert into contacts as c (consumer_id, channel, address, language, priority)
select a.consumer_id, %(channel)s, %(address)s, %(language)s, %(priority)s from accounts a where a.id = %(account_id)s
on conflict (consumer_id, channel, address) do update set language = excluded.language, priority = excluded.priority,
    verified_at = case when c.removed_at is null then c.verified_at end,
    failed_at = case when c.removed_at is null then c.failed_at end,
    stopped_at = case when c.removed_at is null then c.stopped_at end,
    removed_at = null
returning c.id, c.channel, c.address, c.language, c.priority, c.verified_at, c.failed_at, c.stopped_at

-- lock_contact: one contact of an account's consumer, held to the end of the transaction
select c.id, c.channel, c.address, c.language, c.priority, c.verified_at, c.failed_at, c.stopped_at
from contacts c join accounts a on a.consumer_id = c.consumer_id
where a.id = %(account_id)s and c.id = %(contact_id)s and c.removed_at is null
for no key update of c

-- remove_contact: take a contact of an account's consumer out of use
update contacts c set removed_at = %(now)s
from accounts a
where a.id = %(account_id)s and c.consumer_id = a.consumer_id and c.id = %(contact_id)s and c.removed_at is null

-- lock_address: let one request at a time count and send codes to an address; a statement of its own
select pg_advisory_xact_lock(hashtextextended('otp:' || %(address)s, 0))

-- count_otps: codes asked for lately, for an address by anybody, and for all contacts of one consumer
select count(*) filter (where o.address = %(address)s and o.asked_at > %(hour_ago)s),
       count(*) filter (where o.address = %(address)s),
       count(*) filter (where c.consumer_id = (select consumer_id from accounts where id = %(account_id)s))
from contact_otps o join contacts c on c.id = o.contact_id
where o.asked_at > %(day_ago)s
  and (o.address = %(address)s
       or o.contact_id in (select k.id from contacts k join accounts a on a.consumer_id = k.consumer_id
                           where a.id = %(account_id)s))

-- add_otp: the digest of a code that was sent to a contact
insert into contact_otps (contact_id, address, salt, digest, asked_by, asked_at, expires_at)
values (%(contact_id)s, %(address)s, %(salt)s, %(digest)s, %(asked_by)s, %(asked_at)s, %(expires_at)s)

-- newest_otp: the code that counts for a contact, under the contact's lock
select id, salt, digest, tries, expires_at from contact_otps
where contact_id = %(contact_id)s and used_at is null
  and id = (select max(id) from contact_otps where contact_id = %(contact_id)s)

-- otp_tried: a wrong code was given
update contact_otps set tries = tries + 1 where id = %(id)s returning tries

-- contact_verified: the code came back: whoever gave it reads the contact's messages
with used as (
    update contact_otps set used_at = %(now)s where id = %(otp_id)s
)
update contacts set verified_at = %(now)s, verified_by = %(verified_by)s, failed_at = null where id = %(contact_id)s
returning id, channel, address, language, priority, verified_at, failed_at, stopped_at

-- unreachable_accounts: of a range of accounts in id order, those whose consumer no message can reach
select a.id, a.number, n.name as consumer, u.area, k.contacts, k.verified, k.failing, k.stopped
from (select id, number, consumer_id, usage_point_id from accounts
      where id > %(after)s order by id limit %(most)s) a
join consumers n on n.id = a.consumer_id
join usage_points u on u.id = a.usage_point_id
cross join lateral (
    select count(*) as contacts, count(c.verified_at) as verified,
           count(c.verified_at) filter (where c.failed_at is not null) as failing,
           count(c.verified_at) filter (where c.stopped_at is not null) as stopped,
           count(c.verified_at) filter (where c.failed_at is null and c.stopped_at is null) as reachable
    from contacts c where c.consumer_id = a.consumer_id and c.removed_at is null
) k
where k.reachable = 0
order by a.id

-- last_account_of_range: the last of the next accounts in id order, and how many there are
select max(id), count(*) from (select id from accounts where id > %(after)s order by id limit %(most)s) a

-- lock_inbound: let one request at a time deal with a message's id; a statement of its own, look later
select pg_advisory_xact_lock(hashtextextended('sms:' || %(message_id)s, 0))

-- inbound_by_id: what became of a message
select digest, outcome from inbound_messages where message_id = %(message_id)s

-- add_inbound: what a person sent and what became of it
insert into inbound_messages (message_id, digest, sender, command, outcome, account_id, notice_id, received_at)
values (%(message_id)s, %(digest)s, %(sender)s, %(command)s, %(outcome)s, %(account_id)s, %(notice_id)s, %(received_at)s)

-- count_inbound_answers: how many messages of a number were answered lately
select count(*) from inbound_messages
where sender = %(sender)s and received_at > %(since)s and notice_id is not null

-- accounts_of_number: the accounts that a number is a contact of, proven ones first
select c.id as contact_id, c.language, c.verified_at is not null as verified, a.id as account_id, a.number
from contacts c join accounts a on a.consumer_id = c.consumer_id
where c.address = %(address)s and c.channel = 'sms' and c.removed_at is null
order by c.verified_at is null, a.id limit %(most)s

-- stop_number: whoever reads a number wants no more messages there, or wants them again
update contacts set stopped_at = case when %(stop)s then %(now)s::timestamptz end
where address = %(address)s and channel = 'sms' and removed_at is null

-- last_token: the token of the last recharge that was not taken back
select t.digits, v.amount_minor, v.created_at
from journals j
join vends v on v.journal_id = j.id
join tokens t on t.vend_id = v.id
where j.account_id = %(account_id)s and j.kind = 'vend'
  and not exists (select 1 from journals r where r.about_id = j.id and r.kind = 'reversal')
order by j.id desc limit 1
