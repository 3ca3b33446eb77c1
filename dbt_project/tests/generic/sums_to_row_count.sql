{#-
  Fails if the column's sum is not the number of rows of another model: an aggregate that lost rows
  in a join, or counted some twice.
-#}
{% test sums_to_row_count(model, column_name, of) %}
select totals.summed, totals.counted
from (
    select
        (select coalesce(sum({{ column_name }}), 0) from {{ model }}) as summed,
        (select count(*) from {{ of }}) as counted
) as totals
where totals.summed <> totals.counted
{% endtest %}
