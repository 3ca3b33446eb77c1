"""What is done for a release before it runs: its databases migrated, its surroundings checked."""
