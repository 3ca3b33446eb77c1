-- Name, e-mail address, telephone, health and street stay in the raw table: nobody downstream
-- needs them.
select
    id as user_id,
    created_at as signed_up_at,
    age::integer as age,
    address ->> 'country_code' as country_code,
    updated_at
from {{ source('commerce_raw', 'users') }}
