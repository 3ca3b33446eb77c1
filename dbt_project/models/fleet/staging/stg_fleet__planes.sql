select
    tailnum,
    year::integer as manufacture_year,
    type as plane_type,
    manufacturer,
    model,
    engines::integer as engine_count,
    seats::integer as seat_count,
    speed::integer as cruise_speed_mph,
    engine as engine_type
from {{ source('fleet_raw', 'planes') }}
