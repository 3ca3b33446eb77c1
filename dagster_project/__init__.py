"""A data mesh on Dagster: domains that own their data products, on one self-service platform."""
