-- Recharge coupons, the stations that sell them without a line, and who guesses at PINs.

-- The ledger is looked through once, for the index that its liability is read by.
set local statement_timeout = 0;
create index legs_of_coupons on legs (journal_id) include (amount_minor) where ledger = 'coupons';

-- Coupons that were made in one go.
create table coupon_batches (
    id integer generated always as identity primary key check (id <= 99999),
    carrier text not null check (carrier in ('printed', 'electronic')),
    amount_minor bigint not null check (amount_minor > 0),
    coupons integer not null check (coupons between 1 and 999999),
    -- The order's own number: the same order twice is one batch.
    reference text not null unique,
    issued_at timestamptz(3) not null,
    issued_by text not null
);

-- Coupons that a vendor has paid for, each request once.
create table coupon_sales (
    id bigint generated always as identity primary key,
    vendor_id bigint not null references vendors,
    message_id text not null,
    request_sha256 bytea not null,
    amount_minor bigint not null check (amount_minor > 0),
    journal_id bigint not null unique references journals,
    sold_at timestamptz(3) not null,
    sold_by text not null,
    answer jsonb not null,
    unique (vendor_id, message_id)
);

-- What a station may sell without a line. `held_minor` was taken of its vendor's money when the licence was given, and
-- when its log showed that more was sold; `drawn_minor` is what its coupons have come to. The difference goes back to the
-- vendor when the licence is closed.
create table coupon_licences (
    id integer generated always as identity primary key,
    vendor_id bigint not null references vendors,
    station text not null,
    station_key bytea not null check (length(station_key) = 32),
    valid_from timestamptz(3) not null,
    valid_until timestamptz(3) not null check (valid_until > valid_from),
    limit_minor bigint not null check (limit_minor > 0),
    held_minor bigint not null,
    drawn_minor bigint not null default 0,
    ranges jsonb not null,
    signed jsonb,
    state text not null default 'in_force' check (state in ('in_force', 'revoked', 'closed')),
    given_at timestamptz(3) not null,
    given_by text not null,
    revoked_at timestamptz(3),
    -- How far the station's log is known.
    log_seq integer not null default 0 check (log_seq >= 0),
    log_digest text not null default '',
    log_latest timestamptz(3),
    check (drawn_minor between 0 and held_minor),
    check (state <> 'revoked' or revoked_at is not null)
);
create index coupon_licences_revoked on coupon_licences (id) where revoked_at is not null;

create table coupons (
    id bigint generated always as identity primary key,
    serial text not null unique check (serial ~ '^[0-9]{12}$'),
    batch_id integer not null references coupon_batches,
    amount_minor bigint not null check (amount_minor > 0),
    -- HMAC of the PIN under a key that no database holds; the PIN itself is on the coupon alone.
    pin_digest bytea not null unique check (length(pin_digest) = 32),
    state text not null default 'issued' check (state in ('issued', 'reserved', 'sold', 'redeemed', 'void')),
    licence_id integer references coupon_licences,
    sale_id bigint references coupon_sales,
    -- Local days. `sold_on` is when the buyer got it; `valid_until` moves when it is revalidated.
    sold_on date,
    valid_until date,
    revalidations smallint not null default 0,
    -- Redeemed: by whom as `vending.coupons.Redeemer` names them, how, for which meter.
    redeemed_by text,
    channel text check (channel in ('station', 'web', 'sms', 'keypad')),
    meter_id integer references meters,
    vend_id bigint unique references vends,
    redeemed_at timestamptz(3),
    -- What a void one gave back to its vendor.
    void_journal_id bigint unique references journals,
    check ((sold_on is null) = (valid_until is null)),
    check (state <> 'sold' or sold_on is not null),
    check (state <> 'reserved' or licence_id is not null),
    check ((vend_id is not null) = (redeemed_at is not null)),
    check (state <> 'redeemed' or vend_id is not null)
) with (fillfactor = 80);
create index coupons_by_month on coupons (sold_on) where sold_on is not null;
create index coupons_by_sale on coupons (sale_id) where sale_id is not null;
create index coupons_by_licence on coupons (licence_id) where licence_id is not null;
create index coupons_by_batch on coupons (batch_id, serial);

-- What was done to coupons by hand, for ever: who, why, and what it changed.
create table coupon_events (
    id bigint generated always as identity primary key,
    at timestamptz(3) not null,
    event text not null check (event in ('issued', 'sold', 'revalidated', 'voided', 'licensed', 'revoked', 'closed',
                                         'uploaded')),
    batch_id integer references coupon_batches,
    coupon_id bigint references coupons,
    sale_id bigint references coupon_sales,
    licence_id integer references coupon_licences,
    by text not null,
    reason text,
    detail jsonb not null default '{}'
);
create index coupon_events_of_coupon on coupon_events (coupon_id) where coupon_id is not null;
create trigger append_only before update or delete or truncate on coupon_events
    for each statement execute function refuse_change();

-- The log of a station's sales as it was uploaded.
create table coupon_log (
    licence_id integer not null references coupon_licences,
    seq integer not null check (seq > 0),
    serial text not null,
    amount_minor bigint not null,
    sold_at timestamptz(3) not null,
    digest text not null,
    signature text not null,
    findings text[] not null,
    uploaded_at timestamptz(3) not null,
    primary key (licence_id, seq)
);
create trigger append_only before update or delete or truncate on coupon_log
    for each statement execute function refuse_change();
-- Uploads that were refused: a hole, an entry that was known otherwise. Kept, for a station at odds with its own past.
create table coupon_log_refusals (
    id bigint generated always as identity primary key,
    licence_id integer not null references coupon_licences,
    at timestamptz(3) not null,
    code text not null,
    message text not null
);
revoke update, delete on coupon_events, coupon_log, coupon_log_refusals from prepaid_app;

-- Wrong PINs of each guesser, and of everybody.
create table coupon_tries (
    guesser text primary key,
    wrong integer not null check (wrong > 0),
    last_at timestamptz(3) not null
);

-- PINs that were typed at meters, until they are redeemed or refused: then the digits go.
create table coupon_entries (
    id bigint generated always as identity primary key,
    meter_id integer not null references meters,
    -- By the meter's clock.
    at timestamptz(3) not null,
    pin text,
    received_at timestamptz not null default clock_timestamp(),
    outcome text,
    settled_at timestamptz,
    unique (meter_id, at),
    check ((pin is null) = (outcome is not null))
);
create index coupon_entries_waiting on coupon_entries (id) where outcome is null;
