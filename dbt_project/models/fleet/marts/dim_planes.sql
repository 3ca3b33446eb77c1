{{ config(indexes=[{'columns': ['tailnum'], 'unique': true}]) }}

select
    tailnum,
    manufacture_year,
    plane_type,
    manufacturer,
    -- The registry writes the large makers in several ways; shares by maker need one.
    case
        when manufacturer like 'AIRBUS%' then 'Airbus'
        when manufacturer like 'BOEING%' then 'Boeing'
        when manufacturer like 'BOMBARDIER%' or manufacturer like 'CANADAIR%' then 'Bombardier'
        when manufacturer like 'EMBRAER%' then 'Embraer'
        when manufacturer like 'MCDONNELL DOUGLAS%' or manufacturer like 'DOUGLAS%'
            then 'McDonnell Douglas'
        else 'Other'
    end as manufacturer_group,
    model,
    engine_count,
    seat_count,
    cruise_speed_mph,
    engine_type
from {{ ref('stg_fleet__planes') }}
