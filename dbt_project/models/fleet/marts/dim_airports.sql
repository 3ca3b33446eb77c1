{{ config(indexes=[{'columns': ['airport_code'], 'unique': true}]) }}

select
    airport_code,
    airport_name,
    latitude,
    longitude,
    altitude_feet,
    utc_offset_hours,
    dst_rule,
    time_zone
from {{ ref('stg_fleet__airports') }}
