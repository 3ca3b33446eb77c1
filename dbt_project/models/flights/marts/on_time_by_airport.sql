with airports as (

    {% for role in ['origin', 'destination'] -%}
    select
        flights.{{ role }}_code as airport_code,
        '{{ role }}' as airport_role,
        {{ on_time_measures() }}
    from {{ ref('fct_flights') }} as flights
    group by flights.{{ role }}_code
    {% if not loop.last %}union all{% endif %}

    {% endfor %}
)

select
    airports.airport_code,
    airports.airport_role,
    coalesce(known.airport_name, 'unknown') as airport_name,
    known.airport_code is not null as is_airport_known,
    known.latitude,
    known.longitude,
    airports.flights_scheduled,
    airports.flights_cancelled,
    airports.flights_diverted,
    airports.flights_arrived,
    airports.flights_on_time,
    airports.on_time_rate,
    airports.cancellation_rate,
    airports.average_departure_delay_minutes,
    airports.average_arrival_delay_minutes,
    airports.p90_arrival_delay_minutes
from airports
left join {{ ref('dim_airports') }} as known using (airport_code)
