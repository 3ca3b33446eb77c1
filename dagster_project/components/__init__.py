"""What domains are made of: Dagster building blocks, each with a small YAML surface."""

from dagster_project.components.airbyte_connection import AirbyteConnection
from dagster_project.components.dbt_models import DbtModels
from dagster_project.components.expectation_suites import ExpectationSuites
from dagster_project.components.landing_feed import LandingFeed

__all__ = ["AirbyteConnection", "DbtModels", "ExpectationSuites", "LandingFeed"]
