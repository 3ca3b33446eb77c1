-- The months add up to the purchases: no sale and no refund is lost, or counted twice.
{{ config(meta={'dagster': {'ref': {'name': 'revenue_by_month'}}}) }}

select booked.net_revenue as booked, sold.net_revenue as sold
from (
    select coalesce(sum(net_revenue), 0) as net_revenue from {{ ref('revenue_by_month') }}
) as booked
cross join (
    select coalesce(sum(net_revenue), 0) as net_revenue from {{ ref('fct_purchases') }}
) as sold
where booked.net_revenue <> sold.net_revenue
