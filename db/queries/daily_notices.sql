-- accounts_page: the last of the next accounts in id order
select max(n.id) from (select id from accounts where id > %(after)s order by id limit %(most)s) n

-- accounts_running_out: of a page the accounts whose posted credit is worth at most so many days of present use, with
-- the arm and the recharge that a forecast is told once for
select a.id, k.period_key
from accounts a
cross join lateral (
    select a.exhausted_arm || '-' || coalesce((
        select j.id from journals j where j.account_id = a.id and j.kind = 'vend' order by j.id desc limit 1), 0) as period_key
) k
cross join lateral (
    select count(*) as days, coalesce(sum(t.charge_minor), 0) as charge_minor
    from (
        select (select sum(l.value::bigint) from jsonb_each_text(j.lines) l) as charge_minor
        from journals j
        where j.account_id = a.id and j.kind = 'day' and j.local_day >= a.through - %(recent_days)s::integer
          and j.edge_quality <> 'unread'
        order by j.local_day desc limit %(days_most)s
    ) t
) d
where a.id > %(after)s and a.id <= %(upto)s
  and a.mode = 'prepaid' and a.absent_until is null and not a.exhausted_raised
  and a.posted_minor + a.emergency_credit_minor > 0
  and not exists (select from daily_notices t
                  where t.account_id = a.id and t.kind = 'forecast' and t.period_key = k.period_key)
  and d.days >= %(days_least)s
  and (a.posted_minor + a.emergency_credit_minor) * d.days <= %(days_near)s * d.charge_minor
order by a.id

-- statements_to_tell: of a page the accounts whose month is closed, and who were not told so yet
select a.id, %(period_key)s
from accounts a
where a.id > %(after)s and a.id <= %(upto)s and a.through > %(last)s and a.opened_on <= %(last)s
  and not exists (select from daily_notices t
                  where t.account_id = a.id and t.kind = 'statement_ready' and t.period_key = %(period_key)s)
order by a.id

-- month_figures: energy and charge of some accounts' days, and the balance these closed with: what is posted less what
-- is dated after. A day is dated by itself, everything else by its booking, as in a statement
select a.id, u.energy_wh, u.charge_minor, a.posted_minor - x.later_minor
from unnest(%(ids)s::bigint[]) k(id)
join accounts a on a.id = k.id
cross join lateral (
    select coalesce(sum(j.energy_wh), 0)::bigint as energy_wh, coalesce(sum(m.minor), 0)::bigint as charge_minor
    from (
        select d.energy_wh, d.lines from journals d
        where d.account_id = k.id and d.kind = 'day' and d.local_day between %(first)s and %(last)s
        union all
        select b.energy_wh, b.lines from journals b
        where b.account_id = k.id and b.kind <> 'day' and b.lines is not null
          and b.booked_at >= %(first_at)s and b.booked_at < %(end_at)s
    ) j
    cross join lateral (select sum(l.value::bigint) as minor from jsonb_each_text(j.lines) l) m
) u
cross join lateral (
    select coalesce(sum(g.amount_minor), 0)::bigint as later_minor
    from (
        select d.id from journals d where d.account_id = k.id and d.kind = 'day' and d.local_day > %(last)s
        union all
        select b.id from journals b where b.account_id = k.id and b.kind <> 'day' and b.booked_at >= %(end_at)s
    ) j
    join legs g on g.journal_id = j.id and g.ledger = 'prepaid'
) x

-- claim_daily: note what accounts are told of a kind; returns those that were not told of this period yet
insert into daily_notices (account_id, kind, period_key)
select k.account_id, %(kind)s, k.period_key
from unnest(%(account_ids)s::bigint[], %(period_keys)s::text[]) as k(account_id, period_key)
order by k.account_id
on conflict (account_id, kind) do update set period_key = excluded.period_key, told_at = excluded.told_at
where daily_notices.period_key <> excluded.period_key
returning account_id
