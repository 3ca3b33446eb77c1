select
    user_id,
    {{ utc_date('purchased_at') }} as basket_date,
    count(*) as items,
    sum(gross_revenue) as basket_value
from {{ ref('int_commerce__priced_purchases') }}
where purchased_at is not null
group by user_id, {{ utc_date('purchased_at') }}
