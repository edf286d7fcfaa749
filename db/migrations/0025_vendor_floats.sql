-- What vendors have with the utility: deposits less recharges sold, within a credit limit, in batches.

-- Every recharge that was sold becomes an entry: ten million take minutes, beyond the sessions' usual time-out.
set local statement_timeout = 0;

-- One narrow row per vendor, which its sales lock as their last statement. Sellers of the utility's own have none.
create table vendor_floats (
    vendor_id bigint primary key references vendors,
    -- The sum of its entries: above zero the vendor's money with the utility, below zero what it owes.
    balance_minor bigint not null default 0,
    -- How far below zero a sale may bring it; null: no limit.
    limit_minor bigint check (limit_minor >= 0),
    entries bigint not null default 0,
    booked_at timestamptz
) with (fillfactor = 50);

-- What moved a float, for ever; n counts a vendor's entries without a gap, in the order of booked_at.
create table float_entries (
    -- Of vendor_floats: the one statement that enters takes it from there, and a check would be one more lock of that row.
    vendor_id bigint not null,
    n bigint not null check (n > 0),
    journal_id bigint not null unique references journals,
    kind text not null check (kind in ('vend', 'reversal', 'vendor_deposit', 'coupon_sale')),
    amount_minor bigint not null,
    -- After this entry, and the limit as it was then.
    balance_minor bigint not null,
    limit_minor bigint,
    terminal text,
    operator text,
    tender text,
    booked_at timestamptz not null,
    primary key (vendor_id, n)
);
create index float_entries_by_time on float_entries (vendor_id, booked_at, n);

-- What the auditor holds against the entries.
create index legs_of_vendors on legs (journal_id) where ledger = 'vendor_clearing';

insert into vendor_floats (vendor_id) select id from vendors where system is null;
insert into float_entries (vendor_id, n, journal_id, kind, amount_minor, balance_minor, terminal, operator, tender,
                           booked_at)
select s.vendor_id, row_number() over booked, s.id, s.kind, l.amount_minor, sum(l.amount_minor) over booked, s.terminal,
       s.operator, s.tender, max(s.booked_at) over booked
from (
    select v.vendor_id, v.terminal, v.operator, v.tender, j.id, j.kind, j.booked_at
    from vends v join journals j on j.id = v.journal_id
    union all
    select v.vendor_id, v.terminal, v.operator, v.tender, j.id, j.kind, j.booked_at
    from vends v join journals j on j.about_id = v.journal_id and j.kind = 'reversal'
) s
join vendor_floats f on f.vendor_id = s.vendor_id
join legs l on l.journal_id = s.id and l.ledger = 'vendor_clearing'
window booked as (partition by s.vendor_id order by s.id);
update vendor_floats f
set balance_minor = e.balance_minor, entries = e.n, booked_at = e.booked_at
from (select distinct on (vendor_id) vendor_id, n, balance_minor, booked_at from float_entries order by vendor_id, n desc) e
where e.vendor_id = f.vendor_id;

create trigger append_only before update or delete or truncate on float_entries
    for each statement execute function refuse_change();
revoke update, delete on float_entries from prepaid_app;
revoke delete on vendor_floats from prepaid_app;

-- Who set a vendor's limit, stopped it or let it sell again, and why.
create table vendor_changes (
    id bigint generated always as identity primary key,
    vendor_id bigint not null references vendors,
    at timestamptz not null default clock_timestamp(),
    act text not null check (act in ('limit', 'stop', 'resume')),
    -- limit: null is no limit.
    limit_minor bigint check (limit_minor >= 0),
    by text not null,
    reason text not null,
    check (act = 'limit' or limit_minor is null)
);
create index vendor_changes_of on vendor_changes (vendor_id, id);
create trigger append_only before update or delete or truncate on vendor_changes
    for each statement execute function refuse_change();
revoke update, delete on vendor_changes from prepaid_app;

-- Money that a vendor paid in: once under its reference, whoever asks.
create table vendor_deposits (
    number bigint generated always as identity primary key,
    reference text not null unique check (reference ~ '^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$'),
    vendor_id bigint not null references vendors,
    amount_minor bigint not null check (amount_minor > 0),
    channel text not null check (channel in ('bank', 'cash', 'cheque')),
    journal_id bigint not null unique references journals,
    by text not null,
    note text not null,
    at timestamptz not null
);
create index vendor_deposits_of on vendor_deposits (vendor_id, number);
create trigger append_only before update or delete or truncate on vendor_deposits
    for each statement execute function refuse_change();
revoke update, delete on vendor_deposits from prepaid_app;

-- Deposits that were taken back: a cheque that was not honoured, an amount that was mistyped.
create table deposit_returns (
    number bigint primary key references vendor_deposits,
    journal_id bigint not null unique references journals,
    by text not null,
    reason text not null,
    at timestamptz not null
);
create trigger append_only before update or delete or truncate on deposit_returns
    for each statement execute function refuse_change();
revoke update, delete on deposit_returns from prepaid_app;

-- A batch is a run of a vendor's entries: `sales` those of one terminal, `shift` those of one operator, `bank` all. The
-- next one begins where the one before it ended, so that each sale is in one of each kind.
create table vendor_batches (
    vendor_id bigint not null references vendor_floats,
    kind text not null check (kind in ('sales', 'shift', 'bank')),
    -- The terminal or the operator; empty where a sale named none, and for the bank.
    scope text not null check (kind <> 'bank' or scope = ''),
    number integer not null check (number > 0),
    first_n bigint not null,
    -- Null while it is open; an empty batch ends before it began.
    last_n bigint check (last_n >= first_n - 1),
    started_at timestamptz,
    started_by text,
    ended_at timestamptz,
    ended_by text,
    primary key (vendor_id, kind, scope, number),
    check (num_nulls(started_at, started_by) in (0, 2)),
    check (num_nulls(last_n, ended_at, ended_by) in (0, 3))
);
create unique index one_open_batch on vendor_batches (vendor_id, kind, scope) where last_n is null;

-- A batch that has ended stays as it is.
create function keep_batch() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or old.last_n is not null or (new.vendor_id, new.kind, new.scope, new.number, new.first_n)
                                                  <> (old.vendor_id, old.kind, old.scope, old.number, old.first_n) then
        raise exception 'batch % of %: % refused', old.number, old.kind, tg_op using errcode = 'insufficient_privilege';
    end if;
    return new;
end $$;
create trigger keep_batch before update or delete on vendor_batches for each row execute function keep_batch();
revoke delete on vendor_batches from prepaid_app;
