"""Entry points for `ray job submit --working-dir . -- python -m jobs.NAME ...`; the same commands as `rlabel NAME`."""
