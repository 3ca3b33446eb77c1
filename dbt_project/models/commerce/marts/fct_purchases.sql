{{ config(
    indexes=[
        {'columns': ['purchase_id'], 'unique': true},
        {'columns': ['user_id']},
        {'columns': ['purchased_at']},
    ],
) }}

select
    purchase_id,
    user_id,
    product_id,
    case
        when returned_at is not null then 'returned'
        when purchased_at is not null then 'purchased'
        else 'in cart'
    end as status,
    added_to_cart_at,
    purchased_at,
    returned_at,
    price,
    gross_revenue::numeric(12, 2) as gross_revenue,
    refunded_revenue::numeric(12, 2) as refunded_revenue,
    (gross_revenue - refunded_revenue)::numeric(12, 2) as net_revenue,
    (extract(epoch from purchased_at - added_to_cart_at) / 86400)::double precision
        as days_to_purchase,
    (extract(epoch from returned_at - purchased_at) / 86400)::double precision as days_to_return,
    is_product_known,
    is_user_known,
    is_before_sign_up
from {{ ref('int_commerce__priced_purchases') }}
