-- The billing engineers' desk: what its walks go by, readers of one area, and the meter at the head of a feeder.

-- Meters by where they stand and stood, places by area and feeder.
create index installations_by_meter on installations (meter_id, from_at);
create index installations_by_point on installations (usage_point_id, from_at);
create index usage_points_by_area on usage_points (area);
create index usage_points_by_feeder on usage_points (feeder) where feeder <> '';

-- A reader sees one area and changes nothing.
alter table api_keys drop constraint api_keys_role_check;
alter table api_keys add constraint api_keys_role_check
    check (role in ('vendor', 'supervisor', 'engineer', 'cashier', 'auditor', 'reader', 'consumer'));
alter table api_keys
    add column area text check (area <> ''),
    add constraint area_of_key check ((role = 'reader') = (area is not null));

-- Which meter measures what goes into a feeder, from a local day on, until another one does.
create table feeder_meters (
    feeder text not null check (feeder <> ''),
    from_day date not null,
    meter_id integer not null references meters,
    set_by text not null check (set_by <> ''),
    set_at timestamptz not null default clock_timestamp(),
    primary key (feeder, from_day)
);
