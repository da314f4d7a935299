"""One self-contained HTML page from descriptions and result rows. Computes no metric, reads no trace."""
