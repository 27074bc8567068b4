"""A short program of a MySQL driver: mysql_drivers.py DRIVER PORT [CA]. Prints what it saw, the same wherever it runs.

Nothing that may differ between two runs on the same data is printed: no version, no connection id, no clock. With CA
the driver uses TLS and verifies against it. The last line is "done".
"""

import asyncio
import datetime
import decimal
import logging
import os
import ssl
import sys
import tempfile

driver, port = sys.argv[1], int(sys.argv[2])
ca = sys.argv[3] if len(sys.argv) > 3 else None
where = dict(host="localhost", port=port, user="app", password="app-password")
table = "drv_" + driver

TABLE = f"""CREATE TABLE {table} (
    id bigint unsigned AUTO_INCREMENT PRIMARY KEY,
    n int,
    u bigint unsigned,
    d decimal(12,4),
    f double,
    s varchar(40) CHARACTER SET utf8mb4,
    b blob,
    at datetime(6),
    day date,
    took time,
    e enum('red', 'green'),
    UNIQUE KEY (s)
)"""
COLUMNS = "n, u, d, f, s, b, at, day, took, e"
ROWS = [
    (
        -5,
        2**64 - 1,
        decimal.Decimal("1234.5000"),
        0.1,
        "plain",
        b"\x00\x01\xff'\\\"\x1a",
        datetime.datetime(2024, 2, 29, 23, 59, 59, 123456),
        datetime.date(1999, 12, 31),
        datetime.timedelta(hours=11, minutes=5),
        "red",
    ),
    (None, None, None, None, "null", None, None, None, None, None),
    (7, 0, decimal.Decimal("-0.0001"), -1e300, "žluťoučký 🐎", b"", None, None, None, "green"),
]
# MariaDB's name and MySQL's.
ISOLATION = "SHOW VARIABLES WHERE variable_name IN ('tx_isolation', 'transaction_isolation')"
PROCEDURE = f"""CREATE PROCEDURE two_{driver}(IN n int)
BEGIN
    SELECT n AS one, 'x' AS letter;
    SELECT id FROM t WHERE id <= n ORDER BY id;
END"""


def say(label, *values):
    print(label + ":", *(show(value) for value in values), flush=True)


def show(value):
    """One form for what drivers give in several: tuples and lists, bytes and bytearrays, text and bytes of JSON."""
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(show(one) for one in value) + ")"
    if isinstance(value, (bytes, bytearray)):
        return repr(bytes(value))
    if isinstance(value, set):
        return "{" + ", ".join(sorted(show(one) for one in value)) + "}"
    return repr(value)


def file_to_load():
    """Lines for LOAD DATA LOCAL; the name differs from run to run and is not shown."""
    handle, path = tempfile.mkstemp(suffix=".csv")
    with os.fdopen(handle, "wb") as file:
        file.writelines(b"%d,loaded %d\n" % (i, i) for i in range(1000))
    return path


# A driver's program is a generator of statements, so that drivers with and without await run the same one.
# It yields (what, sql, parameters) and is sent what the driver made of it.


def program(mark="%s", local_file=True):
    marks = ", ".join([mark] * 10)
    yield "run", f"DROP TABLE IF EXISTS {table}", None
    yield "run", f"DROP PROCEDURE IF EXISTS two_{driver}", None
    yield "run", TABLE, None
    yield "run", PROCEDURE, None
    insert = f"INSERT INTO {table} ({COLUMNS}) VALUES ({marks})"
    for row in ROWS:
        say("inserted, id", *(yield "changed", insert, row))
    yield "commit", None, None
    say("columns", (yield "columns", f"SELECT id, {COLUMNS} FROM {table} ORDER BY id", None))
    for row in (yield "rows", f"SELECT id, {COLUMNS} FROM {table} ORDER BY id", None):
        say("row", row)
    say("found", (yield "rows", f"SELECT id FROM {table} WHERE n = {mark} AND s = {mark}", (7, ROWS[2][4])))
    say("same again", *(yield "changed", f"UPDATE {table} SET n = 7 WHERE n = {mark}", (7,)))
    say("changed", *(yield "changed", f"UPDATE {table} SET n = n + 1 WHERE n IS NOT NULL", None))
    yield "commit", None, None

    # Transactions.
    yield "run", f"DELETE FROM {table} WHERE id = 1", None
    say("inside", (yield "rows", f"SELECT count(*) FROM {table}", None))
    yield "rollback", None, None
    say("rolled back", (yield "rows", f"SELECT count(*) FROM {table}", None))
    yield "run", f"INSERT INTO {table} (s) VALUES ('before')", None
    yield "run", "SAVEPOINT here", None
    yield "run", f"INSERT INTO {table} (s) VALUES ('behind')", None
    yield "run", "ROLLBACK TO SAVEPOINT here", None
    yield "commit", None, None
    say("savepoint", (yield "rows", f"SELECT s FROM {table} WHERE s LIKE 'be%' ORDER BY s", None))

    # Errors leave the connection and the transaction as they are.
    yield "run", f"INSERT INTO {table} (s) VALUES ('kept')", None
    say("duplicate", (yield "error", f"INSERT INTO {table} (s) VALUES ({mark})", ("plain",)))
    say("syntax", (yield "error", "SELEC 1", None))
    say("no table", (yield "error", "SELECT * FROM no_such_table", None))
    say("no column", (yield "error", f"SELECT nothing FROM {table}", None))
    say("too long", (yield "error", f"INSERT INTO {table} (s) VALUES ({mark})", ("x" * 41,)))
    say("signal", (yield "error", "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'ours', MYSQL_ERRNO = 5000", None))
    yield "commit", None, None
    say("kept", (yield "rows", f"SELECT s FROM {table} WHERE s = 'kept'", None))

    # What a session remembers.
    yield "run", f"INSERT INTO {table} (s) VALUES ('numbered')", None
    say("last id", (yield "rows", "SELECT LAST_INSERT_ID()", None))
    yield "rows", f"SELECT SQL_CALC_FOUND_ROWS id FROM {table} LIMIT 1", None
    say("found rows", (yield "rows", "SELECT FOUND_ROWS()", None))
    yield "run", f"UPDATE {table} SET n = 100 WHERE s IN ('kept', 'numbered')", None
    say("row count", (yield "rows", "SELECT ROW_COUNT()", None))
    yield "commit", None, None
    yield "run", "SET @mine = 40 + 2", None
    say("variable", (yield "rows", "SELECT @mine", None))
    yield "run", "SET SESSION sql_mode = '', time_zone = '+05:30', group_concat_max_len = 10", None
    say("settings", (yield "rows", "SELECT @@sql_mode, @@time_zone, @@group_concat_max_len", None))
    say("their effect", (yield "rows", "SELECT from_unixtime(0), group_concat(v ORDER BY id) FROM t", None))
    yield "run", f"INSERT INTO {table} (n, s) VALUES ('7x', '{'y' * 50}')", None
    say("warnings", (yield "rows", "SHOW WARNINGS", None))
    yield "commit", None, None
    yield "run", "CREATE TEMPORARY TABLE passing (n int)", None
    yield "run", "INSERT INTO passing VALUES (1), (2)", None
    say("temporary", (yield "rows", "SELECT sum(n) FROM passing", None))
    yield "run", "DROP TEMPORARY TABLE passing", None
    yield "commit", None, None
    say("lock", (yield "rows", f"SELECT GET_LOCK('{table}', 5), IS_USED_LOCK('{table}') = CONNECTION_ID()", None))
    say("unlock", (yield "rows", f"SELECT RELEASE_LOCK('{table}')", None))
    yield "run", "USE otherdb", None
    say("database", (yield "rows", "SELECT database(), count(*) FROM t", None))
    yield "run", "USE appdb", None

    # Several results, many rows, a file.
    for number, rows in enumerate((yield "call", f"two_{driver}", (2,))):
        say(f"result {number}", rows)
    if local_file:
        path = file_to_load()
        load = f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE {table} FIELDS TERMINATED BY ',' (n, s)"
        say("loaded", *(yield "changed", load, None))
        os.unlink(path)
    else:
        many = ", ".join(f"({i}, 'loaded {i}')" for i in range(1000))
        say("loaded", *(yield "changed", f"INSERT INTO {table} (n, s) VALUES {many}", None))
    yield "commit", None, None
    many = yield "rows", f"SELECT a.s, b.s FROM {table} a, {table} b WHERE a.s LIKE 'loaded 1%' AND b.n < 100", None
    say("many", len(many), len({row[0] for row in many}))
    big = "ř" * 150_000
    say("long text", (yield "rows", f"SELECT length({mark}), right({mark}, 2)", (big, big)))
    yield "commit", None, None


def error_of(error):
    """Class, number and state, where the driver tells it; the number of an error is its first argument or `errno`."""
    number = getattr(error, "errno", None) or error.args[0]
    return type(error).__name__, number, getattr(error, "sqlstate", None)


def columns_of(description):
    return [(column[0], column[1]) for column in description]


def dbapi(connection, mark="%s", **options):
    import inspect

    cursor = connection.cursor(**options)

    def step(what, sql, parameters):
        if what in ("commit", "rollback"):
            return getattr(connection, what)()
        if what == "error":
            try:
                cursor.execute(sql, parameters) if parameters else cursor.execute(sql)
                raise SystemExit(f"{sql} went through")
            except Exception as error:
                return error_of(error)
        if what == "call":
            return call(sql, parameters)
        cursor.execute(sql, parameters) if parameters else cursor.execute(sql)
        if what == "rows":
            return cursor.fetchall()
        if what == "columns":
            found = columns_of(cursor.description)
            cursor.fetchall()
            return found
        return (cursor.rowcount, cursor.lastrowid) if what == "changed" else None

    def call(name, parameters):
        other = connection.cursor()
        results = []
        if hasattr(other, "stored_results"):
            other.callproc(name, parameters)
            results = [result.fetchall() for result in other.stored_results()]
        else:
            other.execute(f"CALL {name}({parameters[0]})")
            while True:
                if other.description:
                    results.append(other.fetchall())
                if not other.nextset():
                    break
        other.close()
        return results

    running = program(mark)
    answer = None
    try:
        while True:
            answer = step(*running.send(answer))
    except StopIteration:
        pass
    assert inspect.getgeneratorstate(running) == inspect.GEN_CLOSED
    cursor.close()


def pymysql_program():
    import pymysql
    import pymysql.cursors

    connection = pymysql.connect(database="appdb", local_infile=True, **where, **ssl_options(ca=ca))
    dbapi(connection)
    with connection.cursor() as cursor:
        say("many at once", cursor.executemany(f"INSERT INTO {table} (s) VALUES (%s)", [("m1",), ("m2",), ("m3",)]))
    with connection.cursor(pymysql.cursors.SSDictCursor) as cursor:
        cursor.execute(f"SELECT n, s FROM {table} ORDER BY id")
        say("streamed", cursor.fetchone(), sum(1 for _ in cursor))
    connection.ping()
    connection.select_db("otherdb")
    connection.commit()
    connection.close()
    # Several statements in one text only for who asked for it.
    for flag in (0, pymysql.constants.CLIENT.MULTI_STATEMENTS):
        connection = pymysql.connect(database="appdb", client_flag=flag, **where, **ssl_options(ca=ca))
        cursor = connection.cursor()
        try:
            cursor.execute("SELECT 1; SELECT 2")
            say("several", cursor.fetchall(), cursor.nextset(), cursor.fetchall(), cursor.nextset())
        except pymysql.err.ProgrammingError as error:
            say("several", error_of(error))
        connection.close()
    # Rows that were found, or rows that were changed.
    for flag in (0, pymysql.constants.CLIENT.FOUND_ROWS):
        connection = pymysql.connect(database="appdb", client_flag=flag, **where, **ssl_options(ca=ca))
        say("affected", connection.cursor().execute("UPDATE t SET v = v WHERE id < 3"))
        connection.close()
    try:
        pymysql.connect(database="appdb", **{**where, "password": "wrong"}, **ssl_options(ca=ca))
    except pymysql.err.OperationalError as error:
        say("wrong password", error.args[0])
    try:
        pymysql.connect(database="nodb", **where, **ssl_options(ca=ca))
    except pymysql.err.OperationalError as error:
        say("no database", error.args[0])


def pymysql_blob_program():
    """Values on both sides of the longest packet, there and back."""
    import hashlib

    import pymysql

    connection = pymysql.connect(database="appdb", autocommit=True, **where, **ssl_options(ca=ca))
    cursor = connection.cursor()
    cursor.execute(f"DROP TABLE IF EXISTS {table}")
    cursor.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, b longblob)")
    for size in (1 << 20, (1 << 24) - 100, 20 << 20):
        blob = hashlib.shake_128(str(size).encode()).digest(size)
        say("stored", size, cursor.execute(f"INSERT INTO {table} VALUES (%s, _binary %s)", (size, blob)))
        cursor.execute(f"SELECT b, md5(b) FROM {table} WHERE id = %s", (size,))
        (back, digest), = cursor.fetchall()
        say("same", back == blob, digest == hashlib.md5(blob).hexdigest())
    cursor.execute(f"SELECT id, b, id FROM {table} ORDER BY id")
    say("all", [(one, len(blob), two) for one, blob, two in cursor.fetchall()])
    connection.close()


def mysqlclient_program():
    import MySQLdb
    import MySQLdb.cursors

    options = ssl_options(ca=ca)
    connection = MySQLdb.connect(
        host="127.0.0.1", port=port, user="app", password="app-password", database="appdb", charset="utf8mb4",
        local_infile=1, **options
    )
    dbapi(connection)
    cursor = connection.cursor(MySQLdb.cursors.SSCursor)
    cursor.execute(f"SELECT n, s FROM {table} ORDER BY id")
    say("streamed", cursor.fetchone(), sum(1 for _ in cursor))
    cursor.close()
    connection.ping()
    say("autocommit", connection.get_autocommit())
    connection.autocommit(True)
    say("autocommit", connection.get_autocommit())
    connection.change_user("app2", "app2-password", "otherdb")
    cursor = connection.cursor()
    cursor.execute("SELECT current_user(), database(), @mine")
    say("changed user", cursor.fetchall())
    connection.close()


def connector(pure, prepared=False):
    import mysql.connector
    from mysql.connector.constants import ClientFlag

    options = dict(ssl_ca=ca, ssl_verify_cert=True) if ca else dict(ssl_disabled=True)
    connection = mysql.connector.connect(
        database="appdb", use_pure=pure, allow_local_infile=True, charset="utf8mb4", collation="utf8mb4_general_ci",
        client_flags=[ClientFlag.LOCAL_FILES], **where, **options
    )
    if prepared:
        connector_prepared(connection)
    else:
        dbapi(connection)
    cursor = connection.cursor(buffered=False)
    cursor.execute("SELECT id, v FROM t ORDER BY id LIMIT 3")
    say("streamed", cursor.fetchone(), len(cursor.fetchall()))
    connection.commit()
    connection.ping()
    connection.cmd_reset_connection()
    cursor.execute("SELECT @mine, @@sql_mode <> ''")
    say("reset", cursor.fetchall())
    connection.cmd_change_user("app2", "app2-password", "otherdb")
    cursor.execute("SELECT current_user(), database()")
    say("changed user", cursor.fetchall())
    connection.close()


def connector_prepared(connection):
    """Prepared cursors keep one statement for as long as the text stays the same."""
    cursor = connection.cursor(prepared=True)
    plain = connection.cursor()
    plain.execute(f"DROP TABLE IF EXISTS {table}")
    plain.execute(TABLE)
    marks = ", ".join(["%s"] * 10)
    for row in ROWS:
        # The C extension has no parameters of 2^63 and more, nor floats beyond single precision.
        row = (row[0], row[1] and 2**63 - 1, row[2], row[3] and 0.5, *row[4:])
        cursor.execute(f"INSERT INTO {table} ({COLUMNS}) VALUES ({marks})", row)
        say("inserted, id", cursor.rowcount, cursor.lastrowid)
    connection.commit()
    for i in (1, 2, 3, 1):
        cursor.execute(f"SELECT id, {COLUMNS} FROM {table} WHERE id = %s", (i,))
        for row in cursor.fetchall():
            say("row", row)
    two = connection.cursor(prepared=True)
    for i in range(20):
        two.execute("SELECT %s + id FROM t WHERE id = %s", (i, 1 + i % 3))
        say("sum", two.fetchall())
        if i % 3 == 0:
            connection.commit()
    for sql, parameters in [
        (f"INSERT INTO {table} (s) VALUES (%s)", ("plain",)),
        ("SELEC %s", (1,)),
        ("SELECT * FROM no_such_table WHERE id = %s", (1,)),
    ]:
        try:
            cursor.execute(sql, parameters)
            raise SystemExit(f"{sql} went through")
        except Exception as error:
            say("error", error_of(error))
    cursor.execute(f"DELETE FROM {table} WHERE s = %s", ("plain",))
    connection.rollback()
    cursor.execute(f"SELECT count(*) FROM {table} WHERE s = %s", ("plain",))
    say("rolled back", cursor.fetchall())
    blob = bytes(range(256)) * 1000
    cursor.execute("SELECT length(%s), md5(%s) = md5(%s)", (blob, blob, blob))
    say("blob", cursor.fetchall())
    connection.commit()
    two.close()
    cursor.close()


async def asyncmy_program():
    import asyncmy

    options = dict(ssl=ssl.create_default_context(cafile=ca)) if ca else {}
    connection = await asyncmy.connect(db="appdb", charset="utf8mb4", local_infile=True, **where, **options)
    async with connection.cursor() as cursor:

        async def step(what, sql, parameters):
            if what in ("commit", "rollback"):
                return await getattr(connection, what)()
            if what == "error":
                try:
                    await cursor.execute(sql, parameters)
                    raise SystemExit(f"{sql} went through")
                except Exception as error:
                    return error_of(error)
            if what == "call":
                await cursor.execute(f"CALL {sql}({parameters[0]})")
                results = [await cursor.fetchall()]
                while await cursor.nextset():
                    if cursor.description:
                        results.append(await cursor.fetchall())
                return results
            await cursor.execute(sql, parameters)
            if what == "rows":
                return await cursor.fetchall()
            if what == "columns":
                return columns_of(cursor.description)
            return (cursor.rowcount, cursor.lastrowid) if what == "changed" else None

        # asyncmy itself cannot read the name of the file.
        running = program(local_file=False)
        answer = None
        try:
            while True:
                answer = await step(*running.send(answer))
        except StopIteration:
            pass
    await connection.ping()
    await connection.ensure_closed()
    pool = await asyncmy.create_pool(db="appdb", minsize=1, maxsize=3, autocommit=True, **where, **options)

    async def one(i):
        async with pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute("SELECT %s + 1, (SELECT v FROM t WHERE id = %s)", (i, 1 + i % 3))
            return await cursor.fetchone()

    say("pool", await asyncio.gather(*(one(i) for i in range(20))))
    pool.close()
    await pool.wait_closed()


def sqlalchemy_program():
    from sqlalchemy import (
        BigInteger, Column, DateTime, Integer, LargeBinary, MetaData, Numeric, String, Table, create_engine, func,
        insert, inspect, select, text,
    )
    from sqlalchemy.exc import IntegrityError
    from sqlalchemy.orm import Session, declarative_base

    url = f"mysql+pymysql://app:app-password@localhost:{port}/appdb?charset=utf8mb4"
    engine = create_engine(url, pool_size=2, pool_pre_ping=True, connect_args=ssl_options(ca=ca))
    metadata = MetaData()
    things = Table(
        table, metadata,
        Column("id", Integer, primary_key=True), Column("s", String(40), unique=True),
        Column("price", Numeric(12, 4)), Column("b", LargeBinary), Column("at", DateTime), Column("big", BigInteger),
        mysql_charset="utf8mb4",
    )
    metadata.drop_all(engine)
    metadata.create_all(engine)
    say("tables", table in inspect(engine).get_table_names(), [c["name"] for c in inspect(engine).get_columns(table)])
    with engine.begin() as connection:
        row = dict(s="one 🐎", price=decimal.Decimal("1.5"), b=b"\x00\xff", at=ROWS[0][6].replace(microsecond=0), big=-(2**62))
        say("key", connection.execute(insert(things).values(**row)).inserted_primary_key[0])
        connection.execute(insert(things), [dict(s=f"many {i}", big=i) for i in range(50)])
    with engine.connect() as connection:
        say("row", tuple(connection.execute(select(things).where(things.c.id == 1)).one()))
        say("count", connection.execute(select(func.count()).select_from(things)).scalar())
        connection.execute(things.delete())
        connection.rollback()
        say("rolled back", connection.execute(select(func.sum(things.c.big))).scalar())
    try:
        with engine.begin() as connection:
            connection.execute(insert(things).values(s="nested"))
            try:
                with connection.begin_nested():
                    connection.execute(insert(things).values(s="many 1"))
            except IntegrityError as error:
                say("duplicate", error.orig.args[0])
            raise LookupError
    except LookupError:
        pass
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        say("isolation", connection.execute(text(ISOLATION)).one()[1])
    with engine.connect() as connection:
        say("isolation", connection.execute(text(ISOLATION)).one()[1])
        say("nested", connection.execute(select(func.count()).where(things.c.s == "nested")).scalar())
        stream = connection.execution_options(stream_results=True, yield_per=7).execute(select(things.c.big))
        say("streamed", sum(row[0] or 0 for row in stream))
    Base = declarative_base()

    class Thing(Base):
        __tablename__ = table
        id = Column(Integer, primary_key=True)
        s = Column(String(40))
        big = Column(BigInteger)

    with Session(engine) as session:
        thing = Thing(s="by the mapper", big=5)
        session.add(thing)
        session.flush()
        say("mapped", thing.id)
        thing.big = 6
        session.commit()
        say("again", session.get(Thing, thing.id).big)
    engine.dispose()


def django_program():
    import django
    from django.conf import settings

    options = {"charset": "utf8mb4", **ssl_options(ca=ca)}
    database = dict(
        ENGINE="django.db.backends.mysql", NAME="appdb", USER="app", PASSWORD="app-password", HOST="127.0.0.1",
        PORT=str(port), OPTIONS=options, CONN_MAX_AGE=None,
    )
    settings.configure(DATABASES={"default": database}, USE_TZ=True, TIME_ZONE="UTC", DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
    django.setup()
    from django.db import IntegrityError, connection, models, transaction

    class Author(models.Model):
        name = models.CharField(max_length=40, unique=True)

        class Meta:
            app_label = "app"
            db_table = table + "_author"

    class Book(models.Model):
        author = models.ForeignKey(Author, on_delete=models.CASCADE)
        title = models.CharField(max_length=100)
        price = models.DecimalField(max_digits=8, decimal_places=2)
        at = models.DateTimeField()
        data = models.JSONField(null=True)
        raw = models.BinaryField(null=True)

        class Meta:
            app_label = "app"
            db_table = table + "_book"

    with connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {table}_book")
        cursor.execute(f"DROP TABLE IF EXISTS {table}_author")
    with connection.schema_editor() as editor:
        editor.create_model(Author)
        editor.create_model(Book)
    at = datetime.datetime(2024, 2, 29, 12, 0, 0, 5, tzinfo=datetime.timezone.utc)
    with transaction.atomic():
        author = Author.objects.create(name="Božena 🐎")
        book = Book.objects.create(author=author, title="one", price="12.50", at=at, data={"a": [1, "ž"]}, raw=b"\x00\xff")
        Book.objects.bulk_create(Book(author=author, title=f"b{i}", price=i, at=at) for i in range(30))
    book.refresh_from_db()
    say("book", book.id, book.title, book.price, book.at, book.data, bytes(book.raw), book.author.name)
    say("sum", Book.objects.aggregate(models.Sum("price"), models.Count("id")))
    say("json", Book.objects.filter(data__a__1="ž").count())
    try:
        with transaction.atomic():
            Author.objects.create(name="lost")
            try:
                with transaction.atomic():
                    Author.objects.create(name="Božena 🐎")
            except IntegrityError as error:
                say("duplicate", error.args[0])
            raise LookupError
    except LookupError:
        pass
    say("lost", Author.objects.filter(name="lost").exists())
    say("made", Author.objects.get_or_create(name="Karel")[1], Author.objects.get_or_create(name="Karel")[1])
    with transaction.atomic():
        say("locked", list(Book.objects.select_for_update().filter(price__lt=3).order_by("id").values_list("title", "price")))
    say("updated", Book.objects.filter(price__gte=10).update(price=models.F("price") + 1))
    say("joined", list(Book.objects.values_list("author__name").annotate(n=models.Count("id"))))
    say("streamed", sum(1 for _ in Book.objects.iterator(chunk_size=7)))
    say("deleted", Book.objects.filter(price__gt=5).delete()[0])
    connection.close()
    say("again", Author.objects.count())
    connection.close()


def ssl_options(ca):
    return {"ssl": {"ca": ca}} if ca else {}

# What a session sets up, and what it must see of that later; in between another session looks at its own state.
STATE = [
    ("SET @x = 1", "SELECT @x"),
    ("SET @x = 'a\\'b;c', @y = 2.5", "SELECT @x, @y"),
    ("SET @z = @x", "SELECT @z"),
    ("SELECT 7 INTO @i", "SELECT @i"),
    ("SELECT @k := 9", "SELECT @k"),
    ("SET SESSION time_zone = '+03:00'", "SELECT @@time_zone, from_unixtime(0)"),
    ("SET sql_mode = 'NO_BACKSLASH_ESCAPES'", "SELECT 'a\\b'"),
    ("SET sql_mode = DEFAULT", "SELECT @@sql_mode"),
    ("SET group_concat_max_len = 5", f"SELECT group_concat(v ORDER BY id) FROM {table}"),
    ("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", "SELECT @@tx_isolation"),
    ("SET SESSION TRANSACTION READ ONLY", "SELECT @@tx_read_only"),
    ("SET SESSION TRANSACTION READ WRITE", "SELECT @@tx_read_only"),
    ("SET NAMES utf8mb4 COLLATE utf8mb4_bin", "SELECT @@collation_connection"),
    ("SET CHARACTER SET latin1", "SELECT @@character_set_client, @@character_set_results"),
    ("SET NAMES utf8mb4", "SELECT @@character_set_client, @@collation_connection"),
    ("USE information_schema", "SELECT database()"),
    ("USE appdb", "SELECT database()"),
    ("SET autocommit = 0", "SELECT @@autocommit"),
    ("SET autocommit = 1", "SELECT @@autocommit"),
    ("PREPARE st FROM 'SELECT 5'", "EXECUTE st"),
    ("DEALLOCATE PREPARE st", "EXECUTE st"),
    ("CREATE TEMPORARY TABLE tmp1 (a int)", "SELECT count(*) FROM tmp1"),
    ("DROP TEMPORARY TABLE tmp1", "SELECT count(*) FROM tmp1"),
    ("SELECT get_lock('k', 0)", "SELECT is_used_lock('k') IS NOT NULL, is_free_lock('k')"),
    ("SELECT release_lock('k')", "SELECT is_free_lock('k')"),
    ("SET timestamp = 1000", "SELECT now() = from_unixtime(1000)"),
    ("SET timestamp = DEFAULT", "SELECT now() = from_unixtime(1000)"),
    ("SET last_insert_id = 77", "SELECT last_insert_id()"),
    (f"INSERT INTO {table} (v) VALUES ('li')", "SELECT last_insert_id(), row_count()"),
    (f"SELECT sql_calc_found_rows id FROM {table} ORDER BY id LIMIT 1", "SELECT found_rows()"),
    ("SELECT 1 / 0", "SHOW WARNINGS"),
    ("SET sql_select_limit = 1", f"SELECT id FROM {table} ORDER BY id"),
    ("SET sql_select_limit = DEFAULT", f"SELECT count(*) FROM {table}"),
    ("SET foreign_key_checks = 0, unique_checks = 0", "SELECT @@foreign_key_checks, @@unique_checks"),
    ("SET max_statement_time = 3.5", "SELECT @@max_statement_time"),
    ("SET @@session.wait_timeout = 100", "SELECT @@wait_timeout"),
    ("FLUSH TABLES WITH READ LOCK", "SELECT 1"),
    ("UNLOCK TABLES", "SELECT 1"),
    (f"HANDLER {table} OPEN", f"HANDLER {table} READ FIRST"),
    (f"HANDLER {table} CLOSE", f"HANDLER {table} READ FIRST"),
    ("BEGIN", f"INSERT INTO {table} (v) VALUES ('x')"),
    ("ROLLBACK", f"SELECT count(*) FROM {table} WHERE v = 'x'"),
    ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT 1"),
    ("START TRANSACTION", "SELECT @@in_transaction"),
    ("COMMIT", "SELECT @@in_transaction"),
    ("XA START 'x1'", "SELECT 1"),
    ("XA END 'x1'", "SELECT 1"),
    ("XA ROLLBACK 'x1'", "SELECT 1"),
    (f"LOCK TABLES {table} READ", f"INSERT INTO {table} (v) VALUES ('no')"),
    ("UNLOCK TABLES", "SELECT 2"),
]
OWN_STATE = [
    "SELECT @x, @y, @z, @i, @k",
    "SELECT @@time_zone, @@sql_mode, @@group_concat_max_len, @@tx_isolation, @@tx_read_only",
    "SELECT @@character_set_client, @@collation_connection, database(), @@autocommit, @@in_transaction",
    "SELECT @@last_insert_id, @@sql_select_limit, @@foreign_key_checks, @@wait_timeout, @@max_statement_time",
    "EXECUTE st",
    "SELECT 1 FROM tmp1",
    "SHOW WARNINGS",
]
# What MySQL calls them.
IN_MYSQL = {
    "@@tx_": "@@transaction_",
    "max_statement_time = 3.5": "max_execution_time = 3500",
    "@@max_statement_time": "@@max_execution_time",
    ", @@in_transaction": "",
}


def pymysql_state_program():
    import pymysql

    def connect():
        options = ssl_options(ca) if ca else {}
        return pymysql.connect(database="appdb", charset="utf8mb4", autocommit=True, **where, **options)

    def see(connection, text):
        if "MariaDB" not in connection.get_server_info():
            for here, there in IN_MYSQL.items():
                text = text.replace(here, there)
        try:
            with connection.cursor() as cursor:
                cursor.execute(text)
                return cursor.fetchall()
        except pymysql.Error as error:
            return error.args

    one, other = connect(), connect()
    see(one, f"DROP TABLE IF EXISTS {table}")
    see(one, f"CREATE TABLE {table} (id int AUTO_INCREMENT PRIMARY KEY, v varchar(20))")
    see(one, f"INSERT INTO {table} (v) VALUES ('one'), ('two'), ('three')")
    for first, later in STATE:
        say("state", first, see(one, first))
        for text in OWN_STATE:
            say("other", text, see(other, text))
        say("later", later, see(one, later))
    one.close()
    other.close()


programs = {
    "pymysql": pymysql_program,
    "pymysql_blob": pymysql_blob_program,
    "pymysql_state": pymysql_state_program,
    "mysqlclient": mysqlclient_program,
    "connector_pure": lambda: connector(pure=True),
    "connector_c": lambda: connector(pure=False),
    "connector_pure_prepared": lambda: connector(pure=True, prepared=True),
    "connector_c_prepared": lambda: connector(pure=False, prepared=True),
    "asyncmy": asyncmy_program,
    "sqlalchemy": sqlalchemy_program,
    "django": django_program,
}
if __name__ == "__main__":
    logging.disable()  # asyncmy shows a statement's warnings this way
    chosen = programs[driver]
    asyncio.run(chosen()) if asyncio.iscoroutinefunction(chosen) else chosen()
    print("done")
