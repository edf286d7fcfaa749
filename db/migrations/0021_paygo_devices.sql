-- OpenPAYGO devices: what their makers' lists say, the secret key of each sealed by the security module.

-- The price of a day and the other terms of sale are in the meter's record; the count of the last token given out is its
-- last token id.
create table paygo_devices (
    meter_id integer primary key references meters,
    sealed_key bytea not null,
    starting_code integer not null check (starting_code between 0 and 999999999),
    -- Parts of a day that one unit of a token's value counts.
    time_divider smallint not null check (time_divider between 1 and 255),
    restricted_digits boolean not null,
    extended boolean not null,
    written_at timestamptz not null default clock_timestamp(),
    written_by text not null,
    reason text not null
);
