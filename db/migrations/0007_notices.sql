-- Notices that reach people: facts instead of sentences, contacts that are proven, deliveries, questions by SMS.

-- A notice is written with its cause, as facts; a sentence only by versions before this one. It goes nowhere until its
-- way is planned; `contact_id` is who asked for it and alone is answered, in the `language` of the question.
alter table notices
    add column facts jsonb not null default '{}',
    alter column body drop not null,
    -- What was written before this version has been shown; nobody wants a week of messages at once.
    add column planned_at timestamptz default now();
alter table notices alter column planned_at drop default;
create index notices_to_plan on notices (id) where planned_at is null;

-- Where a consumer is reached. A number counts only once a code sent to it has come back. Rows are taken out of use, not
-- deleted, since deliveries name them.
alter table contacts drop constraint contacts_pkey, drop constraint contacts_kind_check;
alter table contacts rename column kind to channel;
update contacts set channel = 'sms' where channel = 'phone';
-- Numbers in one form (billing.notices.addresses), so that the same one is found however it was written.
update contacts set address = regexp_replace(address, '[ ()./-]', '', 'g') where channel = 'sms';
update contacts set address = '+91' || right(address, 10)
where channel = 'sms' and address ~ '^(0|\+?91)?[6-9][0-9]{9}$';
update contacts set address = '+' || substr(address, 3) where channel = 'sms' and address ~ '^00[1-9][0-9]{7,14}$';
delete from contacts c using contacts d
where d.consumer_id = c.consumer_id and d.channel = c.channel and d.address = c.address and d.ctid <> c.ctid
  and (d.verified_at is not null, c.ctid) > (c.verified_at is not null, d.ctid);
alter table contacts
    add column id bigint generated always as identity primary key,
    add column language text not null default 'en' check (language in ('en', 'hi', 'pa')),
    add column priority smallint not null default 1 check (priority between 1 and 9),
    add column verified_by text,
    -- The last message was refused for good; ends with the next that is taken.
    add column failed_at timestamptz,
    -- The reader has sent STOP.
    add column stopped_at timestamptz,
    add column removed_at timestamptz,
    add column created_at timestamptz not null default now(),
    add check (channel in ('sms', 'email')),
    add unique (consumer_id, channel, address);
update contacts c set language = split_part(lower(n.language), '-', 1)
from consumers n where n.id = c.consumer_id and split_part(lower(n.language), '-', 1) in ('hi', 'pa');
create index contacts_by_address on contacts (address) where removed_at is null;
create index accounts_by_consumer on accounts (consumer_id);

alter table notices
    add column contact_id bigint references contacts,
    add column language text check (language in ('en', 'hi', 'pa'));

-- One way of a notice to a person: at most one a channel, tried until it is sent or dead. `claimed` rises with every try,
-- so that who was too slow with one cannot write its end. `message_id` is the same on every try.
create table notice_deliveries (
    id bigint generated always as identity primary key,
    notice_id bigint not null references notices,
    account_id bigint not null references accounts,
    channel text not null check (channel in ('sms', 'email')),
    contact_id bigint references contacts,
    address text,
    language text not null check (language in ('en', 'hi', 'pa')),
    state text not null check (state in ('pending', 'sending', 'sent', 'dead', 'skipped')),
    -- What is sent first: 0 what was asked for, 1 supply, 2 all else (billing.notices.kinds.Rank).
    rank smallint not null,
    -- Whether it counts in the day's messages of its account and channel.
    capped boolean not null,
    attempts integer not null default 0,
    claimed integer not null default 0,
    next_try_at timestamptz not null,
    expires_at timestamptz not null,
    last_error text,
    message_id text not null,
    created_at timestamptz not null,
    sent_at timestamptz,
    unique (notice_id, channel),
    check (state = 'skipped' or (contact_id is not null and address is not null)),
    check ((state = 'sent') = (sent_at is not null))
) with (fillfactor = 70);
create index deliveries_due on notice_deliveries (channel, rank, next_try_at) where state in ('pending', 'sending');
create index deliveries_of_account on notice_deliveries (account_id, created_at);
create index dead_deliveries on notice_deliveries (id) where state = 'dead';

-- Codes that prove a contact. Only a digest is kept; the newest code of a contact counts, for some tries and minutes.
create table contact_otps (
    id bigint generated always as identity primary key,
    contact_id bigint not null references contacts,
    address text not null,
    salt bytea not null,
    digest bytea not null,
    tries smallint not null default 0,
    asked_by text not null,
    asked_at timestamptz not null,
    expires_at timestamptz not null,
    used_at timestamptz
);
create index otps_by_contact on contact_otps (contact_id, id);
create index otps_by_address on contact_otps (address, asked_at);

-- Messages that people sent. The gateway's id is kept for ever: the same one is answered once.
create table inbound_messages (
    message_id text primary key,
    digest bytea not null,
    sender text not null,
    command text,
    outcome text not null,
    account_id bigint references accounts,
    notice_id bigint references notices,
    received_at timestamptz not null
);
create index inbound_by_sender on inbound_messages (sender, received_at);
