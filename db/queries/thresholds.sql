-- save_further_levels: which further levels of accounts have rung or been armed again
update alarm_thresholds w set arm = k.arm, raised = k.raised
from unnest(%(ids)s::bigint[], %(ns)s::smallint[], %(arms)s::integer[], %(raised)s::boolean[])
     as k(account_id, n, arm, raised)
where w.account_id = k.account_id and w.n = k.n

-- further_thresholds: what a consumer asked to be warned by besides the amount that the meter keeps
select n, kind, value, level_minor, arm, raised from alarm_thresholds where account_id = %(account_id)s order by n

-- drop_further: wishes that a consumer has no longer
delete from alarm_thresholds where account_id = %(account_id)s and n = any(%(ns)s)

-- add_further: further wishes of a consumer; an arm that has rung under a number never comes again
insert into alarm_thresholds (account_id, n, kind, value, level_minor, arm)
select %(account_id)s, k.n, k.kind, k.value, k.level_minor,
       1 + coalesce((select max(x.arm) from alarms x
                     where x.account_id = %(account_id)s and x.level = 'low' and x.n = k.n), 0)
from unnest(%(ns)s::smallint[], %(kinds)s::text[], %(values)s::bigint[], %(level_minors)s::bigint[])
     as k(n, kind, value, level_minor)
returning n, level_minor, arm, raised

-- set_percent_levels: levels that are a share of the last recharge, rounded down as in billing.forecast.level_minor;
-- none without a recharge
update alarm_thresholds set level_minor = %(amount_minor)s::bigint * value / 100
where account_id = %(account_id)s and kind = 'percent'
returning n, level_minor, arm, raised

-- set_day_levels: levels that are days of use, where they have changed; one that is not known any more stays
update alarm_thresholds w set level_minor = k.level_minor
from unnest(%(values)s::bigint[], %(level_minors)s::bigint[]) as k(value, level_minor)
where w.account_id = %(account_id)s and w.kind = 'days' and w.value = k.value and k.level_minor is not null
  and w.level_minor is distinct from k.level_minor
returning w.n, w.level_minor, w.arm, w.raised

-- present_uses: of some accounts the use of the last complete days, among the latest that are closed
select k.id, d.days, d.energy_wh, d.charge_minor
from unnest(%(ids)s::bigint[]) k(id)
join accounts a on a.id = k.id
cross join lateral (
    select count(*)::integer as days, coalesce(sum(t.energy_wh), 0)::bigint as energy_wh,
           coalesce(sum(t.charge_minor), 0)::bigint as charge_minor
    from (
        select j.energy_wh, (select sum(l.value::bigint) from jsonb_each_text(j.lines) l) as charge_minor
        from journals j
        where j.account_id = k.id and j.kind = 'day' and j.local_day >= a.through - %(recent_days)s::integer
          and j.edge_quality <> 'unread'
        order by j.local_day desc limit %(days_most)s
    ) t
) d

-- recharge_basis: the last recharge of an account that was not taken back and is not being so
select g.amount_minor
from journals j
join legs g on g.journal_id = j.id and g.ledger = 'prepaid'
where j.account_id = %(account_id)s and j.kind = 'vend' and j.id <> all(%(taken)s::bigint[])
  and not exists (select from journals b where b.about_id = j.id and b.kind = 'reversal')
order by j.id desc limit 1

-- accounts_by_days: accounts that want to be warned some days ahead, in id order from one id on
select distinct account_id from alarm_thresholds where kind = 'days' and account_id > %(after)s
order by account_id limit %(most)s
