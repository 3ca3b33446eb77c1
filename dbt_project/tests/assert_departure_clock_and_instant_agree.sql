-- A flight's wall-clock departure and its instant are two readings of one moment in New York. They
-- come from different columns of the source, so a wrong time zone in either shows here.
select flight_id, scheduled_departure_local, scheduled_departure_at
from {{ ref('fct_flights') }}
where scheduled_departure_local
    <> scheduled_departure_at at time zone 'America/New_York'
