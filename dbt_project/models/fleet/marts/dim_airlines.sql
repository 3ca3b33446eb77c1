{{ config(indexes=[{'columns': ['carrier_code'], 'unique': true}]) }}

select
    carrier_code,
    carrier_name
from {{ ref('stg_fleet__airlines') }}
