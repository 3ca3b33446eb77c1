{{ config(indexes=[{'columns': ['airport_code', 'observed_at'], 'unique': true}]) }}

select
    airport_code,
    observed_at,
    observed_on,
    observed_hour,
    temperature_f,
    dew_point_f,
    humidity_percent,
    wind_direction_degrees,
    wind_speed_mph,
    wind_gust_mph,
    precipitation_inches,
    pressure_millibars,
    visibility_miles,
    is_wind_speed_implausible,
    -- The first that applies, from what disturbs an airport most.
    case
        when precipitation_inches > 0 and temperature_f <= 32 then 'freezing precipitation'
        when visibility_miles < 3 then 'low visibility'
        when precipitation_inches > 0 then 'rain'
        when wind_speed_mph >= 25 then 'strong wind'
        else 'fair'
    end as weather_condition,
    case
        when wind_speed_mph is null then 'not measured'
        when wind_speed_mph < 10 then 'under 10 mph'
        when wind_speed_mph < 20 then '10 to 20 mph'
        when wind_speed_mph < 30 then '20 to 30 mph'
        else '30 mph and over'
    end as wind_band,
    case
        when visibility_miles is null then 'not measured'
        when visibility_miles < 1 then 'under 1 mile'
        when visibility_miles < 3 then '1 to 3 miles'
        when visibility_miles < 10 then '3 to 10 miles'
        else '10 miles'
    end as visibility_band,
    case
        when precipitation_inches is null then 'not measured'
        when precipitation_inches = 0 then 'dry'
        when precipitation_inches < 0.1 then 'under 0.1 inches'
        else '0.1 inches and over'
    end as precipitation_band,
    case
        when temperature_f is null then 'not measured'
        when temperature_f <= 32 then '32 F and under'
        when temperature_f < 50 then '32 to 50 F'
        when temperature_f < 70 then '50 to 70 F'
        when temperature_f < 85 then '70 to 85 F'
        else '85 F and over'
    end as temperature_band
from {{ ref('int_weather__plausible_readings') }}
