-- Supply rules by day, the exempt list, and holds that keep supply on.

-- The rules of the utility from a local day on: schemes, which category has which, holidays (billing.supply_policy). Never
-- changed; a newer one takes over from its day. Before the first, those that ship with the product hold.
create table supply_rules (
    from_day date primary key,
    document text not null,
    sha256 text not null,
    added_at timestamptz not null default clock_timestamp()
);
create trigger append_only before update or delete or truncate on supply_rules
    for each statement execute function refuse_change();

alter table accounts
    -- Why the account is on the exempt list, whatever its category; null for one that is not.
    add column exempt_reason text check (exempt_reason <> ''),
    -- When its credit ran out: the emergency days of its scheme count from here. Null while there is credit.
    add column exhausted_at timestamptz,
    drop constraint accounts_desired_check,
    add constraint accounts_desired_check check (desired in ('on', 'limited', 'off'));
-- Those that are exhausted have been since the alarm of their present arm.
update accounts a set exhausted_at = x.raised_at
from alarms x
where a.exhausted_raised and a.desired = 'off' and x.account_id = a.id and x.level = 'exhausted' and x.arm = a.exhausted_arm;

-- Exhausted accounts that are still supplied: looked at again whenever a window opens or emergency days end.
create index exhausted_and_on on accounts (shard, id) where exhausted_raised and desired <> 'off';
create index exempt_accounts on accounts (id) where exempt_reason is not null;

-- Who put an account on the exempt list or took it off, and why.
create table exemption_changes (
    id bigint generated always as identity primary key,
    account_id bigint not null references accounts,
    exempt boolean not null,
    reason text not null check (reason <> ''),
    changed_by text not null check (changed_by <> ''),
    changed_at timestamptz not null
);
create index exemptions_of_account on exemption_changes (account_id, id);
create trigger append_only before update or delete or truncate on exemption_changes
    for each statement execute function refuse_change();

-- A hold keeps an account's supply on, asked for by one person and approved by another. It is in force when it is approved,
-- not released, and its end, if it has one, is not reached.
create table supply_holds (
    id bigint generated always as identity primary key,
    account_id bigint not null references accounts,
    reason text not null check (reason <> ''),
    asked_by text not null check (asked_by <> ''),
    asked_at timestamptz not null,
    until_at timestamptz check (until_at > asked_at),
    approved_by text,
    approved_at timestamptz,
    released_by text,
    released_at timestamptz,
    check (lower(approved_by) <> lower(asked_by)),
    check (num_nulls(approved_by, approved_at) in (0, 2)),
    check (num_nulls(released_by, released_at) in (0, 2))
);
create unique index one_hold_an_account on supply_holds (account_id) where released_at is null;
create index holds_of_account on supply_holds (account_id, id);
create trigger never_deleted before delete or truncate on supply_holds
    for each statement execute function refuse_change();
