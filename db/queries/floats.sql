-- move_float: change a vendor's float and enter why, unless a sale would bring it below its limit; locks its row
with moved as (
    update vendor_floats
    set balance_minor = balance_minor + %(amount_minor)s, entries = entries + 1,
        booked_at = greatest(booked_at, clock_timestamp())
    where vendor_id = %(vendor_id)s
      and (not %(bounded)s or limit_minor is null or balance_minor + %(amount_minor)s >= -limit_minor)
    returning vendor_id, entries, balance_minor, limit_minor, booked_at
)
insert into float_entries (vendor_id, n, journal_id, kind, amount_minor, balance_minor, limit_minor, terminal, operator,
                           tender, booked_at)
select vendor_id, entries, %(journal_id)s, %(kind)s, %(amount_minor)s, balance_minor, limit_minor, %(terminal)s::text,
       %(operator)s::text, %(tender)s::text, booked_at
from moved
returning n, balance_minor, booked_at

-- give_float_back: undo in a vendor's float what a vend's journal took; none where it took nothing
with sold as (
    select vendor_id, amount_minor, terminal, operator, tender
    from float_entries where journal_id = %(about_id)s and kind = 'vend'
), moved as (
    update vendor_floats f
    set balance_minor = f.balance_minor - s.amount_minor, entries = f.entries + 1,
        booked_at = greatest(f.booked_at, clock_timestamp())
    from sold s where f.vendor_id = s.vendor_id
    returning f.vendor_id, f.entries, f.balance_minor, f.limit_minor, f.booked_at
)
insert into float_entries (vendor_id, n, journal_id, kind, amount_minor, balance_minor, limit_minor, terminal, operator,
                           tender, booked_at)
select m.vendor_id, m.entries, %(journal_id)s, 'reversal', -s.amount_minor, m.balance_minor, m.limit_minor, s.terminal,
       s.operator, s.tender, m.booked_at
from moved m join sold s on s.vendor_id = m.vendor_id
returning n, balance_minor, booked_at

-- float_of: what a vendor has with the utility
select balance_minor, limit_minor, entries from vendor_floats where vendor_id = %(vendor_id)s

-- lock_float: what a vendor has with the utility, while nothing moves it
select balance_minor, limit_minor, entries from vendor_floats where vendor_id = %(vendor_id)s for no key update

-- floats_listed: what vendors have with the utility, by name: all, or one by id or name
select f.vendor_id, v.name as vendor, v.active, f.balance_minor, f.limit_minor, f.entries
from vendor_floats f join vendors v on v.id = f.vendor_id
where (%(vendor_id)s::bigint is null or f.vendor_id = %(vendor_id)s) and (%(name)s::text is null or v.name = %(name)s)
order by v.name

-- find_batch: one of a vendor's batches that somebody started or ended: by its number, or the latest
select b.scope, b.number, b.first_n, b.last_n, before.ended_at as began_at, b.started_at, b.started_by, b.ended_at,
       b.ended_by
from vendor_batches b
left join vendor_batches before
    on (before.vendor_id, before.kind, before.scope, before.number) = (b.vendor_id, b.kind, b.scope, b.number - 1)
where b.vendor_id = %(vendor_id)s and b.kind = %(kind)s and b.scope = %(scope)s
  and (%(number)s::integer is null or b.number = %(number)s)
order by b.number desc limit 1

-- start_batch: who started the open batch
insert into vendor_batches (vendor_id, kind, scope, number, first_n, started_at, started_by)
values (%(vendor_id)s, %(kind)s, %(scope)s, %(number)s, %(first_n)s, clock_timestamp(), %(by)s)

-- end_batch: the open batch holds no entry after one
insert into vendor_batches (vendor_id, kind, scope, number, first_n, last_n, ended_at, ended_by)
values (%(vendor_id)s, %(kind)s, %(scope)s, %(number)s, %(first_n)s, %(last_n)s, clock_timestamp(), %(by)s)
on conflict (vendor_id, kind, scope, number) do update
set last_n = excluded.last_n, ended_at = excluded.ended_at, ended_by = excluded.ended_by

-- batches_of_kind: the latest batches of a kind that somebody started or ended
select b.scope, b.number, b.first_n, b.last_n, before.ended_at as began_at, b.started_at, b.started_by, b.ended_at,
       b.ended_by
from vendor_batches b
left join vendor_batches before
    on (before.vendor_id, before.kind, before.scope, before.number) = (b.vendor_id, b.kind, b.scope, b.number - 1)
where b.vendor_id = %(vendor_id)s and b.kind = %(kind)s
order by greatest(b.started_at, b.ended_at) desc, b.scope, b.number desc limit %(most)s

-- sum_batch: a batch's sales and reversals by terminal and tender
select coalesce(terminal, '') as terminal, kind, coalesce(tender, 'other') as tender, count(*) as count,
       sum(amount_minor)::bigint as amount_minor, min(booked_at) as first_at
from float_entries
where vendor_id = %(vendor_id)s and n >= %(first_n)s and (%(last_n)s::bigint is null or n <= %(last_n)s)
  and kind in ('vend', 'reversal')
  and case %(kind)s when 'sales' then coalesce(terminal, '') = %(scope)s
                    when 'shift' then coalesce(operator, '') = %(scope)s else true end
group by 1, 2, 3
order by 1, 2, 3

-- sum_entries: a run of a vendor's entries by terminal, kind and tender
select coalesce(terminal, '') as terminal, kind, coalesce(tender, 'other') as tender, count(*) as count,
       sum(amount_minor)::bigint as amount_minor, min(booked_at) as first_at
from float_entries
where vendor_id = %(vendor_id)s and n > %(before_n)s and n <= %(last_n)s
group by 1, 2, 3
order by 1, 2, 3

-- float_span: a vendor's last entries before two instants, and its float then
with ends as (
    select coalesce(b.n, 0) as before_n, coalesce(b.balance_minor, 0) as opening_minor, coalesce(l.n, 0) as last_n,
           coalesce(l.balance_minor, 0) as closing_minor
    from (select 1) one
    left join lateral (
        select n, balance_minor from float_entries
        where vendor_id = %(vendor_id)s and booked_at < %(from_at)s order by booked_at desc, n desc limit 1
    ) b on true
    left join lateral (
        select n, balance_minor from float_entries
        where vendor_id = %(vendor_id)s and booked_at < %(until_at)s order by booked_at desc, n desc limit 1
    ) l on true
)
select before_n, last_n, opening_minor, closing_minor from ends

-- float_entries_of: entries of a vendor after one of them, in their order, with what each is about
select e.n, e.booked_at, e.kind, e.amount_minor, e.balance_minor,
       coalesce(v.message_id, d.reference, j.reason, '') as reference, a.number as account, e.terminal, e.operator, e.tender
from float_entries e
join journals j on j.id = e.journal_id
left join vends v on e.kind in ('vend', 'reversal') and v.journal_id = coalesce(j.about_id, j.id)
left join vendor_deposits d on e.kind = 'vendor_deposit' and d.journal_id = coalesce(j.about_id, j.id)
left join accounts a on a.id = v.account_id
where e.vendor_id = %(vendor_id)s and e.n > %(after_n)s and e.n <= %(last_n)s
order by e.n limit %(most)s

-- lock_deposit: let one request at a time deal with a deposit's reference; a statement of its own, look later
select pg_advisory_xact_lock(hashtextextended('vendor deposit ' || %(reference)s, 0))

-- find_deposit: a deposit by its reference, and whether it was taken back
select d.number, d.reference, d.vendor_id, v.name as vendor, d.amount_minor, d.channel, d.by, d.note, d.at,
       e.balance_minor, d.journal_id, r.at as returned_at, r.by as returned_by, r.reason as return_reason
from vendor_deposits d
join vendors v on v.id = d.vendor_id
join float_entries e on e.journal_id = d.journal_id
left join deposit_returns r on r.number = d.number
where d.reference = %(reference)s

-- add_deposit: money that a vendor paid in
insert into vendor_deposits (reference, vendor_id, amount_minor, channel, journal_id, by, note, at)
values (%(reference)s, %(vendor_id)s, %(amount_minor)s, %(channel)s, %(journal_id)s, %(by)s, %(note)s, %(at)s)

-- add_deposit_return: a deposit that turned out to be no money
insert into deposit_returns (number, journal_id, by, reason, at)
values (%(number)s, %(journal_id)s, %(by)s, %(reason)s, %(at)s)

-- set_vendor_limit: how far below zero a vendor's float may go from now on; null is no limit
with changed as (
    insert into vendor_changes (vendor_id, act, limit_minor, by, reason)
    values (%(vendor_id)s, 'limit', %(limit_minor)s, %(by)s, %(reason)s)
)
update vendor_floats set limit_minor = %(limit_minor)s where vendor_id = %(vendor_id)s

-- set_vendor_active: a vendor stops selling, or may sell again, from now on
with changed as (
    insert into vendor_changes (vendor_id, act, by, reason)
    values (%(vendor_id)s, case when %(active)s then 'resume' else 'stop' end, %(by)s, %(reason)s)
)
update vendors set active = %(active)s where id = %(vendor_id)s

-- vendor_changes_of: who changed what of a vendor, the newest first
select at, act, limit_minor, by, reason from vendor_changes where vendor_id = %(vendor_id)s order by id desc
