with purchases as (

    select
        user_id,
        {{ utc_month('purchased_at') }} as month,
        {{ utc_month('min(purchased_at) over (partition by user_id)') }} as cohort_month,
        net_revenue
    from {{ ref('fct_purchases') }}
    where purchased_at is not null

),

active as (

    select
        cohort_month,
        (
            (extract(year from month) - extract(year from cohort_month)) * 12
            + extract(month from month) - extract(month from cohort_month)
        )::integer as months_since_first_purchase,
        count(distinct user_id) as active_customers,
        sum(net_revenue) as net_revenue
    from purchases
    group by 1, 2

)

select
    cohort_month,
    months_since_first_purchase,
    -- Everybody of a cohort is active in its first month.
    first_value(active_customers) over cohort as cohort_customers,
    active_customers,
    active_customers::double precision / first_value(active_customers) over cohort
        as retention_rate,
    net_revenue::numeric(18, 2) as net_revenue
from active
window cohort as (partition by cohort_month order by months_since_first_purchase)
