select
    id as product_id,
    make,
    model,
    year::integer as model_year,
    price::numeric(12, 2) as price,
    created_at as listed_at,
    updated_at
from {{ source('commerce_raw', 'products') }}
