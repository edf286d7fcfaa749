-- add_case: a complaint becomes a case
insert into cases (account_id, kind, area, meter_id, accuracy_class, complaint, opened_by, opened_at, rules, state, due_at)
values (%(account_id)s, %(kind)s, %(area)s, %(meter_id)s, %(accuracy_class)s, %(complaint)s, %(opened_by)s,
        %(opened_at)s, %(rules)s, %(state)s, %(due_at)s)
returning id

-- lock_case: one step of a case at a time; look later
select id from cases where id = %(id)s for update

-- case_row: a case and whose it is
select c.id, c.account_id, a.number as account, c.kind, c.area, c.meter_id, m.serial as meter, c.accuracy_class,
       c.complaint, c.opened_by, c.opened_at, c.rules, c.state, c.due_at
from cases c join accounts a on a.id = c.account_id join meters m on m.id = c.meter_id
where c.id = %(id)s

-- cases_listed: cases by number, those in a state, of an account or with a clock that has run out
select c.id, a.number as account, c.kind, c.area, m.serial as meter, c.state, c.opened_at, c.opened_by, c.due_at,
       coalesce(c.due_at < %(now)s and c.state <> 'closed', false) as overdue
from cases c join accounts a on a.id = c.account_id join meters m on m.id = c.meter_id
where c.id > %(after)s
  and (%(state)s::text is null or c.state = %(state)s)
  and (%(account)s::text is null or a.number = %(account)s)
  and (not %(overdue)s or (c.due_at < %(now)s and c.state <> 'closed'))
order by c.id limit %(most)s

-- case_trail: the trail of a case in order
select n, step, at, by, note, facts from case_steps where case_id = %(id)s order by n

-- add_case_step: a step behind the others
insert into case_steps (case_id, n, step, at, by, note, facts)
select %(id)s, coalesce(max(s.n), 0) + 1, %(step)s, %(at)s, %(by)s, %(note)s, %(facts)s
from case_steps s where s.case_id = %(id)s

-- case_stands: where a case stands after a step
update cases set state = %(state)s, due_at = %(due_at)s where id = %(id)s

-- documents_of_case: the documents of a case, without their content
select id, name, media_type, encode(sha256, 'hex') as sha256, octet_length(content) as bytes, added_by, added_at
from case_documents where case_id = %(id)s order by id

-- count_case_documents: how many documents a case has, and how large they are
select count(*)::integer, coalesce(sum(octet_length(content)), 0)::bigint from case_documents where case_id = %(id)s

-- add_case_document: a document of a case; the same content again stays one document
insert into case_documents (case_id, name, media_type, sha256, content, added_by, added_at)
values (%(id)s, %(name)s, %(media_type)s, %(sha256)s, %(content)s, %(by)s, %(at)s)
on conflict (case_id, sha256) do nothing

-- case_document: one document with its content
select name, media_type, content from case_documents where case_id = %(id)s and id = %(document)s

-- case_account: the account of a new case with the meter that stands there
select a.id, i.meter_id, m.serial from accounts a
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
join meters m on m.id = i.meter_id
where a.number = %(account)s

-- case_check_meter: a meter that is to stand beside another: where it stands, and since when it is free
select m.id, i.id is not null as installed,
       (select max(f.to_at) from installations f where f.meter_id = m.id and f.to_at is not null) as free_from
from meters m left join installations i on i.meter_id = m.id and i.to_at is null
where m.serial = %(serial)s

-- case_install_check: a check meter beside the account's meter; never charged
insert into installations (usage_point_id, meter_id, role, from_at)
select a.usage_point_id, %(meter_id)s, 'check', %(at)s from accounts a where a.id = %(account_id)s

-- case_end_check: a check meter is taken away
update installations set to_at = %(at)s
where meter_id = %(meter_id)s and role = 'check' and to_at is null and from_at < %(at)s

-- add_check_readings: registers of a check meter; what is there stays
insert into check_readings (meter_id, read_at, import_wh, export_wh, case_id)
select %(meter_id)s, r.read_at, r.import_wh, r.export_wh, %(case_id)s
from unnest(%(ats)s::timestamptz[], %(imports)s::bigint[], %(exports)s::bigint[]) as r(read_at, import_wh, export_wh)
on conflict (meter_id, read_at) do nothing

-- check_readings_differ: registers of a check meter that are stored otherwise than they come now
select r.read_at
from unnest(%(ats)s::timestamptz[], %(imports)s::bigint[], %(exports)s::bigint[]) as r(read_at, import_wh, export_wh)
join check_readings c on c.meter_id = %(meter_id)s and c.read_at = r.read_at
where c.import_wh <> r.import_wh or c.export_wh is distinct from r.export_wh
order by 1 limit 1

-- check_registers: what a check meter read in a span
select read_at, import_wh, export_wh from check_readings
where meter_id = %(meter_id)s and read_at between %(since)s and %(until)s order by read_at

-- case_registers: what a billing meter read in a span, as edits have left it
select e.read_at, e.import_wh, r.export_wh
from effective_readings e join readings r on r.meter_id = e.meter_id and r.read_at = e.read_at
where e.meter_id = %(meter_id)s and e.read_at between %(since)s and %(until)s order by e.read_at

-- case_interval: how far apart the readings of a meter are
select interval_s from meters where id = %(meter_id)s

-- case_flows: both registers of a meter at the latest reading of the day before each of some instants
select e.at, r.import_wh, r.export_wh
from unnest(%(ats)s::timestamptz[]) as e(at)
left join lateral (
    select r.import_wh, r.export_wh from readings r
    where r.meter_id = %(meter_id)s and r.read_at <= e.at and r.read_at > e.at - interval '1 day'
      and r.export_wh is not null
    order by r.read_at desc limit 1
) r on true
order by e.at

-- add_case_rules: dated rules of disputes
insert into case_rules (id, effective_from, document, added_by, added_at)
values (%(id)s, %(effective_from)s, %(document)s, %(by)s, %(at)s)
on conflict do nothing returning id

-- case_rules_on: the utility's rules of disputes that hold on a day
select document from case_rules where effective_from <= %(day)s order by effective_from desc limit 1

-- case_rules_named: rules of disputes by their id
select document from case_rules where id = %(id)s

-- case_rules_listed: the utility's rules of disputes
select id, effective_from, added_by, added_at from case_rules order by effective_from

-- case_journals: the journals that a correction has booked
select id from journals where correction_id = %(correction_id)s order by id
