-- Free and subsidised recharges above what one person may give out alone: proposed by one, decided by another.

-- As asked for; its vend, if it comes to be, is under the same message id.
create table issue_proposals (
    id bigint generated always as identity primary key,
    vendor_id bigint not null references vendors,
    message_id text not null,
    request_sha256 bytea not null,
    account_id bigint not null references accounts,
    meter text not null,
    funding text not null check (funding in ('free_issue', 'subsidy')),
    amount_minor bigint check (amount_minor > 0),
    energy_wh bigint check (energy_wh > 0),
    release text not null check (release in ('at_once', 'on_confirm')),
    reason text not null,
    -- What it came to when it was proposed.
    quoted_minor bigint not null,
    proposed_by text not null references api_keys (key_id),
    proposed_at timestamptz(3) not null,
    unique (vendor_id, message_id),
    check (num_nulls(amount_minor, energy_wh) = 1)
);
create trigger append_only before update or delete or truncate on issue_proposals
    for each statement execute function refuse_change();
revoke update, delete on issue_proposals from prepaid_app;

create table issue_decisions (
    proposal_id bigint primary key references issue_proposals,
    approved boolean not null,
    decided_by text not null references api_keys (key_id),
    decided_at timestamptz(3) not null,
    reason text not null
);
create trigger append_only before update or delete or truncate on issue_decisions
    for each statement execute function refuse_change();
revoke update, delete on issue_decisions from prepaid_app;
