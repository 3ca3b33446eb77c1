{#-
  The timestamp, in local time, of a clock time written as an hhmm integer on a date.
  517 is 05:17; 2400, which the source uses for midnight at a day's end, is the next day's 00:00.
-#}
{% macro timestamp_of_hhmm(date_column, hhmm_column) -%}
    {{ date_column }} + make_interval(
        hours => ({{ hhmm_column }} / 100)::integer, mins => ({{ hhmm_column }} % 100)::integer
    )
{%- endmacro %}


{#- The time of day of an hhmm integer; 2400 is 00:00. -#}
{% macro time_of_hhmm(hhmm_column) -%}
    make_time((({{ hhmm_column }} / 100) % 24)::integer, ({{ hhmm_column }} % 100)::integer, 0)
{%- endmacro %}
