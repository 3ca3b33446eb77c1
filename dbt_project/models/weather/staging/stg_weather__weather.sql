select
    origin as airport_code,
    time_hour as observed_at,
    make_date(year::integer, month::integer, day::integer) as observed_on,
    hour::integer as observed_hour,
    temp::double precision as temperature_f,
    dewp::double precision as dew_point_f,
    humid::double precision as humidity_percent,
    wind_dir::double precision as wind_direction_degrees,
    wind_speed::double precision as reported_wind_speed_mph,
    wind_gust::double precision as wind_gust_mph,
    precip::double precision as precipitation_inches,
    pressure::double precision as pressure_millibars,
    visib::double precision as visibility_miles
from {{ source('weather_raw', 'weather') }}
