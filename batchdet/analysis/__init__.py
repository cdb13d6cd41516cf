"""Questions asked of committed Parquet. Knows no model and no cluster."""
