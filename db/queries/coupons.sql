-- lock_coupon_order: one at a time deals with the order of a batch; a statement of its own, look later
select pg_advisory_xact_lock(hashtextextended('coupon order ' || %(reference)s, 0))

-- coupon_batch_of_order: the batch that an order made
select id, carrier, amount_minor, coupons, reference, issued_at, issued_by from coupon_batches where reference = %(reference)s

-- add_coupon_batch: a batch of coupons
insert into coupon_batches (carrier, amount_minor, coupons, reference, issued_at, issued_by)
values (%(carrier)s, %(amount_minor)s, %(coupons)s, %(reference)s, %(issued_at)s, %(issued_by)s)
returning id

-- add_coupons: the coupons of a batch; returns how many of the PINs are no other coupon's
insert into coupons (serial, batch_id, amount_minor, pin_digest)
select n.serial, %(batch_id)s, %(amount_minor)s, n.pin_digest
from unnest(%(serials)s::text[], %(digests)s::bytea[]) as n(serial, pin_digest)

-- lock_coupon_guesser: tries of one guesser are judged one after the other; a statement of its own, look later
select pg_advisory_xact_lock(hashtextextended('coupon guesser ' || %(guesser)s, 0))

-- coupon_tries: wrong PINs of a guesser and of everybody
select guesser, wrong, last_at from coupon_tries where guesser = any(%(guessers)s)

-- count_coupon_tries: wrong PINs as they are now counted
insert into coupon_tries (guesser, wrong, last_at)
select * from unnest(%(guessers)s::text[], %(wrong)s::integer[], %(last_ats)s::timestamptz[])
on conflict (guesser) do update set wrong = excluded.wrong, last_at = excluded.last_at

-- count_coupon_tries_of_all: one more wrong PIN of everybody; begun anew where none came for long
insert into coupon_tries (guesser, wrong, last_at) values ('everybody', 1, %(at)s)
on conflict (guesser) do update
    set wrong = case when coupon_tries.last_at < %(forget_before)s then 1 else coupon_tries.wrong + 1 end,
        last_at = greatest(coupon_tries.last_at, excluded.last_at)

-- coupon_by_pin: the coupon of a PIN, by its digest
select id from coupons where pin_digest = %(digest)s

-- coupon_by_serial: the coupon of a serial
select id from coupons where serial = %(serial)s

-- lock_coupon: one at a time deals with a coupon; what it says is read from the row as it then is
select c.id, c.serial, c.batch_id, c.amount_minor, c.state, c.licence_id, c.sale_id, c.sold_on, c.valid_until,
       c.revalidations, c.redeemed_by, c.channel, c.meter_id, c.vend_id, c.redeemed_at
from coupons c where c.id = %(id)s for no key update

-- coupon_story: a coupon with its seller and its licence, as it is shown
select c.id, c.serial, c.batch_id, b.carrier, c.amount_minor, c.state, c.sold_on, c.valid_until, c.revalidations, c.channel,
       c.redeemed_at, c.licence_id, v.name as vendor, m.serial as meter
from coupons c
join coupon_batches b on b.id = c.batch_id
left join coupon_sales s on s.id = c.sale_id
left join coupon_licences l on l.id = c.licence_id
left join vendors v on v.id = coalesce(s.vendor_id, l.vendor_id)
left join meters m on m.id = c.meter_id
where c.serial = %(serial)s

-- list_coupons: coupons of a batch or a state, by serial
select c.serial, c.batch_id, c.amount_minor, c.state, c.sold_on, c.valid_until, c.revalidations
from coupons c
where (%(batch_id)s::integer is null or c.batch_id = %(batch_id)s)
  and (%(state)s::text is null or c.state = %(state)s)
order by c.serial limit %(most)s

-- coupon_events_of: what was done to a coupon by hand, oldest first
select at, event, by, reason, detail from coupon_events where coupon_id = %(coupon_id)s order by id

-- add_coupon_event: something that was done to coupons by hand
insert into coupon_events (at, event, batch_id, coupon_id, sale_id, licence_id, by, reason, detail)
values (%(at)s, %(event)s, %(batch_id)s, %(coupon_id)s, %(sale_id)s, %(licence_id)s, %(by)s, %(reason)s, %(detail)s)

-- lock_coupon_sale: one at a time deals with a vendor's message id of coupons; a statement of its own, look later
select pg_advisory_xact_lock(hashtextextended('coupon sale ' || %(vendor_id)s::bigint::text || ':' || %(message_id)s, 0))

-- coupon_sale_by_message: what a vendor's message id was answered
select request_sha256, answer from coupon_sales where vendor_id = %(vendor_id)s and message_id = %(message_id)s

-- lock_coupons_between: coupons of a batch from one serial to another, locked in their order
select id, serial, state, amount_minor from coupons
where batch_id = %(batch_id)s and serial between %(first)s and %(last)s
order by serial for no key update

-- add_coupon_sale: coupons that a vendor has paid for
insert into coupon_sales (vendor_id, message_id, request_sha256, amount_minor, journal_id, sold_at, sold_by, answer)
values (%(vendor_id)s, %(message_id)s, %(request_sha256)s, %(amount_minor)s, %(journal_id)s, %(sold_at)s, %(sold_by)s,
        %(answer)s)
returning id

-- sell_coupons: coupons are activated
update coupons set state = 'sold', sale_id = %(sale_id)s, sold_on = %(sold_on)s, valid_until = %(valid_until)s
where id = any(%(ids)s) and state = 'issued'

-- redeem_coupon: a coupon has become a vend; `sold_on` and `valid_until` are given for one that no log has told of yet
update coupons
set state = 'redeemed', redeemed_by = %(redeemed_by)s, channel = %(channel)s, meter_id = %(meter_id)s,
    vend_id = %(vend_id)s, redeemed_at = %(redeemed_at)s,
    sold_on = coalesce(sold_on, %(sold_on)s), valid_until = coalesce(valid_until, %(valid_until)s)
where id = %(id)s and state in ('sold', 'reserved')

-- licence_of_coupon: the licence that a coupon is reserved for
select licence_id from coupons where id = %(id)s and state = 'reserved'

-- revalidate_coupon: a coupon is valid again
update coupons
set state = 'sold', sold_on = coalesce(sold_on, %(sold_on)s), valid_until = %(valid_until)s,
    revalidations = revalidations + 1
where id = %(id)s and state in ('sold', 'reserved')

-- void_coupon: a coupon is out of use
update coupons set state = 'void', void_journal_id = %(journal_id)s
where id = %(id)s and state <> 'void'

-- vend_taken_back: a vend if it was reversed
select id from vends where id = %(vend_id)s and state = 'reversed'

-- coupon_vendor: whose money a coupon is, and when it was sold
select coalesce(s.vendor_id, l.vendor_id) from coupons c
left join coupon_sales s on s.id = c.sale_id
left join coupon_licences l on l.id = c.licence_id
where c.id = %(id)s

-- draw_licence: a coupon of a licence is taken of the money held for it; none where the licence does not hold so much
update coupon_licences set drawn_minor = drawn_minor + %(amount_minor)s
where id = %(id)s and drawn_minor + %(amount_minor)s <= held_minor
returning id

-- hold_more: a licence's vendor has paid for more than was held
update coupon_licences set held_minor = held_minor + %(amount_minor)s where id = %(id)s

-- lock_licence: one at a time deals with a licence; what it says is read from the row as it then is
select id, vendor_id, station, station_key, valid_from, valid_until, limit_minor, held_minor, drawn_minor, ranges, signed,
       state, revoked_at, log_seq, log_digest, log_latest
from coupon_licences where id = %(id)s for no key update

-- list_licences: licences and how far their logs are known
select l.id, v.name as vendor, l.station, l.valid_from, l.valid_until, l.limit_minor, l.held_minor, l.drawn_minor, l.state,
       l.revoked_at, l.log_seq,
       (select count(*) from coupon_log g where g.licence_id = l.id and cardinality(g.findings) > 0) as findings,
       (select count(*) from coupon_log_refusals r where r.licence_id = l.id) as refused_uploads
from coupon_licences l join vendors v on v.id = l.vendor_id
order by l.id

-- add_licence: a licence; it is signed once its number is known
insert into coupon_licences (vendor_id, station, station_key, valid_from, valid_until, limit_minor, held_minor, ranges,
                             given_at, given_by)
values (%(vendor_id)s, %(station)s, %(station_key)s, %(valid_from)s, %(valid_until)s, %(limit_minor)s, %(limit_minor)s,
        %(ranges)s, %(given_at)s, %(given_by)s)
returning id

-- sign_licence: a licence as its station gets it, and what its log begins with
update coupon_licences set signed = %(signed)s, log_digest = %(log_digest)s where id = %(id)s

-- reserve_coupons: coupons are set aside for a licence
update coupons set state = 'reserved', licence_id = %(licence_id)s where id = any(%(ids)s) and state = 'issued'

-- revoke_licence: a licence is in force no more
update coupon_licences set state = 'revoked', revoked_at = %(at)s where id = %(id)s and state = 'in_force'

-- close_licence: a licence has ended and its money was settled
update coupon_licences set state = 'closed', held_minor = drawn_minor where id = %(id)s and state <> 'closed'

-- release_reserved: coupons of a licence that nobody has sold can be sold by others
update coupons set state = 'issued', licence_id = null where licence_id = %(licence_id)s and state = 'reserved'

-- revoked_licences: licences on the revocation list
select id from coupon_licences where revoked_at is not null order by id

-- known_log_digests: digests of known entries
select seq, digest from coupon_log where licence_id = %(licence_id)s and seq = any(%(seqs)s)

-- logged_serials: coupons that a licence's log has told of already as sold
select serial from coupon_log
where licence_id = %(licence_id)s and serial = any(%(serials)s)
  and not findings && array['not_in_range', 'sold_twice', 'not_paid', 'after_revocation', 'coupon_void']

-- lock_licensed_coupons: coupons of a licence by their serials, locked in their order
select id, serial, state, amount_minor, sold_on, vend_id from coupons
where licence_id = %(licence_id)s and serial = any(%(serials)s)
order by serial for no key update

-- sell_licensed: coupons are sold as their station's log says; of those redeemed before, the day of sale is put right
update coupons c
set state = case when c.state = 'reserved' then 'sold' else c.state end, sold_on = n.sold_on,
    valid_until = case when c.revalidations = 0 then n.valid_until else c.valid_until end
from unnest(%(ids)s::bigint[], %(sold_ons)s::date[], %(untils)s::date[]) as n(id, sold_on, valid_until)
where c.id = n.id and c.state in ('reserved', 'sold', 'redeemed')

-- add_log_entries: entries of a station's log
insert into coupon_log (licence_id, seq, serial, amount_minor, sold_at, digest, signature, findings, uploaded_at)
select %(licence_id)s, n.seq, n.serial, n.amount_minor, n.sold_at, n.digest, n.signature,
       array(select jsonb_array_elements_text(n.findings)), %(uploaded_at)s
from unnest(%(seqs)s::integer[], %(serials)s::text[], %(amounts)s::bigint[], %(sold_ats)s::timestamptz[],
            %(digests)s::text[], %(signatures)s::text[], %(findings)s::jsonb[])
     as n(seq, serial, amount_minor, sold_at, digest, signature, findings)

-- advance_log: how far a licence's log is known now
update coupon_licences set log_seq = %(seq)s, log_digest = %(digest)s, log_latest = %(latest)s where id = %(id)s

-- add_log_refusal: an upload that was refused
insert into coupon_log_refusals (licence_id, at, code, message) values (%(licence_id)s, %(at)s, %(code)s, %(message)s)

-- log_findings: sales of a licence with something odd about them
select seq, serial, amount_minor, sold_at, findings from coupon_log
where licence_id = %(licence_id)s and cardinality(findings) > 0 order by seq

-- coupon_months: sold coupons by month of sale, and what became of them by a day
select date_trunc('month', c.sold_on)::date as month, count(*) as sold, sum(c.amount_minor)::bigint as sold_minor,
       count(*) filter (where c.state = 'redeemed' and not r.back) as redeemed,
       coalesce(sum(c.amount_minor) filter (where c.state = 'redeemed' and not r.back), 0)::bigint as redeemed_minor,
       count(*) filter (where c.state = 'void') as void,
       coalesce(sum(c.amount_minor) filter (where c.state = 'void'), 0)::bigint as void_minor,
       count(*) filter (where c.state = 'sold' and c.valid_until < %(today)s) as lapsed,
       coalesce(sum(c.amount_minor) filter (where c.state = 'sold' and c.valid_until < %(today)s), 0)::bigint
           as lapsed_minor,
       count(*) filter (where c.state = 'redeemed' and r.back or c.state = 'sold' and c.valid_until >= %(today)s)
           as outstanding,
       coalesce(sum(c.amount_minor) filter (where c.state = 'redeemed' and r.back
                                               or c.state = 'sold' and c.valid_until >= %(today)s), 0)::bigint
           as outstanding_minor,
       count(*) filter (where c.revalidations > 0) as revalidated,
       coalesce(sum(c.amount_minor) filter (where c.revalidations > 0), 0)::bigint as revalidated_minor
from coupons c
cross join lateral (
    select c.vend_id is not null and exists (
        select 1 from vends v where v.id = c.vend_id and v.state = 'reversed') as back
) r
where c.sold_on is not null and c.state <> 'reserved' and c.state <> 'issued'
group by 1 order by 1

-- coupon_liability: what the ledger owes for coupons, what the coupons come to, and what licences hold for theirs
select (select coalesce(sum(g.amount_minor), 0) from legs g where g.ledger = 'coupons')::bigint as ledger_minor,
       (select coalesce(sum(c.amount_minor), 0) from coupons c
        where c.state = 'sold' or c.state = 'redeemed' and exists (
            select 1 from vends v where v.id = c.vend_id and v.state = 'reversed'))::bigint as coupons_minor,
       (select coalesce(sum(l.held_minor - l.drawn_minor), 0) from coupon_licences l)::bigint as held_minor,
       (select count(*) from coupons) as coupons

-- broken_coupons: redeemed coupons whose vend is not theirs, and vends of coupons without a redeemed one
select c.serial, v.message_id, c.amount_minor, v.amount_minor as vend_minor
from (select * from coupons where vend_id is not null) c
full join (
    select v.id, v.message_id, v.amount_minor from vends v join vendors s on s.id = v.vendor_id
    where s.system = 'coupons' and v.journal_id is not null
) v on v.id = c.vend_id
where c.serial is distinct from v.message_id or c.amount_minor is distinct from v.amount_minor
order by coalesce(c.serial, v.message_id) limit 6

-- add_coupon_entries: PINs that were typed at meters, each once
insert into coupon_entries (meter_id, at, pin)
select * from unnest(%(meter_ids)s::integer[], %(ats)s::timestamptz[], %(pins)s::text[])
on conflict do nothing

-- take_coupon_entry: the oldest PIN typed at a meter that nobody else is dealing with
select e.id, e.meter_id, m.serial as meter, e.pin, e.received_at
from coupon_entries e join meters m on m.id = e.meter_id
where e.outcome is null order by e.id limit 1 for update of e skip locked

-- settle_coupon_entry: a PIN typed at a meter was redeemed or refused; its digits go
update coupon_entries set pin = null, outcome = %(outcome)s, settled_at = %(at)s where id = %(id)s

-- meter_of_account: the meter that an account is billed by now
select m.serial from accounts a
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
join meters m on m.id = i.meter_id
where a.id = %(account_id)s

-- coupons_to_print: coupons by serial as their slips say them, with what is stored in place of their PINs
select c.serial, c.pin_digest, c.amount_minor, c.state, c.valid_until, b.issued_at, v.name as vendor
from coupons c
join coupon_batches b on b.id = c.batch_id
left join coupon_sales s on s.id = c.sale_id
left join coupon_licences l on l.id = c.licence_id
left join vendors v on v.id = coalesce(s.vendor_id, l.vendor_id)
where c.serial = any(%(serials)s)
