"""Networks whose weights come from other libraries."""
