"""The capacity calculator: how many users a site's machines carry (the paper's Capacity Planning and Message Load Profiling).

`site` is what the planner tells, `constants` the figures a forecast rests on, `forecast` the closed formulas, `simulate` a day
played message by message to check them, `paper` what the paper says of its own sites, `report` tables and the HTML page.
Units are the paper's: K, M and G are decimal.
"""
