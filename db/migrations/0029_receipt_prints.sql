-- How often the slip of a message id was printed, when and by whom: number 1 is the original, later ones are duplicates.
create table receipt_prints (
    vendor_id bigint not null references vendors,
    message_id text not null,
    number integer not null check (number > 0),
    printed_at timestamptz(3) not null,
    key_id text not null check (key_id <> ''),
    form text not null check (form in ('text', 'html')),
    language text not null check (language in ('en', 'hi', 'pa')),
    primary key (vendor_id, message_id, number)
);
create trigger append_only before update or delete or truncate on receipt_prints
    for each statement execute function refuse_change();
revoke update, delete on receipt_prints from prepaid_app;
