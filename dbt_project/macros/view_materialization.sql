{#-
  Views are replaced in place. dbt's own materialization builds a new view and drops the old one
  with everything that reads it: building a staging view alone would silently remove the
  intermediate views on top of it. Here that happens only if the new definition renames, retypes or
  removes a column, which PostgreSQL refuses to do in place (SQLSTATE 42P16); what read the view has
  to be built again then anyway (`dbt run --select <model>+`).
-#}
{% materialization view, adapter='postgres' %}

    {%- set existing = load_cached_relation(this) -%}
    {%- set target_relation = this.incorporate(type='view') -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {% if existing is not none and not existing.is_view %}
        {% do adapter.drop_relation(existing) %}
    {% endif %}

    {% call statement('main') %}
        do $view$
        begin
            {{ get_replace_view_sql(target_relation, sql) }}
        exception when invalid_table_definition then
            drop view {{ target_relation }} cascade;
            {{ get_create_view_as_sql(target_relation, sql) }}
        end
        $view$;
    {% endcall %}

    {% do apply_grants(
        target_relation, config.get('grants'), should_revoke(existing, full_refresh_mode=True)
    ) %}
    {% do persist_docs(target_relation, model) %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}

    {{ return({'relations': [target_relation]}) }}

{% endmaterialization %}
