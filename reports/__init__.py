"""What a run found, for people: tables on the terminal, one JSON document, one page.

    from reports import collect, page, parquet, tables
    run = collect.read("runs/quick")
    tables.leaderboard(run, limit=10)
    page.write(run, "quick.html")
    parquet.write(run)  # candidates.parquet and curves.parquet, for programs

Everything here is read from the journal of a run and can be made again at any time. Nothing trains
and nothing is written but the page and these two files. Neither torch nor ray is imported.
"""
