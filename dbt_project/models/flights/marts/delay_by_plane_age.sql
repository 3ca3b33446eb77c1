with aged as (

    select
        flights.*,
        planes.tailnum is not null as is_plane_known,
        extract(year from flights.flight_date)::integer - planes.manufacture_year
            as plane_age_years
    from {{ ref('fct_flights') }} as flights
    left join {{ ref('dim_planes') }} as planes using (tailnum)

),

banded as (

    select
        *,
        case
            when tailnum is null then 'no tail number'
            when not is_plane_known then 'plane not in fleet'
            when plane_age_years is null then 'year not recorded'
            when plane_age_years < 5 then 'under 5 years'
            when plane_age_years < 10 then '5 to 9 years'
            when plane_age_years < 15 then '10 to 14 years'
            when plane_age_years < 20 then '15 to 19 years'
            when plane_age_years < 25 then '20 to 24 years'
            else '25 years and over'
        end as plane_age_band
    from aged

)

select
    plane_age_band,
    (row_number() over (order by min(plane_age_years) asc nulls last, plane_age_band))::integer
        as band_order,
    bool_and(plane_age_years is not null) as is_age_known,
    count(distinct tailnum) as planes,
    {{ on_time_measures('banded') }}
from banded
group by plane_age_band
