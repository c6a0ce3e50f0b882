"""Parquet to numbers: views, pairing, one SQL source for each measure, summaries, export."""
