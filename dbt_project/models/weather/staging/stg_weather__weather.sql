select
    origin as airport_code,
    time_hour as observed_at,
    make_date(year::integer, month::integer, day::integer) as observed_on,
    hour::integer as observed_hour,
    temp as temperature_f,
    dewp as dew_point_f,
    humid as humidity_percent,
    wind_dir as wind_direction_degrees,
    wind_speed as reported_wind_speed_mph,
    wind_gust as wind_gust_mph,
    precip as precipitation_inches,
    pressure as pressure_millibars,
    visib as visibility_miles
from {{ source('weather_raw', 'weather') }}
