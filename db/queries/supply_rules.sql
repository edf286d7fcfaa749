-- add_supply_rules: the utility's supply rules from a day on; a day that has a document keeps it
insert into supply_rules (from_day, document, sha256) values (%(from_day)s, %(document)s, %(sha256)s)
on conflict (from_day) do nothing
returning from_day

-- supply_rules_on: the supply rules in force on a day
select document from supply_rules where from_day <= %(day)s order by from_day desc limit 1

-- supply_rules_document: supply rules by their checksum
select document from supply_rules where sha256 = %(sha256)s limit 1

-- supply_rules_at: the supply rules that begin on a day
select sha256 from supply_rules where from_day = %(from_day)s

-- exhausted_and_on: a shard's accounts with exhausted credit that are still supplied, in id order from one id on
select id from accounts
where shard = %(shard)s and exhausted_raised and desired <> 'off' and id > %(after)s order by id limit %(most)s

-- exhausted_and_off: a shard's accounts that are cut off, in id order from one id on
select id from accounts
where shard = %(shard)s and exhausted_raised and desired = 'off' and id > %(after)s order by id limit %(most)s

-- change_exemption: an account is exempt for a reason, or no more; nothing where it is so already
update accounts set exempt_reason = %(exempt_reason)s, version = version + 1
where id = %(account_id)s and exempt_reason is distinct from %(exempt_reason)s
returning shard, version

-- add_exemption_change: who changed the exempt list, and why
insert into exemption_changes (account_id, exempt, reason, changed_by, changed_at)
values (%(account_id)s, %(exempt)s, %(reason)s, %(changed_by)s, %(changed_at)s)

-- exemptions: the exempt list in id order from one id on, with who put the account there last
select a.id as account_id, a.number, a.exempt_reason as reason, c.changed_by as set_by, c.changed_at as set_at
from accounts a
left join lateral (
    select c.changed_by, c.changed_at from exemption_changes c
    where c.account_id = a.id and c.exempt order by c.id desc limit 1
) c on true
where a.exempt_reason is not null and a.id > %(after)s order by a.id limit %(most)s

-- add_hold: somebody asks for a hold on an account
insert into supply_holds (account_id, reason, asked_by, asked_at, until_at)
values (%(account_id)s, %(reason)s, %(asked_by)s, %(asked_at)s, %(until_at)s)
returning id

-- end_past_hold: a hold whose end is reached makes room for another
update supply_holds set released_by = 'its end', released_at = until_at
where account_id = %(account_id)s and released_at is null and until_at <= %(now)s

-- any_hold_ended: whether a hold in force ends within a span
select exists (select from supply_holds
               where released_at is null and approved_at is not null and until_at > %(since)s and until_at <= %(until)s)

-- hold_by_id: one hold
select h.id, h.account_id, a.number, h.reason, h.asked_by, h.asked_at, h.until_at, h.approved_by, h.approved_at,
       h.released_by, h.released_at
from supply_holds h join accounts a on a.id = h.account_id
where h.id = %(id)s

-- open_holds: holds that are not released, newest first
select h.id, h.account_id, a.number, h.reason, h.asked_by, h.asked_at, h.until_at, h.approved_by, h.approved_at,
       h.released_by, h.released_at
from supply_holds h join accounts a on a.id = h.account_id
where h.released_at is null order by h.id desc limit %(most)s

-- holds_of: all holds that an account ever had, newest first
select h.id, h.account_id, a.number, h.reason, h.asked_by, h.asked_at, h.until_at, h.approved_by, h.approved_at,
       h.released_by, h.released_at
from supply_holds h join accounts a on a.id = h.account_id
where h.account_id = %(account_id)s order by h.id desc limit %(most)s

-- approve_hold: a second person puts a hold in force
update supply_holds set approved_by = %(by)s, approved_at = %(now)s where id = %(id)s

-- release_hold: a hold ends, or is given up before its approval
update supply_holds set released_by = %(by)s, released_at = %(now)s where id = %(id)s

-- touch_account: an account's supply depends on something else now
update accounts set version = version + 1 where id = %(account_id)s returning shard, version
