"""Bytes to detections. Has never heard of S3, Parquet or Ray."""
