-- audit_next_vendor_legs: the last of the next journals with a leg on vendor_clearing, in id order
select max(journal_id) from (
    select journal_id from legs where ledger = 'vendor_clearing' and journal_id > %(after)s
    order by journal_id limit %(most)s
) next

-- audit_entries: an id range of the ledger: entries of floats, the sum of the legs that they stand for, those that
-- stand for no such leg, do not follow from the one before, or passed the limit
with booked as (
    select journal_id, sum(amount_minor)::bigint as amount_minor from legs
    where ledger = 'vendor_clearing' and journal_id > %(after)s and journal_id <= %(upto)s
    group by journal_id
), found as (
    select coalesce(e.journal_id, b.journal_id) as journal_id, e.vendor_id, e.n, e.kind, e.amount_minor,
           b.amount_minor as booked_minor, e.balance_minor, e.limit_minor, e.terminal, e.tender, e.booked_at,
           j.kind as kind_booked, j.about_id
    from (select * from float_entries where journal_id > %(after)s and journal_id <= %(upto)s) e
    full join booked b on b.journal_id = e.journal_id
    left join journals j on j.id = coalesce(e.journal_id, b.journal_id)
), judged as (
    select f.journal_id, f.vendor_id, f.n, f.booked_minor,
           -- A vend's journal that no vend names has nobody's float to move: it is told as such (I6), and once.
           f.n is null and f.kind_booked in ('vend', 'reversal') and v.id is null as of_nobody,
           case when f.n is null then 'no entry'
                when f.booked_minor is distinct from f.amount_minor then
                    format('entry of %%s minor, its journal books %%s', f.amount_minor, coalesce(f.booked_minor, 0))
                when f.kind is distinct from f.kind_booked then
                    format('entry of a %%s, its journal is a %%s', f.kind, f.kind_booked)
                when f.balance_minor <> coalesce(p.balance_minor, 0) + f.amount_minor or (p.n is null) <> (f.n = 1) then
                    'balance does not follow from the entry before'
                when f.booked_at < p.booked_at then 'booked before the entry before'
                when f.amount_minor < 0 and f.kind in ('vend', 'coupon_sale') and f.balance_minor < -f.limit_minor then
                    format('sale down to %%s minor, past the limit of %%s', f.balance_minor, f.limit_minor)
                when f.kind in ('vend', 'reversal') and (v.vendor_id, v.funding) is distinct from (f.vendor_id, 'vendor')
                    then 'entry of a vend that is not the vendor''s'
                when f.kind in ('vend', 'reversal')
                     and (v.terminal, v.tender) is distinct from (f.terminal, f.tender) then
                    'terminal or tender is not the vend''s'
           end as broken
    from found f
    left join float_entries p on p.vendor_id = f.vendor_id and p.n = f.n - 1
    left join vends v
        on v.journal_id = coalesce(f.about_id, f.journal_id) and f.kind_booked in ('vend', 'reversal')
)
select count(n), coalesce(sum(booked_minor) filter (where not of_nobody), 0)::bigint,
       coalesce(jsonb_agg(jsonb_build_array(journal_id, vendor_id, n, broken) order by journal_id)
                filter (where broken is not null and not of_nobody), '[]')
from judged

-- audit_floats: vendors' floats, and those that are not what their last entry left
select f.vendor_id, v.name, f.balance_minor, f.entries, coalesce(e.n, 0) as last_n,
       coalesce(e.balance_minor, 0) as last_minor
from vendor_floats f
join vendors v on v.id = f.vendor_id
left join lateral (
    select n, balance_minor from float_entries where vendor_id = f.vendor_id order by n desc limit 1
) e on true
order by f.vendor_id

-- audit_batches_of_vendors: batches of vendors that do not begin where the one before ended, or end after the last sale
select b.vendor_id, b.kind, b.scope, b.number
from (
    select *, lag(last_n) over so_far as before_n, lag(number) over so_far as before_number
    from vendor_batches
    window so_far as (partition by vendor_id, kind, scope order by number)
) b
join vendor_floats f on f.vendor_id = b.vendor_id
where b.number <> coalesce(b.before_number, 0) + 1 or b.first_n <> coalesce(b.before_n, 0) + 1 or b.last_n > f.entries
order by b.vendor_id, b.kind, b.scope, b.number

-- audit_batches_count: how many batches vendors have started or ended
select count(*) from vendor_batches
