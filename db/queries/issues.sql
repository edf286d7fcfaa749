-- lock_account_of_issue: let one issue at a time count what an account was given; the lock that a sale takes, too
select id from accounts where id = %(account_id)s for no key update

-- issued_alone: what single persons have issued to an account within the last day
select coalesce(sum(v.amount_minor), 0)::bigint
from journals j join vends v on v.journal_id = j.id
where j.account_id = %(account_id)s and j.kind = 'vend' and j.booked_at > clock_timestamp() - interval '1 day'
  and v.funding in ('free_issue', 'subsidy') and v.state <> 'reversed'
  and not exists (select 1 from issue_proposals p where p.vendor_id = v.vendor_id and p.message_id = v.message_id)

-- add_issue_proposal: an issue that waits for a second person
insert into issue_proposals (vendor_id, message_id, request_sha256, account_id, meter, funding, amount_minor, energy_wh,
                             release, reason, quoted_minor, proposed_by, proposed_at)
values (%(vendor_id)s, %(message_id)s, %(request_sha256)s, %(account_id)s, %(meter)s, %(funding)s, %(amount_minor)s,
        %(energy_wh)s, %(release)s, %(reason)s, %(quoted_minor)s, %(proposed_by)s, %(proposed_at)s)

-- issue_proposal: an issue that was proposed, by its number or message id, and what became of it
select p.id, p.vendor_id, p.message_id, p.request_sha256, p.meter, a.number as account, p.funding, p.amount_minor,
       p.energy_wh, p.release, p.reason, p.quoted_minor, p.proposed_by, p.proposed_at,
       d.approved, d.decided_by, d.decided_at, d.reason as decision_reason, v.id as vend_id, v.status as vend_status
from issue_proposals p
join accounts a on a.id = p.account_id
left join issue_decisions d on d.proposal_id = p.id
left join vends v on v.vendor_id = p.vendor_id and v.message_id = p.message_id
where p.id = %(id)s or (p.vendor_id = %(vendor_id)s and p.message_id = %(message_id)s)

-- open_issue_proposals: numbers of issues that wait for a second person, the oldest first
select p.id from issue_proposals p
where p.id > %(after)s and not exists (select 1 from issue_decisions d where d.proposal_id = p.id)
order by p.id limit %(most)s

-- add_issue_decision: what a second person said of a proposed issue
insert into issue_decisions (proposal_id, approved, decided_by, decided_at, reason)
values (%(proposal_id)s, %(approved)s, %(decided_by)s, %(decided_at)s, %(reason)s)

-- holder_of_key: the first key of the line that a key was rotated from, and the name that is on it
with recursive line as (
    select k.key_id, k.replaces, k.label from api_keys k where k.key_id = %(key_id)s
    union all
    select k.key_id, k.replaces, l.label from line l join api_keys k on k.key_id = l.replaces
)
select key_id, lower(btrim(label)) from line where replaces is null
