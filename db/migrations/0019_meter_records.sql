-- The meter record: what a point of sale must hold of a meter to make its tokens, in versions. It was columns of `meters`;
-- the DRN stays there, since it names the meter and does not change with a key.

-- Every meter and token is copied or marked once: ten million take minutes, beyond the sessions' usual time-out.
set local statement_timeout = 0;

create table meter_records (
    id bigint generated always as identity primary key,
    meter_id integer not null references meters,
    version integer not null check (version > 0),
    -- pending: its key-change tokens are made and not known to be entered. withdrawn: a pending one that was given up.
    state text not null check (state in ('pending', 'active', 'past', 'withdrawn')),
    -- Which engine makes the meter's tokens; one that this version does not offer is refused at the sale.
    engine text not null check (engine ~ '^[a-z][a-z0-9_]{0,31}$'),
    -- STS (IEC 62055-41).
    ea smallint,
    tct smallint,
    dkga smallint,
    sgc text check (sgc ~ '^[0-9]{6}$'),
    key_type smallint check (key_type between 0 and 3),
    krn smallint check (krn between 1 and 9),
    tariff_index text check (tariff_index ~ '^[0-9]{2}$'),
    ken smallint check (ken between 0 and 255),
    base_year smallint check (base_year in (1993, 2014, 2035)),
    -- How many key-change tokens the meter takes; 0: none, its key cannot be changed.
    key_change_tokens smallint check (key_change_tokens in (0, 2, 3, 4)),
    -- OpenPAYGO: what a day of use costs, in minor units.
    day_price_minor bigint check (day_price_minor > 0),
    -- What the meter takes: services, currency or units, kinds of management.
    capabilities text[] not null,
    written_at timestamptz not null default clock_timestamp(),
    written_by text not null,
    reason text not null,
    -- Who or what made a pending version active, or withdrew it.
    settled_by text,
    valid_from timestamptz,
    valid_to timestamptz,
    unique (meter_id, version),
    check (engine <> 'sts'
           or num_nulls(ea, tct, dkga, sgc, key_type, krn, tariff_index, ken, base_year, key_change_tokens) = 0),
    check (engine <> 'openpaygo' or day_price_minor is not null),
    check ((state in ('pending', 'withdrawn')) = (valid_from is null)),
    check ((state = 'past') = (valid_to is not null))
);
create unique index one_active_record on meter_records (meter_id) where state = 'active';
create unique index one_pending_record on meter_records (meter_id) where state = 'pending';

-- Meters that were there take what they have been sold so far: currency tokens, and what every STS meter must take.
insert into meter_records (meter_id, version, state, engine, ea, tct, dkga, sgc, key_type, krn, tariff_index, ken,
                           base_year, key_change_tokens, capabilities, written_by, reason, valid_from)
select id, 1, 'active', 'sts', ea, 2, dkga, sgc, key_type, krn, tariff_index, ken, base_year,
       case when ea = 11 then 4 else 2 end,
       array['electricity', 'currency', 'units', 'power_limit', 'clear_credit', 'clear_tamper', 'unbalance_limit'],
       'migration 0019', 'as registered', clock_timestamp()
from meters where drn is not null order by id;

-- A version is never rewritten; only its state moves on.
create function keep_record() returns trigger language plpgsql as $$
declare
    moving text[] := array['state', 'settled_by', 'valid_from', 'valid_to'];
begin
    if tg_op = 'DELETE' or to_jsonb(new) - moving <> to_jsonb(old) - moving then
        raise exception 'meter record %: % of a version refused', old.id, tg_op using errcode = 'insufficient_privilege';
    end if;
    return new;
end $$;
create trigger keep_record before update or delete on meter_records for each row execute function keep_record();
revoke delete on meter_records from prepaid_app;

-- The last token id given out for a meter, by era: the base year that TIDs count from, or 0 for a plain count
-- (OpenPAYGO). A meter that moves to a later base date forgets its TIDs, so its new era begins without one.
create table last_tids (
    meter_id integer not null references meters,
    era smallint not null check (era in (0, 1993, 2014, 2035)),
    last_tid integer not null check (last_tid >= 0),
    primary key (meter_id, era)
) with (fillfactor = 70);
insert into last_tids (meter_id, era, last_tid)
select s.meter_id, m.base_year, s.last_tid
from meter_state s join meters m on m.id = s.meter_id
where s.last_tid is not null and m.base_year is not null;

-- Tokens of every engine and kind. A key-change set has no TID, and no vend; it brings the record that it names.
alter table tokens add column engine text, add column kind text, add column era smallint, add column record_id bigint,
    add column section smallint, add column made_at timestamptz, add column asked_by text, add column reason text;
alter table tokens disable trigger append_only;
update tokens t
set engine = 'sts', kind = 'credit', made_at = v.created_at,
    era = coalesce((select m.base_year from meters m where m.id = t.meter_id), 2014),
    record_id = (select r.id from meter_records r where r.meter_id = t.meter_id)
from vends v where v.id = t.vend_id;
alter table tokens enable trigger append_only;
alter table tokens
    alter column engine set not null, alter column kind set not null, alter column era set not null,
    alter column made_at set not null, alter column made_at set default clock_timestamp(),
    alter column vend_id drop not null, alter column tid drop not null, alter column subclass drop not null,
    drop constraint tokens_digits_check, drop constraint tokens_digits_key, drop constraint tokens_meter_id_tid_key,
    add constraint tokens_digits_check check (digits ~ '^[0-9]{9,20}$' and (engine <> 'sts' or length(digits) = 20)),
    add constraint tokens_one_tid unique (meter_id, era, tid),
    add constraint tokens_record foreign key (record_id) references meter_records,
    add constraint tokens_kind check (kind in ('credit', 'management', 'key_change')),
    add constraint tokens_of_vends check ((kind = 'credit') = (vend_id is not null)),
    add constraint tokens_tid check ((kind = 'key_change') = (tid is null) and (kind = 'key_change') = (section is not null)),
    add constraint tokens_asked check ((kind = 'management') = (asked_by is not null) and (asked_by is null) = (reason is null));
-- The digits of a key-change set follow from the two keys alone: made again, they are the same.
create unique index one_token_of_digits on tokens (digits) where engine = 'sts' and kind <> 'key_change';
create index tokens_of_records on tokens (record_id);

alter table meter_state drop column last_tid;
alter table meters drop column ea, drop column dkga, drop column sgc, drop column key_type, drop column krn,
    drop column tariff_index, drop column ken, drop column base_year;

-- A record with what names its meter and the last token id of its era.
create view known_records as
select r.*, m.serial, m.make, m.drn, t.last_tid
from meter_records r
join meters m on m.id = r.meter_id
left join last_tids t on t.meter_id = r.meter_id and t.era = coalesce(r.base_year, 0);
