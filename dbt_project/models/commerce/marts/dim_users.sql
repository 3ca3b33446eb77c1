{{ config(indexes=[{'columns': ['user_id'], 'unique': true}]) }}

with bought as (

    select
        user_id,
        min(purchased_at) as first_purchased_at,
        max(purchased_at) as last_purchased_at,
        count(*) as items_purchased,
        sum(gross_revenue - refunded_revenue) as net_revenue
    from {{ ref('int_commerce__priced_purchases') }}
    where purchased_at is not null
    group by user_id

)

select
    users.user_id,
    users.signed_up_at,
    case
        when users.age is null then 'unknown'
        when users.age < 18 then 'under 18'
        when users.age < 25 then '18 to 24'
        when users.age < 35 then '25 to 34'
        when users.age < 45 then '35 to 44'
        when users.age < 55 then '45 to 54'
        when users.age < 65 then '55 to 64'
        else '65 and over'
    end as age_band,
    coalesce(users.country_code, 'unknown') as country_code,
    bought.user_id is not null as is_customer,
    bought.first_purchased_at,
    bought.last_purchased_at,
    coalesce(bought.items_purchased, 0) as items_purchased,
    coalesce(bought.net_revenue, 0)::numeric(18, 2) as net_revenue
from {{ ref('stg_commerce__users') }} as users
left join bought using (user_id)
