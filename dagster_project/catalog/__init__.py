"""What DataHub is told of the platform. Its library is imported by those functions that need it."""

import os

# It reads this when it is imported; without it, it writes to the user's home and calls its maker.
os.environ.setdefault("DATAHUB_TELEMETRY_ENABLED", "false")
