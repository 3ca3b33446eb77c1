select
    faa as airport_code,
    name as airport_name,
    lat::double precision as latitude,
    lon::double precision as longitude,
    alt::integer as altitude_feet,
    tz::integer as utc_offset_hours,
    dst as dst_rule,
    tzone as time_zone
from {{ source('fleet_raw', 'airports') }}
