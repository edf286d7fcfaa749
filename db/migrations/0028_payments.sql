-- Recharges that are paid online: orders, the money received for them, and what gateways said.

-- An order to be paid. Its vend is one of the system vendor `online` under `order_id`, so that it is credited once.
create table payments (
    id bigint generated always as identity primary key,
    order_id text not null unique,
    account_id bigint not null references accounts,
    amount_minor bigint not null check (amount_minor > 0),
    currency text not null,
    language text not null check (language in ('en', 'hi', 'pa')),
    gateway text not null,
    state text not null
        check (state in ('created', 'open', 'failed', 'expired', 'credited', 'refund_due', 'refunded')),
    -- The gateway's own id and its page, known once it has answered.
    gateway_order text,
    pay_link text,
    -- Under the order's id, whether it was sold or refused.
    vend_id bigint references vends,
    -- Why what was paid for was not sold, where no vend could be tried.
    refusal text,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    -- When the gateway is asked again; `asks` counts since the last change.
    next_ask_at timestamptz,
    asks integer not null default 0,
    unique (gateway, gateway_order),
    check ((gateway_order is null) = (pay_link is null))
);
create index payments_by_account on payments (account_id, created_at);
create index payments_to_ask on payments (next_ask_at) where next_ask_at is not null;
create trigger keep_payment before delete or truncate on payments for each statement execute function refuse_change();
revoke delete on payments from prepaid_app;

-- Money that a gateway received; `payment_id` is null while only its refund is known. What was credited once stays so
-- marked when it has gone back.
create table payment_captures (
    id bigint generated always as identity primary key,
    gateway text not null,
    capture text not null,
    payment_id bigint references payments,
    amount_minor bigint not null,
    currency text not null,
    state text not null check (state in ('credited', 'refund_due', 'refunded')),
    was_credited boolean not null,
    why text check (why in ('amount_mismatch', 'paid_twice', 'vend_refused', 'asked', 'at_gateway')),
    -- Who asked for it to be sent back and the reason, where somebody did.
    asked_by text,
    reason text,
    seen_at timestamptz not null,
    refunded_at timestamptz,
    unique (gateway, capture),
    check ((state = 'refunded') = (refunded_at is not null)),
    check (state <> 'credited' or was_credited),
    check (payment_id is not null or state = 'refunded')
);
create unique index one_credit_of_payment on payment_captures (payment_id) where was_credited;
create index captures_by_payment on payment_captures (payment_id);
create trigger keep_capture before delete or truncate on payment_captures
    for each statement execute function refuse_change();
revoke delete on payment_captures from prepaid_app;

-- What gateways said, each word once, and what it came to. Of its bytes only the digest is kept: they name the payer.
create table payment_events (
    id bigint generated always as identity primary key,
    gateway text not null,
    event_id text not null,
    source text not null check (source in ('webhook', 'asked')),
    kind text not null,
    reference text,
    capture text,
    amount_minor bigint not null,
    refunded_minor bigint not null,
    body_sha256 bytea,
    outcome text not null,
    received_at timestamptz not null,
    unique (gateway, event_id)
);
create index events_for_people on payment_events (id) where outcome in ('unknown_order', 'partial_refund');
create trigger append_only before update or delete or truncate on payment_events
    for each statement execute function refuse_change();
revoke update, delete on payment_events from prepaid_app;

-- What was tried to bring a token to its meter.
create index orders_of_token on supply_orders (token_id) where token_id is not null;
