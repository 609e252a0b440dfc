"""Human ratings: tables, raters, copies and summaries."""
