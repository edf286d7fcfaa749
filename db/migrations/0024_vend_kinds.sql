-- Vends of every kind and their states, and what else is asked of the vending desk once and answered for ever.

-- Vends and journals are looked through once: ten million take minutes, beyond the sessions' usual time-out.
set local statement_timeout = 0;

-- Sellers of the utility's own, under whose message ids coupons are redeemed, online payments credited, and free and
-- subsidised recharges issued. Their names make way for a vendor that has the name already.
alter table vendors add column system text unique check (system in ('coupons', 'online', 'utility'));
insert into vendors (name, system)
select case when exists (select 1 from vendors v where v.name = s.name) then s.name || ' (system)' else s.name end, s.system
from (values ('Coupons', 'coupons'), ('Online recharge', 'online'), ('Utility', 'utility')) s (name, system);

-- refused: the answer is no. released: the token was given out with the answer. held: it waits for the station's word.
-- confirmed: it stays. unknown: the station took it back after it was given out, the utility has to decide. reversed:
-- taken back, or (without a journal) taken back before it came.
alter table vends
    add column state text not null default 'released'
        check (state in ('refused', 'released', 'held', 'confirmed', 'unknown', 'reversed')),
    -- Whose money it is: `vending.vends.Funding`.
    add column funding text not null default 'vendor'
        check (funding in ('vendor', 'coupon', 'online', 'free_issue', 'subsidy')),
    add column tender text check (tender in ('cash', 'card', 'upi', 'wallet', 'cheque')),
    add column terminal text,
    add column operator text,
    -- Who issued it and why, where it is nobody's purchase.
    add column reason text;
update vends set state = 'refused' where journal_id is null;
update vends v set state = 'reversed'
where exists (select from journals j where j.about_id = v.journal_id and j.kind = 'reversal');
alter table vends
    alter column state drop default,
    alter column funding drop default,
    -- Taken back before it came: whatever comes under the message id is that vend.
    alter column request_sha256 drop not null,
    add constraint vends_request check (request_sha256 is not null or state = 'reversed'),
    add constraint vends_state check (case when journal_id is null then state in ('refused', 'reversed')
                                           else state <> 'refused' end),
    add constraint vends_reason check (funding not in ('free_issue', 'subsidy') or reason is not null or state = 'refused');
-- What a terminal, or a vendor, was answered last.
create index vends_by_terminal on vends (vendor_id, terminal, id);
create index vends_by_vendor on vends (vendor_id, id);
-- What waits for somebody's word.
create index vends_open on vends (id) where state in ('held', 'unknown');

-- An answer is never rewritten; only a vend's state moves on.
create function keep_vend() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or to_jsonb(new) - 'state' <> to_jsonb(old) - 'state' then
        raise exception 'vend %: % refused', old.id, tg_op using errcode = 'insufficient_privilege';
    end if;
    return new;
end $$;
create trigger keep_vend before update or delete on vends for each row execute function keep_vend();
revoke delete on vends from prepaid_app;

-- Every move of a vend's state after its answer, for ever.
create table vend_moves (
    id bigint generated always as identity primary key,
    vend_id bigint not null references vends,
    at timestamptz not null,
    from_state text not null,
    to_state text not null,
    by text not null,
    reason text
);
create index vend_moves_by_vend on vend_moves (vend_id);
create trigger append_only before update or delete or truncate on vend_moves
    for each statement execute function refuse_change();
revoke update, delete on vend_moves from prepaid_app;

-- Vends that a station confirmed before they were known here.
create table early_confirmations (
    vendor_id bigint not null references vendors,
    message_id text not null,
    at timestamptz not null,
    by text not null,
    primary key (vendor_id, message_id)
);

-- What is asked once under a message id besides vends: key changes, engineering tokens, fault reports. One message id
-- is one of them or a vend, never two.
create table vending_acts (
    id bigint generated always as identity primary key,
    vendor_id bigint not null references vendors,
    message_id text not null,
    act text not null check (act in ('key_change', 'engineering', 'fault_report')),
    request_sha256 bytea not null,
    meter_id integer references meters,
    status smallint not null,
    answer jsonb not null,
    by text not null,
    terminal text,
    at timestamptz not null,
    unique (vendor_id, message_id)
);
create trigger append_only before update or delete or truncate on vending_acts
    for each statement execute function refuse_change();
revoke update, delete on vending_acts from prepaid_app;

-- Key-change sets that were given to somebody who takes them to the meter.
create table key_change_handouts (
    record_id bigint primary key references meter_records,
    at timestamptz not null,
    by text not null
);

-- Faults that consumers tell a station of.
create table fault_reports (
    number bigint generated always as identity primary key,
    meter_id integer not null references meters,
    vendor_id bigint not null references vendors,
    what text not null,
    note text not null,
    phone text,
    reported_at timestamptz not null,
    closed_at timestamptz,
    closed_by text,
    outcome text,
    check (num_nulls(closed_at, closed_by, outcome) in (0, 3))
);
create index fault_reports_open on fault_reports (number) where closed_at is null;

-- Deposits of vendors and sales of coupons are about no account.
alter table journals drop constraint journals_kind_check, drop constraint journals_check;
alter table journals add constraint journals_kind_check check (kind in (
    'opening', 'vend', 'refund', 'reversal', 'adjustment', 'day', 'late_usage', 'overhaul', 'usage_batch', 'subsidy',
    'arrears_opening', 'arrears_recovery', 'interest', 'security_opening', 'security', 'absence_deposit', 'write_off',
    'vendor_deposit', 'coupon_sale'));
alter table journals add constraint journals_check
    check ((kind in ('usage_batch', 'vendor_deposit', 'coupon_sale')) = (account_id is null));
