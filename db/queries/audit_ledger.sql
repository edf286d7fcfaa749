-- audit_next_journals: the last of the next journals in id order
select max(id) from (select id from journals where id > %(after)s order by id limit %(most)s) next

-- audit_journals_of: the journals of some accounts
select id from journals where account_id = any(%(ids)s) order by id

-- audit_levies_since: from when on bill lines that are levies were booked as such
select coalesce((select applied_at from migrations where name = '0002_charge_core.sql'), 'epoch')

-- audit_tariffs: the checksums of all tariffs
select sha256 from tariffs where sha256 <> ''

-- audit_journals: an id range of the ledger, or some journals of it: counts, sums, broken journals, vends without one
with found as materialized (
    select coalesce(j.id, g.journal_id) as id, j.kind, j.account_id, j.batch_id, j.lines, j.lines_minor,
           coalesce(g.legs, 0) as legs, coalesce(g.amount_minor, 0) as amount_minor,
           coalesce(g.prepaid_minor, 0) as prepaid_minor, coalesce(g.clearing_minor, 0) as clearing_minor,
           coalesce(g.by_line, '{}') as by_line,
           case when j.booked_at < %(levies_since)s then g.misbooked_once else g.misbooked end as misbooked
    from (
        select id, kind, account_id, batch_id, booked_at, lines,
               (select coalesce(sum(e.value::bigint), 0)::bigint from jsonb_each_text(lines) e) as lines_minor
        from journals
        where id > %(after)s and id <= %(upto)s and (%(ids)s::bigint[] is null or id = any(%(ids)s))
    ) j
    full join (
        select journal_id, count(*) as legs, sum(amount_minor)::bigint as amount_minor,
               (sum(amount_minor) filter (where ledger = 'prepaid'))::bigint as prepaid_minor,
               (sum(amount_minor) filter (where ledger = 'usage_clearing'))::bigint as clearing_minor,
               jsonb_object_agg(line, amount_minor) filter (where line <> '') as by_line,
               min(line || ' on ' || ledger) filter (where line <> '' and not case ledger
                   when 'revenue' then true when 'levies_payable' then line = any(%(levies)s::text[])
                   else ledger = 'subsidy_receivable' and line = 'subsidy' end) as misbooked_once,
               min(line || ' on ' || ledger) filter (where line <> '' and not case ledger
                   when 'revenue' then line <> 'subsidy' and line <> all(%(only_levies)s::text[])
                   when 'levies_payable' then line = any(%(levies)s::text[])
                   else ledger = 'subsidy_receivable' and line = 'subsidy' end) as misbooked
        from legs
        where journal_id > %(after)s and journal_id <= %(upto)s
          and (%(ids)s::bigint[] is null or journal_id = any(%(ids)s))
        group by journal_id
    ) g on g.journal_id = j.id
),
judged as (
    select f.*,
           f.kind is null or f.legs = 0 or f.amount_minor <> 0 or f.misbooked is not null
           or (f.lines is not null and f.prepaid_minor <> -f.lines_minor)
           or f.clearing_minor <> case when f.batch_id is not null then f.lines_minor
                                       when f.kind = 'usage_batch' then f.clearing_minor else 0 end
           or (f.batch_id is not null and f.by_line <> '{}')
           or (f.batch_id is null and f.lines is not null and f.by_line <> f.lines and f.by_line <> (
                   select coalesce(jsonb_object_agg(e.key, e.value) filter (where e.value <> '0'), '{}')
                   from jsonb_each(f.lines) e)) as broken
    from found f
)
select count(kind), coalesce(sum(amount_minor), 0)::bigint, coalesce(sum(clearing_minor), 0)::bigint,
       coalesce((
           select jsonb_agg(to_jsonb(b) || jsonb_build_object('number', a.number) order by b.id)
           from judged b left join accounts a on a.id = b.account_id where b.broken), '[]'),
       coalesce((
           select jsonb_agg(jsonb_build_array(u.id, u.account_id, a.number) order by u.id)
           from judged u left join accounts a on a.id = u.account_id
           where u.kind = 'vend' and not exists (select 1 from vends v where v.journal_id = u.id)), '[]')
from judged

-- audit_batch_lines: an id range of the ledger: lines of the members of usage batches, less what the batches booked
select batch_id, line, sum(amount_minor)::bigint as amount_minor
from (
    select j.batch_id, e.key as line, sum(e.value::bigint) as amount_minor
    from journals j cross join lateral jsonb_each_text(j.lines) e
    where j.id > %(after)s and j.id <= %(upto)s and j.batch_id is not null
    group by j.batch_id, e.key
    union all
    select j.id, g.line, -sum(g.amount_minor)
    from journals j join legs g on g.journal_id = j.id
    where j.id > %(after)s and j.id <= %(upto)s and j.kind = 'usage_batch' and g.line <> ''
    group by j.id, g.line
) owed
group by batch_id, line having sum(amount_minor) <> 0

-- audit_booked_times: an id range of the ledger: latest booked time, journals behind an earlier one or ahead of now
select count(*), max(o.booked_at),
       coalesce(jsonb_agg(jsonb_build_array(o.id, o.account_id, a.number, o.booked_at, o.ahead) order by o.id)
                filter (where o.behind or o.ahead), '[]')
from (
    select id, account_id, booked_at, booked_at > %(clock)s::timestamptz + %(skew_s)s * interval '1 second' as ahead,
           booked_at < greatest(%(latest)s::timestamptz, max(booked_at) over earlier)
                       - %(skew_s)s * interval '1 second' as behind
    from journals where id > %(after)s and id <= %(upto)s
    window earlier as (order by id rows between unbounded preceding and 1 preceding)
) o
left join accounts a on a.id = o.account_id and (o.behind or o.ahead)

-- audit_dues: how many sums are worked off
select count(*) from account_dues
