"""One connect, transaction, commit, close cycle of a driver: drivers.py DRIVER PORT. Prints "ok" at the end."""

import asyncio
import sys

driver, port = sys.argv[1], int(sys.argv[2])
where = dict(host="127.0.0.1", port=port, user="app", password="app-password")


def check(found, wanted):
    assert found == wanted, f"{found!r} is not {wanted!r}"


def dbapi(connection):
    cursor = connection.cursor()
    cursor.execute("SELECT v FROM t WHERE id = %s", (1,))
    check(cursor.fetchall(), [("one",)])
    cursor.execute("INSERT INTO t (v) VALUES (%s) RETURNING v", (driver,))
    check(cursor.fetchall(), [(driver,)])
    connection.commit()
    cursor.execute("SELECT count(*) FROM t WHERE v = %s", (driver,))
    assert cursor.fetchone()[0] >= 1
    connection.rollback()
    cursor.execute("INSERT INTO t (v) VALUES ('rolled back')")
    connection.rollback()
    cursor.execute("SELECT count(*) FROM t WHERE v = 'rolled back'")
    check(cursor.fetchone()[0], 0)
    try:
        cursor.execute("SELECT 1 / 0")
        raise SystemExit("division by zero went through")
    except connection.DataError if hasattr(connection, "DataError") else Exception as error:
        check(getattr(error, "sqlstate", None) or error.pgcode, "22012")
    connection.rollback()
    cursor.close()
    connection.close()


def psycopg2_cycle():
    import psycopg2

    dbapi(psycopg2.connect(dbname="appdb", **where))


def psycopg3_cycle():
    import psycopg

    dbapi(psycopg.connect(dbname="appdb", **where))


def psycopg3_named_cycle():
    """From the sixth run of a query on, psycopg uses a named statement."""
    import psycopg

    for _ in range(2):
        connection = psycopg.connect(dbname="appdb", **where)
        for i in range(14):
            row = connection.execute("SELECT v, %s::int FROM t WHERE id = %s", (i, 1 + i % 3)).fetchone()
            check(row, (["one", "two", "three"][i % 3], i))
            if i % 2:
                connection.commit()
        connection.commit()
        connection.close()


def psycopg3_pipeline_cycle():
    import psycopg

    with psycopg.connect(dbname="appdb", autocommit=True, **where) as connection:
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int + 1", (i,)) for i in range(50)]
        check([cursor.fetchone()[0] for cursor in cursors], list(range(1, 51)))


async def asyncpg_cycle():
    import asyncpg

    connection = await asyncpg.connect(database="appdb", **where)
    check(await connection.fetchval("SELECT v FROM t WHERE id = $1", 1), "one")
    async with connection.transaction():
        check(await connection.fetchval("INSERT INTO t (v) VALUES ($1) RETURNING v", "asyncpg"), "asyncpg")
    check(await connection.fetchval("SELECT count(*) > 0 FROM t WHERE v = $1", "asyncpg"), True)
    try:
        await connection.fetchval("SELECT 1 / $1", 0)
        raise SystemExit("division by zero went through")
    except asyncpg.DivisionByZeroError:
        pass
    await connection.close()


async def asyncpg_pool_cycle():
    """A pool resets its connection at every release: advisory locks, cursors, LISTEN, settings."""
    import asyncpg

    pool = await asyncpg.create_pool(database="appdb", min_size=1, max_size=2, **where)
    for i in range(6):
        async with pool.acquire() as connection:
            check(await connection.fetchval("SELECT $1::int + 2", i), i + 2)
    await pool.close()


def psycopg2_listen():
    """As in its manual, "Asynchronous notifications"; one's own come with the answer."""
    import select

    import psycopg2

    listens, notifies = (psycopg2.connect(dbname="appdb", **where) for _ in range(2))
    for connection in listens, notifies:
        connection.autocommit = True
    cursor = listens.cursor()
    cursor.execute("LISTEN test")
    cursor.execute("NOTIFY test, 'own'")
    check([notify.payload for notify in listens.notifies], ["own"])
    listens.notifies.clear()
    notifies.cursor().execute("NOTIFY test, 'hello'")
    select.select([listens], [], [], 10)
    listens.poll()
    check([(notify.channel, notify.payload) for notify in listens.notifies], [("test", "hello")])
    listens.close()
    notifies.close()


def psycopg3_listen():
    import psycopg

    listens = psycopg.connect(dbname="appdb", autocommit=True, **where)
    notifies = psycopg.connect(dbname="appdb", autocommit=True, **where)
    listens.execute("LISTEN test")
    for i in range(10):
        notifies.execute("SELECT pg_notify('test', %s)", (str(i),))
    heard = listens.notifies(timeout=10, stop_after=10)
    check([notify.payload for notify in heard], [str(i) for i in range(10)])
    listens.close()
    notifies.close()


async def asyncpg_listen():
    import asyncpg

    listens = await asyncpg.connect(database="appdb", **where)
    notifies = await asyncpg.connect(database="appdb", **where)
    heard = asyncio.Queue()

    def note(connection, process, channel, payload):
        heard.put_nowait(payload)

    await listens.add_listener("test", note)
    for i in range(10):
        await notifies.execute("SELECT pg_notify('test', $1)", str(i))
    check([await asyncio.wait_for(heard.get(), 10) for _ in range(10)], [str(i) for i in range(10)])
    await listens.remove_listener("test", note)
    await notifies.execute("NOTIFY test")
    check(await listens.fetchval("SELECT 1"), 1)
    check(heard.empty(), True)
    await listens.close()
    await notifies.close()


cycles = {
    "psycopg2_listen": psycopg2_listen,
    "psycopg3_listen": psycopg3_listen,
    "asyncpg_listen": asyncpg_listen,
    "psycopg2": psycopg2_cycle,
    "psycopg3": psycopg3_cycle,
    "psycopg3_named": psycopg3_named_cycle,
    "psycopg3_pipeline": psycopg3_pipeline_cycle,
    "asyncpg": asyncpg_cycle,
    "asyncpg_pool": asyncpg_pool_cycle,
}
cycle = cycles[driver]
asyncio.run(cycle()) if asyncio.iscoroutinefunction(cycle) else cycle()
print("ok")
