{#-
  The days of this run: the variable `days`, a list of ISO dates such as ['2013-01-01'], or the
  environment variable DBT_MESH_DAYS, ISO dates with commas between, which comes first (a changed
  --vars makes dbt parse the whole project again, a changed environment variable does not).
  Returns a list of SQL date literals, or none if neither is given, which means all days.
  Raises a compilation error for anything else, so that a mistyped day never reaches SQL.
-#}
{% macro run_days() %}
    {% set listed = env_var('DBT_MESH_DAYS', '') %}
    {% set days = listed.split(',') if listed else var('days', none) %}
    {% if days is none %}
        {{ return(none) }}
    {% endif %}
    {% if days is string or days is mapping or days is not iterable or not days %}
        {{ exceptions.raise_compiler_error(
            "The variable `days` must be a list of at least one ISO date, such as "
            ~ "{days: ['2013-01-01']}, but is " ~ days ~ ". Leave it out to build all days."
        ) }}
    {% endif %}
    {% set literals = [] %}
    {% for day in days %}
        {% if not modules.re.fullmatch('[0-9]{4}-[0-9]{2}-[0-9]{2}', day | string) %}
            {{ exceptions.raise_compiler_error(
                "The variable `days` holds " ~ day ~ ", which is not an ISO date (YYYY-MM-DD)."
            ) }}
        {% endif %}
        {% do literals.append("date '" ~ day ~ "'") %}
    {% endfor %}
    {{ return(literals) }}
{% endmacro %}


{#- The predicate that keeps this run's days of a date column; `true` if the run has all days. -#}
{% macro is_of_run_days(column) -%}
    {%- set days = run_days() -%}
    {%- if days is none -%}
        true
    {%- else -%}
        {{ column }} in ({{ days | join(', ') }})
    {%- endif -%}
{%- endmacro %}


{#-
  A pre-hook for an incremental model: removes what the model is about to insert again. It runs in
  the model's transaction, so readers see a day's old rows or its new ones, and a corrected file
  that lost rows loses them here too.
-#}
{% macro delete_run_days(column) -%}
    {%- if is_incremental() -%}
        delete from {{ this }} where {{ is_of_run_days(column) }}
    {%- endif -%}
{%- endmacro %}
