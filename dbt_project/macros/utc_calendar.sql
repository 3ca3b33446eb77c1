{#- Calendar days and months of UTC, so that a result does not depend on the session's time zone. -#}
{% macro utc_date(column) -%}
    ({{ column }} at time zone 'UTC')::date
{%- endmacro %}


{#- The first day of the month. -#}
{% macro utc_month(column) -%}
    date_trunc('month', {{ column }} at time zone 'UTC')::date
{%- endmacro %}
