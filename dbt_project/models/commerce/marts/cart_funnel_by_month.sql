select
    {{ utc_month('added_to_cart_at') }} as cart_month,
    count(*) as items_added_to_cart,
    count(purchased_at) as items_purchased,
    count(returned_at) as items_returned,
    count(*) filter (where status = 'in cart') as items_left_in_cart,
    count(purchased_at)::double precision / count(*) as purchase_rate,
    count(returned_at)::double precision / nullif(count(purchased_at), 0) as return_rate,
    avg(days_to_purchase) as average_days_to_purchase,
    avg(days_to_return) as average_days_to_return
from {{ ref('fct_purchases') }}
where added_to_cart_at is not null
group by 1
