-- Above this it is the instrument and not the weather: a hurricane of category 4 blows at 130 mph.
{% set highest_plausible_wind_mph = 150 %}

select
    *,
    case
        when reported_wind_speed_mph <= {{ highest_plausible_wind_mph }}
            then reported_wind_speed_mph
    end as wind_speed_mph,
    coalesce(reported_wind_speed_mph > {{ highest_plausible_wind_mph }}, false)
        as is_wind_speed_implausible
from {{ ref('stg_weather__weather') }}
