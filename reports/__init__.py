"""What a run found, for people: tables on the terminal, one JSON document, one page.

    from reports import collect, page, tables
    run = collect.read("runs/quick")
    tables.leaderboard(run, limit=10)
    page.write(run, "quick.html")

Everything here is read from the journal of a run and can be made again at any time. Nothing trains
and nothing is written but the page. Neither torch nor ray is imported.
"""
