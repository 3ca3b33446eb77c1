with factors as (

    -- A flight counts once under each factor: under one wind band, one visibility band and so on.
    select
        flights.*,
        factor.weather_factor,
        coalesce(factor.band, 'no reading') as band,
        factor.measured
    from {{ ref('fct_flights') }} as flights
    left join {{ ref('fct_weather_hourly') }} as weather
        on
            flights.origin_code = weather.airport_code
            and flights.scheduled_hour_at = weather.observed_at
    cross join lateral (
        values
            ('condition', weather.weather_condition, null),
            ('wind', weather.wind_band, weather.wind_speed_mph),
            ('visibility', weather.visibility_band, weather.visibility_miles),
            ('precipitation', weather.precipitation_band, weather.precipitation_inches),
            ('temperature', weather.temperature_band, weather.temperature_f)
    ) as factor (weather_factor, band, measured)

)

select
    weather_factor,
    band,
    (
        row_number() over (partition by weather_factor order by min(measured) asc nulls last, band)
    )::integer as band_order,
    {{ on_time_measures('factors') }}
from factors
group by weather_factor, band
