"""The function of a serverless application, with the connection kept between invocations: lambda_mysql.py PORT.

The module connects once and every invocation uses that connection; TLS without verifying, two timeouts, and a fresh
connection where the old one has gone. Each line of standard input is an event: `count`, `add NAME`, `end` (cuts the
connection from behind, as a restart of the server would) or `sleep SECONDS`. Prints one JSON answer a line.
"""

import json
import os
import sys

import pymysql

os.environ.update(DB_HOST="127.0.0.1", DB_PORT=sys.argv[1], DB_USER="app", DB_PASSWORD="app-password", DB_NAME="appdb")
opened = 0


def connect():
    global opened
    opened += 1
    return pymysql.connect(
        host=os.environ["DB_HOST"],
        port=int(os.environ["DB_PORT"]),
        user=os.environ["DB_USER"],
        password=os.environ["DB_PASSWORD"],
        database=os.environ["DB_NAME"],
        connect_timeout=5,
        read_timeout=3,
        write_timeout=3,
        ssl={"ssl": True},
        cursorclass=pymysql.cursors.DictCursor,
    )


connection = connect()


def handler(event, context):
    global connection
    if event == "end":
        connection._force_close()
        return {"ended": True}
    try:
        connection.ping(reconnect=False)
    except pymysql.err.Error:
        connection = connect()
    with connection.cursor() as cursor:
        if event.startswith("add "):
            cursor.execute("INSERT INTO t (v) VALUES (%s)", (event[4:],))
            connection.commit()
            return {"added": cursor.rowcount}
        if event.startswith("sleep "):
            cursor.execute("SELECT SLEEP(%s) AS slept", (float(event[6:]),))
        else:
            cursor.execute("SELECT count(*) AS n FROM t")
        answer = cursor.fetchone()
    connection.commit()
    return answer


for line in sys.stdin:
    try:
        answer = handler(line.strip(), None)
    except pymysql.err.OperationalError as error:
        answer = {"error": error.args[0]}
    print(json.dumps({**answer, "opened": opened, "tls": connection._secure}), flush=True)
