// A short program of node's mysql2: mysql_drivers.js DRIVER PORT [CA]. Prints what it saw, the same wherever it runs.
// With CA the driver uses TLS and verifies against it. The last line is "done".
const assert = require("node:assert");
const fs = require("node:fs");
const stream = require("node:stream");
const mysql = require("mysql2/promise");

const [driver, port, ca] = process.argv.slice(2);
const where = {
  host: "127.0.0.1",
  port: Number(port),
  user: "app",
  password: "app-password",
  database: "appdb",
  charset: "utf8mb4",
  supportBigNumbers: true,
  timezone: "Z",
  ...(ca ? { ssl: { ca: fs.readFileSync(ca), servername: "localhost" } } : {}),
};
const table = "drv_" + driver;

function say(label, ...values) {
  const plain = (key, value) => (value && value.type === "Buffer" ? Buffer.from(value.data).toString("hex") : value);
  console.log(label + ":", ...values.map((value) => JSON.stringify(value, plain)));
}

async function failing(work) {
  try {
    await work;
  } catch (error) {
    return [error.code, error.errno, error.sqlState];
  }
  throw new Error("it went through");
}

async function makeTable(connection) {
  await connection.query(`DROP TABLE IF EXISTS ${table}`);
  await connection.query(`CREATE TABLE ${table} (
    id int AUTO_INCREMENT PRIMARY KEY, n bigint, d decimal(12,4), f double, s varchar(40) UNIQUE, b blob, at datetime(6))`);
}

const rows = [
  [-5, "1234.5000", 0.1, "plain", Buffer.from([0, 1, 255, 39, 34, 92]), new Date(Date.UTC(2024, 1, 29, 23, 59, 59, 123))],
  [null, null, null, "null", null, null],
  [7, "-0.0001", -1e300, "žluťoučký 🐎", Buffer.alloc(0), null],
];

// `run` is query(), which sends text, or execute(), which prepares.
async function common(connection, run) {
  await makeTable(connection);
  for (const row of rows) {
    const [done] = await run(`INSERT INTO ${table} (n, d, f, s, b, at) VALUES (?, ?, ?, ?, ?, ?)`, row);
    say("inserted", done.affectedRows, done.insertId, done.warningStatus);
  }
  for (const id of [1, 2, 3, 1]) {
    const [found, columns] = await run(`SELECT * FROM ${table} WHERE id = ?`, [id]);
    say("row", found, columns.map((column) => [column.name, column.columnType]));
  }
  await connection.beginTransaction();
  await run(`UPDATE ${table} SET n = n + ? WHERE n IS NOT NULL`, [1]);
  await connection.rollback();
  await connection.beginTransaction();
  await run(`INSERT INTO ${table} (s) VALUES (?)`, ["kept"]);
  say("duplicate", await failing(run(`INSERT INTO ${table} (s) VALUES (?)`, ["plain"])));
  say("syntax", await failing(run("SELEC ?", [1])));
  say("no table", await failing(run("SELECT * FROM no_such_table WHERE id = ?", [1])));
  await connection.commit();
  say("kept", (await run(`SELECT n, s FROM ${table} ORDER BY id`, []))[0]);
  const [changed] = await run(`UPDATE ${table} SET n = ? WHERE s = ?`, [8, "kept"]);
  say("changed", changed.affectedRows, changed.changedRows, changed.info);
  say("last id", (await run("SELECT LAST_INSERT_ID() AS id", []))[0]);
  const [results] = await run("CALL two_js(?)", [2]);
  say("results", results);
}

async function text() {
  const connection = await mysql.createConnection({ ...where, multipleStatements: true });
  await connection.query("DROP PROCEDURE IF EXISTS two_js; CREATE PROCEDURE two_js(IN n int) BEGIN SELECT n; SELECT v FROM t WHERE id <= n ORDER BY id; END");
  await common(connection, (sql, values) => connection.query(sql, values));
  const [several] = await connection.query("SELECT 1 AS a; DO 1; SELECT 2 AS b");
  say("several", several);
  const infileStreamFactory = () => stream.Readable.from(["1,one line\n2,an", "other\n"].map((text) => Buffer.from(text)));
  const load = `LOAD DATA LOCAL INFILE 'lines' INTO TABLE ${table} FIELDS TERMINATED BY ',' (n, s)`;
  const [loaded] = await connection.query({ sql: load, infileStreamFactory });
  say("loaded", loaded.affectedRows, loaded.info);
  await connection.query("SET @mine = 5, SESSION sql_mode = ''");
  say("session", (await connection.query("SELECT @mine AS mine, @@sql_mode AS mode"))[0]);
  const [short] = await connection.query(`INSERT INTO ${table} (s) VALUES (repeat('y', 50))`);
  say("warned", short.warningStatus, (await connection.query("SHOW WARNINGS"))[0]);
  await connection.changeUser({ user: "app2", password: "app2-password", database: "otherdb", charset: "utf8mb4" });
  say("changed user", (await connection.query("SELECT current_user() AS who, database() AS db, @mine AS mine"))[0]);
  await connection.ping();
  await connection.end();
  const single = await mysql.createConnection(where);
  say("several", await failing(single.query("SELECT 1; SELECT 2")));
  await single.end();
}

async function prepared() {
  const connection = await mysql.createConnection(where);
  await connection.query("DROP PROCEDURE IF EXISTS two_js");
  await connection.query("CREATE PROCEDURE two_js(IN n int) BEGIN SELECT n; SELECT v FROM t WHERE id <= n ORDER BY id; END");
  await common(connection, (sql, values) => connection.execute(sql, values));
  const statement = await connection.prepare("SELECT v, ? AS n FROM t WHERE id = ?");
  for (let i = 0; i < 12; i++) {
    const [found] = await statement.execute([i, 1 + (i % 3)]);
    say("again", found);
  }
  await statement.close();
  connection.unprepare("SELEC ?");
  await connection.end();
}

async function pool() {
  const clients = mysql.createPool({ ...where, connectionLimit: 5 });
  const sums = await Promise.all(
    Array.from({ length: 40 }, (_, i) => (i % 2 ? clients.query("SELECT ? + 1 AS n", [i]) : clients.execute("SELECT ? + 1 AS n", [i]))),
  );
  sums.forEach(([found], i) => assert.strictEqual(Number(found[0].n), i + 1));
  say("sums", sums.length);
  const inside = await Promise.all(
    Array.from({ length: 10 }, async (_, i) => {
      const connection = await clients.getConnection();
      await connection.beginTransaction();
      await connection.query("INSERT INTO t (v) VALUES (?)", ["pool " + i]);
      const [[{ n }]] = await connection.query("SELECT count(*) AS n FROM t WHERE v = ?", ["pool " + i]);
      await connection.rollback();
      connection.release();
      return n;
    }),
  );
  say("inside", inside);
  await clients.end();
}

({ mysql2: text, mysql2_prepared: prepared, mysql2_pool: pool })[driver]()
  .then(() => console.log("done"))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
