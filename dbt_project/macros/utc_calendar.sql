{#- Calendar days and months of UTC, so that no result depends on the time zone of a session. -#}
{% macro utc_date(column) -%}
    ({{ column }} at time zone 'UTC')::date
{%- endmacro %}


{#- The first day of the month. -#}
{% macro utc_month(column) -%}
    date_trunc('month', {{ column }} at time zone 'UTC')::date
{%- endmacro %}
