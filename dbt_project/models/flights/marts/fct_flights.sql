{#- Joins no other domain: a change of reference data must not rebuild a year of flights. -#}
{{ config(
    materialized='incremental',
    incremental_strategy='append',
    on_schema_change='fail',
    pre_hook="{{ delete_run_days('flight_date') }}",
    indexes=[
        {'columns': ['flight_id'], 'unique': true},
        {'columns': ['flight_date']},
        {'columns': ['tailnum']},
    ],
) }}

with flights as (

    select
        *,
        {{ timestamp_of_hhmm('flight_date', 'scheduled_departure_hhmm') }}
            as scheduled_departure_local,
        departure_hhmm is null as is_cancelled,
        coalesce(arrival_delay_minutes < 15, false) as is_on_time
    from {{ ref('stg_flights__flights') }}
    where {{ is_of_run_days('flight_date') }}

)

select
    concat_ws(
        '-',
        to_char(flight_date, 'YYYYMMDD'),
        to_char(scheduled_departure_hhmm, 'FM0000'),
        carrier_code,
        flight_number,
        origin_code,
        destination_code
    ) as flight_id,
    flight_date,
    carrier_code,
    flight_number,
    tailnum,
    origin_code,
    destination_code,
    scheduled_departure_local,
    scheduled_hour_at + make_interval(mins => scheduled_minute) as scheduled_departure_at,
    scheduled_hour_at,
    -- From the delay, not from the clock: a flight that left after midnight left on another date.
    scheduled_departure_local + make_interval(mins => departure_delay_minutes)
        as actual_departure_local,
    {{ time_of_hhmm('scheduled_arrival_hhmm') }} as scheduled_arrival_time,
    {{ time_of_hhmm('arrival_hhmm') }} as actual_arrival_time,
    scheduled_arrival_hhmm < scheduled_departure_hhmm as is_overnight,
    departure_delay_minutes,
    arrival_delay_minutes,
    air_time_minutes,
    distance_miles,
    is_cancelled,
    is_on_time,
    case
        when is_cancelled then 'cancelled'
        when arrival_delay_minutes is null then 'diverted'
        when is_on_time then 'on time'
        else 'late'
    end as outcome
from flights
