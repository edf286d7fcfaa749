-- api_keys_called: interface keys by id or by certificate, each with its vendor and the limits in force
select k.key_id, k.sha256, k.sealed, k.role, k.scopes, k.terminal, k.certificate_sha256,
       k.active, k.ends_at, k.vendor_id, v.name as vendor_name, v.active as vendor_active, k.account_id, k.area,
       whole.requests_per_s, whole.burst, whole.vends_per_day, whole.amount_per_day,
       one.requests_per_s as terminal_requests_per_s, one.burst as terminal_burst,
       one.vends_per_day as terminal_vends_per_day, one.amount_per_day as terminal_amount_per_day
from api_keys k
left join vendors v on v.id = k.vendor_id
left join lateral (
    select * from api_limits l where l.vendor_id = k.vendor_id and l.terminal = '' order by l.id desc limit 1
) whole on true
left join lateral (
    select * from api_limits l where l.vendor_id = k.vendor_id and l.terminal = k.terminal order by l.id desc limit 1
) one on true
where k.key_id = any(%(key_ids)s) or (k.active and k.certificate_sha256 = any(%(certificates)s))

-- api_access_version: how often keys, vendors and limits were changed
select version from api_access_version

-- add_signing_key: a new interface key, by the digest of its secret and the sealed secret
insert into api_keys (key_id, sha256, sealed, role, scopes, vendor_id, account_id, terminal, label, issued_by, replaces,
                      area)
values (%(key_id)s, %(sha256)s, %(sealed)s, %(role)s, %(scopes)s, %(vendor_id)s, %(account_id)s, %(terminal)s,
        %(label)s, %(issued_by)s, %(replaces)s, %(area)s)

-- newest_sealed_key: the newest interface key that can sign, with its sealed secret
select key_id, sealed from api_keys where sealed is not null order by created_at desc, key_id limit 1

-- api_keys_listed: interface keys without their secrets, of one vendor or of all, the newest first
select k.key_id, k.role, v.name as vendor, a.number as account, k.area, k.terminal, k.scopes, k.label, k.issued_by,
       k.created_at, k.replaces, k.ends_at, k.active and coalesce(k.ends_at > %(now)s, true) as active, k.sealed is not null as can_sign,
       k.certificate_sha256
from api_keys k
left join vendors v on v.id = k.vendor_id
left join accounts a on a.id = k.account_id
where (%(vendor)s::text is null or v.name = %(vendor)s) and (%(role)s::text is null or k.role = %(role)s)
order by k.created_at desc, k.key_id limit %(limit)s

-- lock_api_key: an interface key for a change of it, and whether the one it replaces still is; one that has ended is not there
select k.key_id, k.role, k.vendor_id, k.account_id, k.area, k.terminal, k.scopes, k.label, k.ends_at,
       exists (select 1 from api_keys p where p.key_id = k.replaces and p.active and coalesce(p.ends_at > %(now)s, true))
           as beside_old
from api_keys k where k.key_id = %(key_id)s and k.active and coalesce(k.ends_at > %(now)s, true) for update

-- retire_api_key: an interface key that another one has taken the place of is good until an instant
update api_keys set ends_at = %(ends_at)s where key_id = %(key_id)s

-- bind_certificate: a client certificate calls as an interface key from now on, or none does
update api_keys set certificate_sha256 = %(certificate)s where key_id = %(key_id)s

-- take_nonce: a signed request's number, unless it was used before
insert into api_nonces (key_id, nonce, seen_at) values (%(key_id)s, %(nonce)s, %(now)s) on conflict do nothing

-- drop_nonces: numbers of requests that are too old to pass again
delete from api_nonces where seen_at < %(before)s

-- vendor_by_name: a vendor's id
select id from vendors where name = %(name)s

-- add_api_limit: limits of a vendor or of one of its terminals, from now on
insert into api_limits (vendor_id, terminal, requests_per_s, burst, vends_per_day, amount_per_day, set_by, reason)
values (%(vendor_id)s, %(terminal)s, %(requests_per_s)s, %(burst)s, %(vends_per_day)s, %(amount_per_day)s, %(set_by)s,
        %(reason)s)

-- api_limits_listed: limits of a vendor or of all, the newest of each first
select v.name as vendor, l.terminal, l.requests_per_s, l.burst, l.vends_per_day, l.amount_per_day, l.set_at, l.set_by,
       l.reason, l.id = max(l.id) over (partition by l.vendor_id, l.terminal) as in_force
from api_limits l join vendors v on v.id = l.vendor_id
where %(vendor)s::text is null or v.name = %(vendor)s
order by v.name, l.terminal, l.id desc

-- begin_vend_day: what a vendor has sold today before it had a limit of the day; what is counted already is not less
insert into vend_days as d (vendor_id, terminal, day, vends, amount_minor)
select %(vendor_id)s, '', %(day)s, count(*), coalesce(sum(amount_minor), 0)
from vends where vendor_id = %(vendor_id)s and journal_id is not null and created_at >= %(from_at)s
on conflict (vendor_id, terminal, day) do update
set vends = greatest(d.vends, excluded.vends), amount_minor = greatest(d.amount_minor, excluded.amount_minor)

-- take_vend_day: count a vend under limits of the day, in the order of terminals; a count that is full is left out
insert into vend_days as d (vendor_id, terminal, day, vends, amount_minor, vends_max, amount_max)
select %(vendor_id)s, l.terminal, %(day)s, 1, %(amount_minor)s, l.vends_max, l.amount_max
from unnest(%(terminals)s::text[], %(vends_max)s::bigint[], %(amounts_max)s::bigint[])
    as l (terminal, vends_max, amount_max)
where coalesce(l.vends_max >= 1, true) and coalesce(l.amount_max >= %(amount_minor)s, true)
order by l.terminal
on conflict (vendor_id, terminal, day) do update
set vends = d.vends + 1, amount_minor = d.amount_minor + excluded.amount_minor,
    vends_max = excluded.vends_max, amount_max = excluded.amount_max
where coalesce(d.vends < excluded.vends_max, true)
  and coalesce(d.amount_minor + excluded.amount_minor <= excluded.amount_max, true)
returning terminal

-- record_act: one act into the audit trail
insert into audit_trail (actor, role, key_id, vendor_id, terminal, operator, act, subject, reference, outcome,
                         status, request_digest)
values (%(actor)s, %(role)s, %(key_id)s, %(vendor_id)s, %(terminal)s, %(operator)s, %(act)s, %(subject)s,
        %(reference)s, %(outcome)s, %(status)s, %(request_digest)s)

-- audit_trail_listed: acts that fit, the newest first, before one of them
select t.id, t.at, t.actor, t.role, t.key_id, t.terminal, t.operator, t.act, t.subject, t.reference, t.outcome,
       t.status, t.request_digest
from audit_trail t
where (%(before_id)s::bigint is null or t.id < %(before_id)s)
  and (%(key_id)s::text is null or t.key_id = %(key_id)s)
  and (%(actor)s::text is null or t.actor = %(actor)s)
  and (%(act)s::text is null or starts_with(t.act, %(act)s))
  and (%(subject)s::text is null or t.subject = %(subject)s)
  and (%(outcome)s::text is null or t.outcome = %(outcome)s)
  and (%(since)s::timestamptz is null or t.at >= %(since)s)
  and (%(until)s::timestamptz is null or t.at < %(until)s)
order by t.id desc limit %(limit)s

-- has_other_key: whether a vendor has a key in force besides one, the one it took the place of, and the one after it
select exists (
    select 1 from api_keys k join api_keys own on own.key_id = %(key_id)s
    where k.vendor_id = own.vendor_id and k.active and coalesce(k.ends_at > %(now)s, true)
      and k.key_id <> own.key_id and k.key_id is distinct from own.replaces and k.replaces is distinct from own.key_id)
