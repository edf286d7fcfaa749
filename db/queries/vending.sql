-- end_api_key: an interface key is taken back
update api_keys set active = false where key_id = %(key_id)s

-- lock_message: let one request at a time deal with a vendor's message id; a statement of its own, look later
select pg_advisory_xact_lock(hashtextextended(%(vendor_id)s::bigint::text || ':' || %(message_id)s, 0))

-- vend_by_message: what a vendor's message id was answered, or that it was used for something else or confirmed early
select v.id, v.state, v.request_sha256, v.status, v.answer, v.account_id, v.journal_id, v.amount_minor, v.funding,
       (select t.id from tokens t where t.vend_id = v.id) as token_id,
       exists (select 1 from vending_acts a where a.vendor_id = i.vendor_id and a.message_id = i.message_id) as is_act,
       exists (select 1 from early_confirmations e where e.vendor_id = i.vendor_id and e.message_id = i.message_id)
           as confirmed_early
from (select %(vendor_id)s::bigint as vendor_id, %(message_id)s::text as message_id) i
left join vends v on v.vendor_id = i.vendor_id and v.message_id = i.message_id

-- meters_named: the meters that a serial or DRN may mean, each with the account it is billed to
select m.id, m.serial, m.drn, m.make, m.model, a.id as account_id, a.anchor_at
from meters m
left join installations i on i.meter_id = m.id and i.role = 'billing' and i.to_at is null
left join accounts a on a.usage_point_id = i.usage_point_id
where m.serial = %(meter)s or m.drn = %(meter)s

-- start_sale: wait for a vendor's message id and the meter's account unless it is a trial, then what is known of both and
-- the rules and record to sell by; see the function
select s.id, s.state, s.request_sha256, s.status, s.answer, s.account_id, s.journal_id, s.amount_minor, s.funding,
       s.token_id, s.is_act, s.confirmed_early, s.new_id, s.meter_id, s.serial, s.drn, s.make, s.model,
       s.billed_account_id, s.anchor_at, s.float_minor, s.float_limit_minor, s.float_entries, s.category, s.document,
       s.absent_until, s.arrears_minor,
       (s.record).id as record_id, (s.record).version as record_version, (s.record).state as record_state,
       (s.record).engine as record_engine, (s.record).capabilities as record_capabilities, (s.record).ea as record_ea,
       (s.record).tct as record_tct, (s.record).dkga as record_dkga, (s.record).sgc as record_sgc,
       (s.record).key_type as record_key_type, (s.record).krn as record_krn,
       (s.record).tariff_index as record_tariff_index, (s.record).ken as record_ken,
       (s.record).base_year as record_base_year, (s.record).key_change_tokens as record_key_change_tokens,
       (s.record).day_price_minor as record_day_price_minor, (s.record).last_tid as record_last_tid,
       (s.record).written_at as record_written_at, (s.record).written_by as record_written_by,
       (s.record).reason as record_reason, (s.record).settled_by as record_settled_by,
       (s.record).valid_from as record_valid_from, (s.record).valid_to as record_valid_to
from start_sale(%(vendor_id)s::bigint, %(message_id)s::text, %(meter)s::text, %(day)s::date, %(locking)s::boolean) s

-- take_tid: remember a meter's latest token id of an era; it only rises, a null is refused by the table
insert into last_tids (meter_id, era, last_tid) values (%(meter_id)s, %(era)s, %(tid)s)
on conflict (meter_id, era) do update
set last_tid = case when last_tids.last_tid < excluded.last_tid then excluded.last_tid end

-- post_sale: what `post_change` writes of a recharge; with it the vend under its first journal, the token, its id as its
-- meter's last, which only rises, the request in the audit trail where it has an act, and what the vendor's float gives
-- where it has one, unless that brings it below its limit
with j as materialized (
    select nextval('journals_id_seq') as id, r.*
    from jsonb_to_recordset(%(journals)s::jsonb) as r (
        kind text, local_day date, period date, from_wh bigint, to_wh bigint, energy_wh bigint, assessed_wh bigint,
        edge_quality text, demand_w integer, lines jsonb, reason text, about_id bigint, correction_id bigint, legs jsonb)
), booked as (
    insert into journals (id, kind, account_id, local_day, period, from_wh, to_wh, energy_wh, assessed_wh, edge_quality,
                          demand_w, lines, reason, about_id, correction_id)
    overriding system value
    select id, kind, %(id)s, local_day, period, from_wh, to_wh, energy_wh, assessed_wh, edge_quality, demand_w, lines,
           reason, about_id, correction_id
    from j
), split as (
    insert into legs (journal_id, n, ledger, line, amount_minor)
    select j.id, g.n, g.ledger, g.line, g.amount_minor
    from j, jsonb_to_recordset(j.legs) as g (n smallint, ledger text, line text, amount_minor bigint)
), saved as (
    update accounts set posted_minor = %(posted_minor)s, charged_minor = %(charged_minor)s, through = %(through)s,
        before_wh = %(before_wh)s, part_start_wh = %(part_start_wh)s, closed_wh = %(closed_wh)s,
        closed_zones = %(closed_zones)s, demand_w = %(demand_w)s, anchor_at = %(anchor_at)s, anchor_wh = %(anchor_wh)s,
        anchor_zones = %(anchor_zones)s,
        low_arm = %(low_arm)s, low_raised = %(low_raised)s, exhausted_arm = %(exhausted_arm)s,
        exhausted_raised = %(exhausted_raised)s, exhausted_at = %(exhausted_at)s, desired = %(desired)s,
        threshold_minor = %(threshold_minor)s, version = version + 1
    where id = %(id)s
), fed as (
    insert into change_feed (shard, account_id, version) values (%(shard)s, %(id)s, %(version)s)
), told as (
    insert into notices (account_id, kind, channel, facts)
    select %(id)s, k.kind, 'app', k.facts
    from jsonb_to_recordset(%(notices)s::jsonb) as k (kind text, facts jsonb)
), sold as (
    insert into vends (id, vendor_id, message_id, request_sha256, account_id, amount_minor, journal_id, status, answer,
                       state, funding, tender, terminal, operator, reason)
    overriding system value
    values (%(vend_id)s, %(vendor_id)s, %(message_id)s, %(request_sha256)s, %(account_id)s, %(amount_minor)s,
            (select min(id) from j), %(status)s, %(answer)s, %(state)s, %(funding)s, %(tender)s, %(terminal)s,
            %(operator)s, %(reason)s)
), taken as (
    insert into last_tids (meter_id, era, last_tid) values (%(token_meter_id)s, %(token_era)s, %(token_tid)s)
    on conflict (meter_id, era) do update
    set last_tid = case when last_tids.last_tid < excluded.last_tid then excluded.last_tid end
), acted as (
    insert into audit_trail (actor, role, key_id, vendor_id, terminal, operator, act, subject, reference, outcome,
                             status, request_digest)
    select %(act_actor)s, %(act_role)s, %(act_key_id)s, %(act_vendor_id)s, %(act_terminal)s, %(act_operator)s,
           %(act_act)s, %(act_subject)s, %(act_reference)s, %(act_outcome)s, %(act_status)s, %(act_request_digest)s
    where %(act_act)s::text is not null
), moved as (
    update vendor_floats
    set balance_minor = balance_minor - %(amount_minor)s, entries = entries + 1,
        booked_at = greatest(booked_at, clock_timestamp())
    where vendor_id = %(float_vendor_id)s
      and (limit_minor is null or balance_minor - %(amount_minor)s >= -limit_minor)
    returning vendor_id, entries, balance_minor, limit_minor, booked_at
), entered as (
    insert into float_entries (vendor_id, n, journal_id, kind, amount_minor, balance_minor, limit_minor, terminal,
                               operator, tender, booked_at)
    select vendor_id, entries, (select min(id) from j), 'vend', -%(amount_minor)s, balance_minor, limit_minor,
           %(terminal)s::text, %(operator)s::text, %(tender)s::text, booked_at
    from moved
)
insert into tokens (vend_id, meter_id, record_id, engine, kind, era, tid, digits, subclass)
values (%(vend_id)s, %(token_meter_id)s, %(token_record_id)s, %(token_engine)s, 'credit', %(token_era)s, %(token_tid)s,
        %(token_digits)s, %(token_subclass)s)
returning array(select id from j), id, exists (select from moved)

-- add_vend: a refusal, or a vend that was taken back before it came: the answer to a message id for ever
insert into vends (vendor_id, message_id, request_sha256, account_id, amount_minor, journal_id, status, answer, state,
                   funding, tender, terminal, operator, reason)
values (%(vendor_id)s, %(message_id)s, %(request_sha256)s, %(account_id)s, %(amount_minor)s, %(journal_id)s,
        %(status)s, %(answer)s, %(state)s, %(funding)s, %(tender)s, %(terminal)s, %(operator)s, %(reason)s)
returning id, status, answer

-- add_token: a token, of a vend or asked for by somebody
insert into tokens (vend_id, meter_id, record_id, engine, kind, era, tid, digits, subclass, section, asked_by, reason)
values (%(vend_id)s, %(meter_id)s, %(record_id)s, %(engine)s, %(kind)s, %(era)s, %(tid)s, %(digits)s, %(subclass)s,
        %(section)s, %(asked_by)s, %(reason)s)
returning id

-- token_issued: whether digits were issued here for a meter
select exists (select 1 from tokens where digits = %(digits)s and meter_id = %(meter_id)s)

-- vend_delivered: whether the meter of a vend has accepted its token
select exists (select 1 from tokens t join token_deliveries d on d.token_id = t.id where t.vend_id = %(vend_id)s)

-- move_vend: a vend stands elsewhere from now on, if it stands where it was seen
with moved as (
    update vends set state = %(to_state)s where id = %(vend_id)s and state = %(from_state)s returning id
)
insert into vend_moves (vend_id, at, from_state, to_state, by, reason)
select id, %(at)s, %(from_state)s, %(to_state)s, %(by)s, %(reason)s from moved

-- reverse_vend_of: the vend of a journal that was taken back is taken back, too
with found as (
    select id, state from vends where journal_id = %(journal_id)s and state <> 'reversed' for no key update
), moved as (
    update vends v set state = 'reversed' from found f where v.id = f.id returning v.id, f.state
)
insert into vend_moves (vend_id, at, from_state, to_state, by, reason)
select id, %(at)s, state, 'reversed', %(by)s, %(reason)s from moved

-- add_early_confirmation: a vend is confirmed that is not known here yet
insert into early_confirmations (vendor_id, message_id, at, by) values (%(vendor_id)s, %(message_id)s, %(at)s, %(by)s)
on conflict do nothing

-- vend_moves: what became of a vend after its answer
select at, from_state, to_state, by, reason from vend_moves where vend_id = %(vend_id)s order by id

-- vend_by_id: the vendor and message id of a vend
select vendor_id, message_id from vends where id = %(vend_id)s

-- open_vends: vends that wait for somebody's word, the oldest first
select v.id, n.name as vendor, v.message_id, v.terminal, v.state, v.amount_minor, v.created_at, a.number as account,
       m.serial as meter, t.id as token_id, right(t.digits, 4) as token_tail, d.result as delivered,
       (select o.at from vend_moves o where o.vend_id = v.id order by o.id desc limit 1) as moved_at,
       (select o.reason from vend_moves o where o.vend_id = v.id order by o.id desc limit 1) as why
from vends v
join vendors n on n.id = v.vendor_id
join accounts a on a.id = v.account_id
join tokens t on t.vend_id = v.id
join meters m on m.id = t.meter_id
left join token_deliveries d on d.token_id = t.id
where v.state in ('held', 'unknown') and v.id > %(after)s
order by v.id limit %(most)s

-- last_answer: the latest vend of a vendor, or of one of its terminals
select id from vends
where vendor_id = %(vendor_id)s and (%(terminal)s::text is null or terminal = %(terminal)s)
order by id desc limit 1

-- last_sale_of_meter: the latest vend of a vendor for a meter
select v.id
from tokens t join vends v on v.id = t.vend_id
where t.meter_id = %(meter_id)s and v.vendor_id = %(vendor_id)s
order by t.id desc limit 1

-- system_vendor: a seller of the utility's own
select id, name from vendors where system = %(system)s

-- account_by_number: an account's id
select id from accounts where number = %(number)s

-- consumer_name: who holds an account
select c.name from accounts a join consumers c on c.id = a.consumer_id where a.id = %(account_id)s

-- last_recharge: the latest vend credited to an account
select l.amount_minor, j.booked_at
from journals j
join legs l on l.journal_id = j.id and l.ledger = 'prepaid'
where j.account_id = %(account_id)s and j.kind = 'vend'
order by j.id desc limit 1

-- batch_totals_after: counts of the batches after a given one, those that are settled apart from those that may still change
with fresh as (
    select * from batches where id > %(after_id)s
), edge as (
    -- No transaction lives as long as ten minutes: below the first younger row every id is committed or given up.
    select min(id) as young_id from fresh where committed_at >= now() - interval '10 minutes'
)
select (edge.young_id is null or f.id < edge.young_id) as settled, max(f.id) as last_id,
       sum(f.received)::bigint as received, sum(f.stored)::bigint as stored, sum(f.duplicate)::bigint as duplicate,
       sum(f.rejected)::bigint as rejected, sum(f.quarantined)::bigint as quarantined
from fresh f cross join edge
group by settled

-- store_gauges: rows that wait for somebody, and the age of the newest batch
select (select count(*) from quarantine where state = 'held') as quarantine_rows,
       (select count(*) from supply_orders where state in ('pending', 'held', 'sent')) as open_orders,
       (select extract(epoch from clock_timestamp() - committed_at)::float8 from batches order by id desc limit 1)
           as newest_batch_age_s

-- act_by_message: what a vendor's message id was answered where it was no vend's
select id, act, request_sha256, status, answer from vending_acts
where vendor_id = %(vendor_id)s and message_id = %(message_id)s

-- add_act: the answer to a message id of something else than a vend, for ever
insert into vending_acts (vendor_id, message_id, act, request_sha256, meter_id, status, answer, by, terminal, at)
values (%(vendor_id)s, %(message_id)s, %(act)s, %(request_sha256)s, %(meter_id)s, %(status)s, %(answer)s, %(by)s,
        %(terminal)s, %(at)s)
returning id

-- hand_out_key_change: somebody takes a key-change set to its meter
insert into key_change_handouts (record_id, at, by) values (%(record_id)s, %(at)s, %(by)s) on conflict do nothing

-- key_change_to_give: the set that brings a version, and whether somebody has taken it to the meter
select array_agg(t.digits order by t.section) as digits,
       exists (select 1 from key_change_handouts h where h.record_id = %(record_id)s) as handed_out
from tokens t where t.record_id = %(record_id)s and t.kind = 'key_change'

-- latest_key_revision: the highest revision of a supply group's vending keys
select max(krn) from vending_keys where sgc = %(sgc)s and dkga = %(dkga)s

-- add_fault_report: a fault that a consumer has told of
insert into fault_reports (meter_id, vendor_id, what, note, phone, reported_at)
values (%(meter_id)s, %(vendor_id)s, %(what)s, %(note)s, %(phone)s, %(reported_at)s)
returning number

-- open_fault_reports: faults that nobody has closed, the oldest first
select f.number, m.serial as meter, v.name as vendor, f.what, f.note, f.phone, f.reported_at
from fault_reports f join meters m on m.id = f.meter_id join vendors v on v.id = f.vendor_id
where f.closed_at is null and f.number > %(after)s
order by f.number limit %(most)s

-- close_fault_report: somebody has seen to a fault
update fault_reports set closed_at = %(at)s, closed_by = %(by)s, outcome = %(outcome)s
where number = %(number)s and closed_at is null
