"""Self-contained HTML pages from counted traces and from what commands wrote. Computes no metric."""
