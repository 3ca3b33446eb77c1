select
    flights.flight_date,
    trim(to_char(flights.flight_date, 'Day')) as day_of_week,
    {{ on_time_measures() }}
from {{ ref('fct_flights') }} as flights
group by flights.flight_date
