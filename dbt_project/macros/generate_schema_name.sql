{#- A model's schema is the one it names, in every environment: `fleet`, never `public_fleet`. -#}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
