-- Meters that are swapped, and cases: disputes of readings and bills, meters that were wrong, burnt or stolen.

-- An account's curve goes through all the billing meters that stood at its usage point.
create index former_billing_meters on installations (usage_point_id) where role = 'billing' and to_at is not null;

-- What was read at both meters when one took over from the other.
create table meter_swaps (
    id bigint generated always as identity primary key,
    account_id bigint not null references accounts,
    old_meter_id integer not null references meters,
    new_meter_id integer not null references meters check (new_meter_id <> old_meter_id),
    at timestamptz(3) not null,
    -- Null where the old register could not be read: burnt or stolen; then its last reading stands.
    closing_wh bigint check (closing_wh >= 0),
    opening_wh bigint not null check (opening_wh >= 0),
    -- Energy to date of the account at that instant.
    energy_wh bigint not null check (energy_wh >= 0),
    reason text not null,
    swapped_by text not null,
    entered_at timestamptz(3) not null,
    unique (old_meter_id, at)
);
create index swaps_of_account on meter_swaps (account_id, at);
create trigger append_only before update or delete or truncate on meter_swaps
    for each statement execute function refuse_change();
revoke update, delete on meter_swaps from prepaid_app;

create table cases (
    id bigint generated always as identity primary key,
    account_id bigint not null references accounts,
    kind text not null check (kind in ('inaccurate', 'defective', 'burnt', 'stolen', 'seasonal', 'disputed_bill', 'net_meter')),
    area text not null check (area in ('urban', 'rural')),
    -- The meter complained of, and its accuracy class as its plate has it.
    meter_id integer not null references meters,
    accuracy_class text not null,
    complaint text not null,
    opened_by text not null,
    opened_at timestamptz(3) not null,
    -- The dated rules that held when it was opened.
    rules text not null,
    -- What the trail comes to: where the case stands, and the earliest instant that a clock of it runs out.
    state text not null,
    due_at timestamptz(3)
);
create index cases_due on cases (due_at) where state <> 'closed';
create index cases_of_account on cases (account_id);
revoke delete on cases from prepaid_app;

-- The trail: every step once, in order, never changed.
create table case_steps (
    case_id bigint not null references cases,
    n integer not null check (n > 0),
    step text not null,
    at timestamptz(3) not null,
    entered_at timestamptz(3) not null default clock_timestamp(),
    by text not null,
    note text not null,
    facts jsonb not null,
    primary key (case_id, n)
);
create trigger append_only before update or delete or truncate on case_steps
    for each statement execute function refuse_change();
revoke update, delete on case_steps from prepaid_app;

create table case_documents (
    id bigint generated always as identity primary key,
    case_id bigint not null references cases,
    name text not null,
    media_type text not null,
    sha256 bytea not null check (octet_length(sha256) = 32),
    -- A scan of some pages; a film of a meter belongs elsewhere.
    content bytea not null check (octet_length(content) between 1 and 5000000),
    added_by text not null,
    added_at timestamptz(3) not null,
    unique (case_id, sha256)
);
create trigger append_only before update or delete or truncate on case_documents
    for each statement execute function refuse_change();
revoke update, delete on case_documents from prepaid_app;

-- Registers of check meters, as read out on the spot. Never charged, and so never among the readings.
create table check_readings (
    meter_id integer not null references meters,
    read_at timestamptz(3) not null,
    import_wh bigint not null check (import_wh >= 0),
    export_wh bigint check (export_wh >= 0),
    case_id bigint not null references cases,
    primary key (meter_id, read_at)
);
create trigger append_only before update or delete or truncate on check_readings
    for each statement execute function refuse_change();
revoke update, delete on check_readings from prepaid_app;

-- The utility's own dated rules of disputes; before the first of them those that ship with the product hold.
create table case_rules (
    id text primary key,
    effective_from date not null unique,
    document text not null,
    added_by text not null,
    added_at timestamptz(3) not null
);
create trigger append_only before update or delete or truncate on case_rules
    for each statement execute function refuse_change();
revoke update, delete on case_rules from prepaid_app;
