-- Sales count in the month of the purchase and refunds in the month of the return, as they are
-- booked; a month can therefore refund more than it sold.
with bookings as (

    select
        {{ utc_month('purchased_at') }} as month,
        1 as items_sold,
        0 as items_returned,
        gross_revenue,
        0::numeric as refunded_revenue,
        user_id,
        (not is_product_known)::integer as items_without_price
    from {{ ref('int_commerce__priced_purchases') }}
    where purchased_at is not null

    union all

    select
        {{ utc_month('returned_at') }} as month,
        0 as items_sold,
        1 as items_returned,
        0::numeric as gross_revenue,
        refunded_revenue,
        null as user_id,
        0 as items_without_price
    from {{ ref('int_commerce__priced_purchases') }}
    where returned_at is not null

),

baskets as (

    select
        date_trunc('month', basket_date)::date as month,
        count(*) as baskets,
        avg(basket_value) as average_basket_value,
        avg(items) as average_basket_items
    from {{ ref('int_commerce__baskets') }}
    group by 1

),

months as (

    select
        month,
        sum(items_sold) as items_sold,
        sum(items_returned) as items_returned,
        count(distinct user_id) as customers,
        sum(gross_revenue) as gross_revenue,
        sum(refunded_revenue) as refunded_revenue,
        sum(items_without_price) as items_without_price
    from bookings
    group by month

)

select
    months.month,
    months.items_sold,
    months.items_returned,
    months.customers,
    coalesce(baskets.baskets, 0) as baskets,
    baskets.average_basket_value::numeric(18, 2) as average_basket_value,
    baskets.average_basket_items::double precision as average_basket_items,
    months.gross_revenue::numeric(18, 2) as gross_revenue,
    months.refunded_revenue::numeric(18, 2) as refunded_revenue,
    (months.gross_revenue - months.refunded_revenue)::numeric(18, 2) as net_revenue,
    months.items_without_price
from months
left join baskets using (month)
