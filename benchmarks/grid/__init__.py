"""The grid: every domain, student size, method and seed, taught alike and compared.

`methods` and `domains` say what is compared, `jobs` what has to be done for it and in which order,
`teach` does one job in a process of its own, `runner` runs them side by side, `store` keeps the
rows, `summary` and `statistics` make figures of them, `table` and `diagram` show these.
"""
