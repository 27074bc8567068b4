"""A driver's cycle again and again: cycles.py DRIVER PORT CYCLES CLIENTS. Prints "ok" at the end.

One cycle is connect, begin, select, insert, commit, close. So many clients do it side by side, each its share of the
cycles; every one of them reads what it has written.
"""

import asyncio
import concurrent.futures
import sys

driver, port, cycles, clients = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
host = "127.0.0.1"
where = dict(host=host, port=port, user="app", password="app-password")
SELECT = "SELECT v FROM t WHERE id = %s"
INSERT = "INSERT INTO t (v) VALUES (%s)"
AGAIN = "SELECT count(*) FROM t WHERE v = %s"


def check(found, wanted):
    assert found == wanted, f"{found!r} is not {wanted!r}"


def dbapi(connect, **options):
    def cycle(name):
        connection = connect()
        cursor = connection.cursor(**options)
        cursor.execute(SELECT, (1,))
        check([tuple(row) for row in cursor.fetchall()], [("one",)])
        cursor.execute(INSERT, (name,))
        cursor.execute(AGAIN, (name,))
        check(cursor.fetchall()[0][0], 1)
        connection.commit()
        cursor.close()
        connection.close()

    return cycle


def psycopg2_cycle():
    import psycopg2

    return dbapi(lambda: psycopg2.connect(dbname="appdb", **where))


def psycopg3_cycle(**options):
    import psycopg

    return dbapi(lambda: psycopg.connect(dbname="appdb", **where, **options))


def pymysql_cycle():
    import pymysql

    return dbapi(lambda: pymysql.connect(database="appdb", **where))


def mysqlclient_cycle():
    import MySQLdb

    return dbapi(lambda: MySQLdb.connect(database="appdb", charset="utf8mb4", **where))


def connector_cycle(pure, **options):
    import mysql.connector

    return dbapi(lambda: mysql.connector.connect(database="appdb", use_pure=pure, **where), **options)


def asyncpg_cycle():
    import asyncpg

    async def cycle(name):
        connection = await asyncpg.connect(database="appdb", **where)
        async with connection.transaction():
            check(await connection.fetchval("SELECT v FROM t WHERE id = $1", 1), "one")
            await connection.execute("INSERT INTO t (v) VALUES ($1)", name)
            check(await connection.fetchval("SELECT count(*) FROM t WHERE v = $1", name), 1)
        await connection.close()

    return cycle


def asyncpg_pool_cycle():
    import asyncpg

    # The pool is made once, and its connections go round.
    async def begin():
        return await asyncpg.create_pool(database="appdb", min_size=1, max_size=clients, **where)

    async def use(pool, name):
        async with pool.acquire() as connection, connection.transaction():
            check(await connection.fetchval("SELECT v FROM t WHERE id = $1", 1), "one")
            await connection.execute("INSERT INTO t (v) VALUES ($1)", name)
            check(await connection.fetchval("SELECT count(*) FROM t WHERE v = $1", name), 1)

    return begin, use


def mysql_async_cycle(module):
    async def cycle(name):
        connection = await module.connect(db="appdb", **where)
        async with connection.cursor() as cursor:
            await connection.begin()
            await cursor.execute(SELECT, (1,))
            check([tuple(row) for row in await cursor.fetchall()], [("one",)])
            await cursor.execute(INSERT, (name,))
            await cursor.execute(AGAIN, (name,))
            check((await cursor.fetchall())[0][0], 1)
            await connection.commit()
        await connection.ensure_closed()

    return cycle


def asyncmy_cycle():
    import asyncmy

    return mysql_async_cycle(asyncmy)


def aiomysql_cycle():
    import aiomysql

    return mysql_async_cycle(aiomysql)


def sqlalchemy_cycle(dialect, **options):
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool, QueuePool

    pooled = options.pop("pooled", False)
    if pooled:
        options |= dict(pool_size=clients, pool_pre_ping=True)
    url = f"{dialect}://app:app-password@{host}:{port}/appdb"
    engine = create_engine(url, poolclass=QueuePool if pooled else NullPool, **options)

    def cycle(name):
        with engine.begin() as connection:
            check(connection.execute(text("SELECT v FROM t WHERE id = :id"), {"id": 1}).scalar(), "one")
            connection.execute(text("INSERT INTO t (v) VALUES (:v)"), {"v": name})
            again = connection.execute(text("SELECT count(*) FROM t WHERE v = :v"), {"v": name})
            check(again.scalar(), 1)

    return cycle


def django_cycle(backend):
    from django.conf import settings

    database = dict(
        ENGINE=f"django.db.backends.{backend}",
        NAME="appdb",
        USER="app",
        PASSWORD="app-password",
        HOST=host,
        PORT=str(port),
    )
    settings.configure(DATABASES={"default": database}, INSTALLED_APPS=[], USE_TZ=True)
    import django

    django.setup()
    from django.db import connection, models, transaction

    class T(models.Model):
        v = models.TextField()

        class Meta:
            app_label = "cycles"
            db_table = "t"
            managed = False

    def cycle(name):
        with transaction.atomic():
            check(T.objects.get(id=1).v, "one")
            with transaction.atomic():
                T.objects.create(v=name)
            check(T.objects.filter(v=name).count(), 1)
        connection.close()

    return cycle


CYCLES = {
    "psycopg2": psycopg2_cycle,
    "psycopg3": psycopg3_cycle,
    "psycopg3_named": lambda: psycopg3_cycle(prepare_threshold=0),
    "asyncpg": asyncpg_cycle,
    "asyncpg_pool": asyncpg_pool_cycle,
    "sqlalchemy_psycopg2": lambda: sqlalchemy_cycle("postgresql+psycopg2"),
    "sqlalchemy_psycopg3": lambda: sqlalchemy_cycle("postgresql+psycopg"),
    "sqlalchemy_psycopg3_pool": lambda: sqlalchemy_cycle("postgresql+psycopg", pooled=True),
    "django_postgresql": lambda: django_cycle("postgresql"),
    "pymysql": pymysql_cycle,
    "mysqlclient": mysqlclient_cycle,
    "connector_pure": lambda: connector_cycle(True),
    "connector_pure_prepared": lambda: connector_cycle(True, prepared=True),
    "connector_c": lambda: connector_cycle(False),
    "asyncmy": asyncmy_cycle,
    "aiomysql": aiomysql_cycle,
    "sqlalchemy_pymysql": lambda: sqlalchemy_cycle("mysql+pymysql"),
    "sqlalchemy_mariadb_pool": lambda: sqlalchemy_cycle("mariadb+pymysql", pooled=True),
    "sqlalchemy_isolation": lambda: sqlalchemy_cycle("mysql+pymysql", isolation_level="READ COMMITTED"),
    "django_mysql": lambda: django_cycle("mysql"),
}


async def in_tasks(begin, use):
    shared = await begin()

    async def client(number):
        for n in range(number, cycles, clients):
            await use(shared, f"{driver} {n}")

    await asyncio.gather(*(client(number) for number in range(clients)))
    if shared is not None:
        await shared.close()


def in_threads(cycle):
    def client(number):
        for n in range(number, cycles, clients):
            cycle(f"{driver} {n}")

    with concurrent.futures.ThreadPoolExecutor(clients) as threads:
        for done in [threads.submit(client, number) for number in range(clients)]:
            done.result()


async def nothing():
    return None


made = CYCLES[driver]()
if isinstance(made, tuple):
    asyncio.run(in_tasks(*made))
elif asyncio.iscoroutinefunction(made):
    asyncio.run(in_tasks(nothing, lambda _, name: made(name)))
else:
    in_threads(made)
print("ok")
