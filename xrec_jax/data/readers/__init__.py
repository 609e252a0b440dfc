"""Readers of event, item and user files: delimited text, RecBole atomic files and Parquet."""
