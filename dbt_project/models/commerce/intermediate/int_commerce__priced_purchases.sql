select
    purchases.purchase_id,
    purchases.user_id,
    purchases.product_id,
    purchases.added_to_cart_at,
    purchases.purchased_at,
    purchases.returned_at,
    products.product_id is not null as is_product_known,
    users.user_id is not null as is_user_known,
    coalesce(purchases.purchased_at < users.signed_up_at, false) as is_before_sign_up,
    products.price,
    case when purchases.purchased_at is not null then coalesce(products.price, 0) else 0 end
        as gross_revenue,
    case when purchases.returned_at is not null then coalesce(products.price, 0) else 0 end
        as refunded_revenue
from {{ ref('stg_commerce__purchases') }} as purchases
left join {{ ref('stg_commerce__products') }} as products using (product_id)
left join {{ ref('stg_commerce__users') }} as users using (user_id)
