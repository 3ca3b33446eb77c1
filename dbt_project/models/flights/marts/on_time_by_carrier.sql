select
    flights.carrier_code,
    coalesce(airlines.carrier_name, 'unknown') as carrier_name,
    {{ on_time_measures() }}
from {{ ref('fct_flights') }} as flights
left join {{ ref('dim_airlines') }} as airlines using (carrier_code)
group by flights.carrier_code, airlines.carrier_name
