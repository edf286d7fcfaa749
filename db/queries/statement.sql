-- statement_snapshot: everything of one statement from one snapshot, and nothing written
set transaction isolation level repeatable read, read only

-- statement_brought: money of an account's journals dated before a local day, and their energy of that day's month
select coalesce(sum(g.amount_minor), 0)::bigint as balance_minor,
       coalesce(sum(j.energy_wh) filter (where coalesce(j.local_day, j.period) >= %(month)s::date
           and coalesce(j.local_day, j.period) < %(month)s::date + interval '1 month'), 0)::bigint as month_wh
from journals j
cross join lateral (
    select sum(l.amount_minor) as amount_minor from legs l where l.journal_id = j.id and l.ledger = 'prepaid'
) g
where j.account_id = %(account_id)s
  and case when j.kind = 'day' then j.local_day < %(first)s else j.booked_at < %(first_at)s end

-- statement_entries: an account's journals dated between two local days, with what a consumer is told about each
select j.kind, j.booked_at, j.local_day, j.period, j.energy_wh, j.edge_quality, j.lines, j.reason,
       coalesce(g.amount_minor, 0)::bigint as amount_minor, coalesce(g.noted_minor, 0)::bigint as noted_minor,
       v.name as vendor, right(t.digits, 4) as token_tail, b.booked_at as about_at
from journals j
cross join lateral (
    select sum(l.amount_minor) filter (where l.ledger = 'prepaid') as amount_minor,
           abs(sum(l.amount_minor) filter (where l.ledger in ('arrears', 'security_deposits'))) as noted_minor
    from legs l where l.journal_id = j.id
) g
left join vends s on s.journal_id = j.id
left join vendors v on v.id = s.vendor_id
left join tokens t on t.vend_id = s.id
left join journals b on b.id = j.about_id
where j.account_id = %(account_id)s
  and case when j.kind = 'day' then j.local_day between %(first)s and %(last)s
      else j.booked_at >= %(first_at)s and j.booked_at < %(end_at)s end
order by j.id
limit %(most)s

-- money_booked_until: money of an account's journals other than usage, booked by an instant
select coalesce(sum(l.amount_minor), 0)::bigint
from journals j
join legs l on l.journal_id = j.id and l.ledger = 'prepaid'
where j.account_id = %(account_id)s and j.kind not in ('day', 'late_usage', 'overhaul') and j.booked_at <= %(at)s

-- usage_booked_before: what usage journals have booked of bill parts before one, of it and later ones, and its demand
select coalesce(-sum(g.amount_minor) filter (where j.period < %(part)s), 0)::bigint as charged_minor,
       coalesce(sum(j.energy_wh) filter (where j.period >= %(part)s), 0)::bigint as later_wh,
       coalesce(sum(j.energy_wh) filter (where j.period >= %(fresh)s and j.period < %(part)s), 0)::bigint as before_wh,
       coalesce(max(j.demand_w) filter (where j.local_day >= %(part)s and j.local_day < %(day)s), 0) as demand_w
from journals j
cross join lateral (
    select sum(l.amount_minor) as amount_minor from legs l where l.journal_id = j.id and l.ledger = 'prepaid'
) g
where j.account_id = %(account_id)s and j.kind in ('day', 'late_usage', 'overhaul')
