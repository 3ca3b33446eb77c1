with flights as (

    select
        flights.*,
        planes.tailnum is not null as is_plane_known,
        destinations.airport_code is not null as is_destination_known,
        airlines.carrier_code is not null as is_carrier_known,
        weather.airport_code is not null as is_weather_known
    from {{ ref('fct_flights') }} as flights
    left join {{ ref('dim_planes') }} as planes using (tailnum)
    left join {{ ref('dim_airlines') }} as airlines using (carrier_code)
    left join {{ ref('dim_airports') }} as destinations
        on flights.destination_code = destinations.airport_code
    left join {{ ref('fct_weather_hourly') }} as weather
        on
            flights.origin_code = weather.airport_code
            and flights.scheduled_hour_at = weather.observed_at

)

select
    gaps.gap,
    count(*) filter (where gaps.is_missing) as flights_affected,
    avg(gaps.is_missing::integer)::double precision as share_of_flights,
    count(distinct gaps.missing_value) filter (where gaps.is_missing) as distinct_values
from flights
cross join lateral (
    values
        ('plane', not flights.is_plane_known, flights.tailnum),
        ('destination airport', not flights.is_destination_known, flights.destination_code),
        ('carrier', not flights.is_carrier_known, flights.carrier_code),
        (
            'weather reading',
            not flights.is_weather_known,
            flights.origin_code || ' ' || flights.scheduled_hour_at
        )
) as gaps (gap, is_missing, missing_value)
group by gaps.gap
