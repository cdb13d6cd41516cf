"""URLs, bytes and Parquet. Has never heard of torch or Ray."""
