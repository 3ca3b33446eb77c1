{#-
  The measures of every on-time mart, over rows of fct_flights. One place for the rule: the doc
  block `on_time_performance` says it in words.
-#}
{% macro on_time_measures(flight='flights') -%}
    count(*) as flights_scheduled,
    count(*) filter (where {{ flight }}.outcome = 'cancelled') as flights_cancelled,
    count(*) filter (where {{ flight }}.outcome = 'diverted') as flights_diverted,
    count({{ flight }}.arrival_delay_minutes) as flights_arrived,
    count(*) filter (where {{ flight }}.is_on_time) as flights_on_time,
    avg({{ flight }}.is_on_time::integer)::double precision as on_time_rate,
    avg({{ flight }}.is_cancelled::integer)::double precision as cancellation_rate,
    avg({{ flight }}.departure_delay_minutes)::double precision
        as average_departure_delay_minutes,
    avg({{ flight }}.arrival_delay_minutes)::double precision as average_arrival_delay_minutes,
    percentile_cont(0.9) within group (order by {{ flight }}.arrival_delay_minutes)
        as p90_arrival_delay_minutes
{%- endmacro %}
