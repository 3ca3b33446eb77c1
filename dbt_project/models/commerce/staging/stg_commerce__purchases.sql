select
    id as purchase_id,
    user_id,
    product_id,
    created_at,
    added_to_cart_at,
    purchased_at,
    returned_at,
    updated_at
from {{ source('commerce_raw', 'purchases') }}
