"""The search: what to propose, what to spend on it, where it runs, and the ledger of everything.

Reading order: config, funnel, pool, algorithms/jozefowicz, loop, journal, executor, cluster,
launch, cli. Importing this package imports neither torch nor ray.
"""
