-- Prepayment rules by day, what is worked off over time, and who may reverse what.

-- The rules of the utility from a local day on: one document for all categories (billing.prepayment). Never changed; a
-- newer one takes over from its day. Before the first, those that ship with the product hold.
create table prepayment_rules (
    from_day date primary key,
    document text not null,
    sha256 text not null,
    added_at timestamptz not null default clock_timestamp()
);
create trigger append_only before update or delete or truncate on prepayment_rules
    for each statement execute function refuse_change();

-- The emergency credit that the account was granted itself, kept from the first time that its category's was applied:
-- emergency_credit_minor is the larger of the two.
alter table accounts add column own_credit_minor bigint check (own_credit_minor >= 0);

-- Sums that are worked off over time; accounts without them have no row. Changed only under the account's lock, in the
-- transaction of the journal that moves them, so that for each account
--   sum of the legs on `arrears`                            = - sum of outstanding_minor (a claim stands below zero)
--   sum of the legs on `security_deposits`, `absence_deposits` = + sum of outstanding_minor
-- (db.prepayment.check_dues). A row with instalments is paid back in so many parts, the next one on `next_on`.
create table account_dues (
    id bigint generated always as identity primary key,
    account_id bigint not null references accounts,
    ledger text not null check (ledger in ('arrears', 'security_deposits', 'absence_deposits')),
    opened_on date not null,
    total_minor bigint not null check (total_minor > 0),
    outstanding_minor bigint not null check (outstanding_minor between 0 and total_minor),
    instalments smallint check (instalments between 1 and 36),
    next_on date,
    note text not null,
    check (instalments is null or ledger = 'security_deposits'),
    check (next_on is null or instalments is not null)
) with (fillfactor = 70);
create index dues_of_account on account_dues (account_id, ledger);
create index dues_with_instalments on account_dues (next_on, account_id) where next_on is not null;

-- Each instalment is paid once.
create table due_instalments (
    due_id bigint not null references account_dues,
    n smallint not null check (n between 1 and 36),
    due_on date not null,
    amount_minor bigint not null check (amount_minor >= 0),
    journal_id bigint unique references journals,
    primary key (due_id, n),
    check ((amount_minor = 0) = (journal_id is null))
);
create trigger append_only before update or delete or truncate on due_instalments
    for each statement execute function refuse_change();

-- Which recovery of arrears a journal brought with it, a recharge or a write-off: who reverses the one undoes the other.
create table arrears_recoveries (
    cause_id bigint primary key references journals,
    journal_id bigint not null unique references journals
);
create trigger append_only before update or delete or truncate on arrears_recoveries
    for each statement execute function refuse_change();

-- A money command under a reference of the office gives the stored answer for ever, like a vend under its message id.
create table money_commands (
    reference text primary key check (reference ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$'),
    request_sha256 bytea not null,
    answer jsonb not null,
    created_at timestamptz not null default clock_timestamp()
);
create trigger append_only before update or delete or truncate on money_commands
    for each statement execute function refuse_change();

-- Of the journals about another one, each kind once: one reversal, one recovery, one booking taken back.
create unique index one_journal_about on journals (about_id, kind)
    where about_id is not null and kind not in ('day', 'late_usage', 'overhaul');
-- What the audit of dues reads, out of all legs.
create index legs_of_dues on legs (journal_id) where ledger in ('arrears', 'security_deposits', 'absence_deposits');
-- Who is away.
create index absent_accounts on accounts (absent_until, id) where absent_until is not null;
