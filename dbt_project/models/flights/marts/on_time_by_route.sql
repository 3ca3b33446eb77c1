with routes as (

    select
        flights.origin_code,
        flights.destination_code,
        max(flights.distance_miles) as distance_miles,
        {{ on_time_measures() }}
    from {{ ref('fct_flights') }} as flights
    group by flights.origin_code, flights.destination_code

)

select
    routes.origin_code,
    coalesce(origins.airport_name, 'unknown') as origin_name,
    routes.destination_code,
    coalesce(destinations.airport_name, 'unknown') as destination_name,
    destinations.airport_code is not null as is_destination_known,
    routes.distance_miles,
    routes.flights_scheduled,
    routes.flights_cancelled,
    routes.flights_diverted,
    routes.flights_arrived,
    routes.flights_on_time,
    routes.on_time_rate,
    routes.cancellation_rate,
    routes.average_departure_delay_minutes,
    routes.average_arrival_delay_minutes,
    routes.p90_arrival_delay_minutes
from routes
left join {{ ref('dim_airports') }} as origins on routes.origin_code = origins.airport_code
left join {{ ref('dim_airports') }} as destinations
    on routes.destination_code = destinations.airport_code
