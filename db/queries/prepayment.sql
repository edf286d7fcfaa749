-- add_prepayment_rules: the utility's rules from a day on; a day that has a document keeps it
insert into prepayment_rules (from_day, document, sha256) values (%(from_day)s, %(document)s, %(sha256)s)
on conflict (from_day) do nothing
returning from_day

-- prepayment_rules_on: the rules in force on a day
select document from prepayment_rules where from_day <= %(day)s order by from_day desc limit 1

-- prepayment_rules_at: the document that begins on a day
select sha256 from prepayment_rules where from_day = %(from_day)s

-- prepayments_of: accounts' categories and the rules in force on a day of each, by default its first open one, and what
-- they still owe of arrears
select k.id, s.category, r.document, a.absent_until,
       (select coalesce(sum(d.outstanding_minor), 0)::bigint from account_dues d
        where d.account_id = a.id and d.ledger = 'arrears') as arrears_minor
from unnest(%(ids)s::bigint[], %(days)s::date[]) k(id, day)
join accounts a on a.id = k.id
left join lateral (
    select s.category from assignments s where s.account_id = a.id and s.replaced_by is null
    order by greatest(s.from_day, coalesce(k.day, a.through)), s.from_day desc limit 1
) s on true
left join lateral (
    select r.document from prepayment_rules r where r.from_day <= coalesce(k.day, a.through) order by r.from_day desc limit 1
) r on true

-- dues_of_account: what an account works off on one ledger, settled ones too
select id, opened_on, total_minor, outstanding_minor from account_dues
where account_id = %(account_id)s and ledger = %(ledger)s order by opened_on, id

-- dues_outstanding: what is outstanding of an account by ledger
select ledger, sum(outstanding_minor)::bigint from account_dues where account_id = %(account_id)s group by ledger

-- open_due: a new sum to work off, with the journal that books it
insert into account_dues (account_id, ledger, opened_on, total_minor, outstanding_minor, instalments, next_on, note)
values (%(account_id)s, %(ledger)s, %(opened_on)s, %(total_minor)s, %(total_minor)s, %(instalments)s, %(next_on)s,
        %(note)s)
returning id

-- move_dues: change what is outstanding, with the journal that moves it; what is settled has no next instalment
update account_dues d set outstanding_minor = d.outstanding_minor + p.change_minor,
    next_on = case when d.outstanding_minor + p.change_minor > 0 then d.next_on end
from unnest(%(ids)s::bigint[], %(changes)s::bigint[]) as p(id, change_minor)
where d.id = p.id

-- add_recovery: a journal brought a recovery of arrears with it
insert into arrears_recoveries (cause_id, journal_id) values (%(cause_id)s, %(journal_id)s)

-- instalments_due: accounts with an instalment due on or before a day, in id order from one id on
select distinct account_id from account_dues where next_on <= %(until)s and account_id > %(after)s
order by account_id limit %(most)s

-- next_instalment: the account's next due that pays an instalment on or before a day, and how many were paid
select d.id, d.opened_on, d.total_minor, d.outstanding_minor, d.instalments, d.next_on,
       (select count(*) from due_instalments i where i.due_id = d.id) as paid
from account_dues d
where d.account_id = %(account_id)s and d.next_on <= %(until)s order by d.next_on, d.id limit 1

-- add_instalment: an instalment is paid, once
insert into due_instalments (due_id, n, due_on, amount_minor, journal_id)
values (%(due_id)s, %(n)s, %(due_on)s, %(amount_minor)s, %(journal_id)s)

-- set_next_instalment: when a due pays its next instalment, if there is something left
update account_dues set next_on = case when outstanding_minor > 0 then %(next_on)s::date end where id = %(due_id)s

-- account_absence: until when an account's consumer is away
select absent_until from accounts where id = %(account_id)s

-- make_prepaid: an account begins to pay in advance
update accounts set mode = 'prepaid', version = version + 1 where id = %(account_id)s returning shard, version

-- set_absence: a consumer is away until a day, or no more
update accounts set absent_until = %(until)s, version = version + 1 where id = %(account_id)s returning shard, version

-- ended_absences: accounts whose absence is over on a day, in id order from one id on
select id from accounts where absent_until <= %(today)s and id > %(after)s order by id limit %(most)s

-- stale_credit: accounts whose emergency credit is not the larger of their own and their category's, from one id on
select a.id, c.credit_minor
from accounts a
join lateral (
    select s.category from assignments s where s.account_id = a.id and s.replaced_by is null
    order by greatest(s.from_day, %(day)s::date), s.from_day desc limit 1
) s on true
cross join lateral (
    select coalesce((select u.credit_minor
                     from unnest(%(categories)s::text[], %(credits)s::bigint[]) as u(category, credit_minor)
                     where u.category = s.category), %(default_minor)s::bigint) as credit_minor
) c
where a.id > %(after)s
  and a.emergency_credit_minor <> greatest(coalesce(a.own_credit_minor, a.emergency_credit_minor), c.credit_minor)
order by a.id limit %(most)s

-- set_credit: an account has the larger of its own emergency credit and its category's
update accounts set own_credit_minor = coalesce(own_credit_minor, emergency_credit_minor),
    emergency_credit_minor = greatest(coalesce(own_credit_minor, emergency_credit_minor), %(credit_minor)s),
    version = version + 1
where id = %(account_id)s
  and emergency_credit_minor <> greatest(coalesce(own_credit_minor, emergency_credit_minor), %(credit_minor)s)
returning shard, version

-- journal_to_reverse: a journal, the recovery it brought with it, and what the two did to the consumer's money
select j.id, j.kind, j.account_id, j.about_id, j.correction_id,
       (select sum(g.amount_minor)::bigint from legs g where g.journal_id = j.id and g.ledger = 'prepaid')
           as prepaid_minor,
       (select min(g.ledger) from legs g where g.journal_id = j.id and g.ledger <> 'prepaid') as source,
       r.journal_id as recovery_id,
       (select sum(g.amount_minor)::bigint from legs g where g.journal_id = r.journal_id and g.ledger = 'arrears')
           as recovered_minor,
       b.id as reversed_by
from journals j
left join arrears_recoveries r on r.cause_id = j.id
left join journals b on b.about_id = j.id
where j.id = %(journal_id)s
order by b.id limit 1

-- lock_money_command: let one command at a time deal with a reference; a statement of its own, look later
select pg_advisory_xact_lock(hashtextextended('money:' || %(reference)s::text, 0))

-- money_command: what a reference was answered
select request_sha256, answer from money_commands where reference = %(reference)s

-- add_money_command: the answer to a reference, for ever
insert into money_commands (reference, request_sha256, answer) values (%(reference)s, %(request_sha256)s, %(answer)s)

-- broken_dues: accounts whose arrears or deposits differ between journals and dues
with booked as (
    select j.account_id, g.ledger, sum(g.amount_minor)::bigint as booked_minor
    from legs g join journals j on j.id = g.journal_id
    where g.ledger in ('arrears', 'security_deposits', 'absence_deposits')
    group by j.account_id, g.ledger
), kept as (
    select account_id, ledger,
           sum(case ledger when 'arrears' then -outstanding_minor else outstanding_minor end)::bigint as kept_minor
    from account_dues group by account_id, ledger
)
select a.number, ledger, coalesce(b.booked_minor, 0) as booked_minor, coalesce(k.kept_minor, 0) as kept_minor
from booked b full join kept k using (account_id, ledger)
join accounts a on a.id = account_id
where coalesce(b.booked_minor, 0) <> coalesce(k.kept_minor, 0)
order by a.id, ledger

-- broken_instalments: deposits that paid more in instalments than has left them, or another journal's amount
select a.number, d.id, d.total_minor, d.outstanding_minor, sum(i.amount_minor)::bigint as paid_minor,
       sum(coalesce(g.amount_minor, 0))::bigint as booked_minor
from account_dues d
join accounts a on a.id = d.account_id
join due_instalments i on i.due_id = d.id
left join legs g on g.journal_id = i.journal_id and g.ledger = 'prepaid'
group by a.id, a.number, d.id
having sum(i.amount_minor) > d.total_minor - d.outstanding_minor
    or sum(i.amount_minor) <> sum(coalesce(g.amount_minor, 0))
order by a.id, d.id

-- broken_absences: accounts that are away without a deposit, or have one and are not away
select a.number, a.absent_until, coalesce(d.outstanding_minor, 0)::bigint as deposit_minor
from accounts a
full join (
    select account_id, sum(outstanding_minor) as outstanding_minor from account_dues
    where ledger = 'absence_deposits' and outstanding_minor > 0 group by account_id
) d on d.account_id = a.id
where (a.absent_until is null) <> (d.outstanding_minor is null)
order by a.id

-- broken_reversals: journals about another one of the same account that do not take back what it did
select a.number, j.id, j.about_id, x.taken_minor, y.done_minor
from journals j
join journals b on b.id = j.about_id
left join accounts a on a.id = j.account_id
cross join lateral (
    select coalesce(sum(g.amount_minor), 0)::bigint as taken_minor from legs g
    where g.journal_id = j.id and g.ledger = 'prepaid'
) x
cross join lateral (
    select coalesce(sum(g.amount_minor), 0)::bigint as done_minor from legs g
    where g.journal_id = b.id and g.ledger = 'prepaid'
) y
where j.about_id is not null and j.kind not in ('day', 'late_usage', 'overhaul')
  and (j.account_id is distinct from b.account_id or x.taken_minor <> -y.done_minor)
order by j.id
