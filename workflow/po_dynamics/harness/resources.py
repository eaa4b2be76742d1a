def of(m, s, c):
    return {"gpu": 0, "mem_mb": 3000, "runtime": 30}
