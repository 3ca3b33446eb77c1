{{ config(indexes=[{'columns': ['product_id'], 'unique': true}]) }}

select
    product_id,
    make,
    model,
    model_year,
    price,
    listed_at
from {{ ref('stg_commerce__products') }}
