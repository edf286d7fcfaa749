-- Who may call: roles of the utility and of vendors, secrets that signatures are checked with, certificates, limits, and
-- the audit trail.

alter table api_keys drop constraint api_keys_role_check;
alter table api_keys add constraint api_keys_role_check
    check (role in ('vendor', 'supervisor', 'engineer', 'cashier', 'auditor', 'consumer'));
alter table api_keys drop constraint api_keys_check;
alter table api_keys add constraint vendor_of_key
    check ((role in ('vendor', 'supervisor')) = (vendor_id is not null));
alter table api_keys
    -- The secret itself under the master key, which HMAC needs; null for a key from before, which cannot sign.
    add column sealed bytea,
    -- What the key was narrowed to; null: all that its role may.
    add column scopes text[] check (cardinality(scopes) > 0),
    -- The one terminal that the key is for; null: any of the vendor's.
    add column terminal text check (terminal ~ '^[A-Za-z0-9._:-]{1,64}$'),
    add column label text not null default '',
    add column issued_by text not null default '',
    -- The key whose place it takes, which ends by itself.
    add column replaces text unique references api_keys,
    add column ends_at timestamptz,
    -- SHA-256 of the client certificate (DER) that calls as this key.
    add column certificate_sha256 bytea check (length(certificate_sha256) = 32);
create unique index api_keys_by_certificate on api_keys (certificate_sha256)
    where certificate_sha256 is not null and active;
create index api_keys_by_vendor on api_keys (vendor_id) where vendor_id is not null;

-- Numbers used once by signed requests, for the minutes in which a copy would pass. What a crash of the server loses of
-- them is dated before it.
create unlogged table api_nonces (
    key_id text not null,
    nonce text not null,
    seen_at timestamptz not null,
    primary key (key_id, nonce)
);
create index api_nonces_by_age on api_nonces (seen_at);

-- Limits of a vendor (terminal '') and of its terminals; the latest row of each is in force, and a null is no limit.
create table api_limits (
    id bigint generated always as identity primary key,
    vendor_id bigint not null references vendors,
    terminal text not null default '' check (terminal ~ '^[A-Za-z0-9._:-]{0,64}$'),
    requests_per_s integer check (requests_per_s > 0),
    burst integer check (burst > 0),
    vends_per_day bigint check (vends_per_day >= 0),
    -- Minor units.
    amount_per_day bigint check (amount_per_day >= 0),
    set_at timestamptz not null default clock_timestamp(),
    set_by text not null,
    reason text not null,
    check ((requests_per_s is null) = (burst is null))
);
create index api_limits_latest on api_limits (vendor_id, terminal, id);
create trigger append_only before update or delete or truncate on api_limits
    for each statement execute function refuse_change();
revoke update, delete on api_limits from prepaid_app;

-- What was sold on a local day under a limit of the day, and the limit as it was then.
create table vend_days (
    vendor_id bigint not null references vendors,
    terminal text not null,
    day date not null,
    vends bigint not null,
    amount_minor bigint not null,
    vends_max bigint,
    amount_max bigint,
    primary key (vendor_id, terminal, day)
) with (fillfactor = 70);

-- Counts the changes of keys, vendors and limits: a process that has seen this number knows everything as it is.
create table api_access_version (
    one boolean primary key default true check (one),
    version bigint not null default 1
) with (fillfactor = 50);
insert into api_access_version default values;
create function count_access_change() returns trigger language plpgsql as $$
begin
    update api_access_version set version = version + 1;
    return null;
end $$;
create trigger count_change after insert or update or delete on api_keys
    for each statement execute function count_access_change();
create trigger count_change after update or delete on vendors
    for each statement execute function count_access_change();
create trigger count_change after insert on api_limits
    for each statement execute function count_access_change();

-- Who did what, for ever.
create table audit_trail (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    -- A vendor's name, or who it was at the command line; empty where only the key is known.
    actor text not null default '',
    role text not null,
    key_id text,
    vendor_id bigint,
    terminal text,
    operator text,
    act text not null,
    -- What it was done to: a meter, an account, a vendor, a key.
    subject text not null default '',
    -- Its own number: a message id, the reference of a deposit; at the command line the reason that was given.
    reference text not null default '',
    outcome text not null,
    status smallint,
    request_digest bytea
);
create index audit_trail_by_key on audit_trail (key_id, id) where key_id is not null;
create index audit_trail_by_subject on audit_trail (subject, id) where subject <> '';
create index audit_trail_by_time on audit_trail using brin (at);
create trigger append_only before update or delete or truncate on audit_trail
    for each statement execute function refuse_change();
revoke update, delete on audit_trail from prepaid_app;
