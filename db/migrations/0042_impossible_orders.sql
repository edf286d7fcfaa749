-- Orders that a meter can never carry out end, or stand without being tried; a polled meter may be known by its serial.

alter table supply_orders drop constraint supply_orders_state_check;
alter table supply_orders add constraint supply_orders_state_check
    check (state in ('pending', 'held', 'sent', 'confirmed', 'superseded', 'impossible'));
alter table supply_orders drop constraint supply_orders_waits_for_check;
alter table supply_orders add constraint supply_orders_waits_for_check
    check (waits_for in ('hours', 'transport', 'lane', 'contradicting', 'impossible'));

-- What the device's own serial register must say; null: not compared.
alter table modbus_meters add column device_serial text check (device_serial <> '');
