// One connect, transaction, commit, close cycle of a driver: drivers.js pg PORT. Prints "ok" at the end.
const assert = require("node:assert");
const { Client, Pool } = require("pg");

const [driver, port] = process.argv.slice(2);
const where = {
  host: "127.0.0.1",
  port: Number(port),
  user: "app",
  password: "app-password",
  database: "appdb",
};

async function single() {
  const client = new Client(where);
  await client.connect();
  const one = await client.query("SELECT v FROM t WHERE id = $1", [1]);
  assert.strictEqual(one.rows[0].v, "one");
  for (const id of [1, 2, 3]) {
    const named = await client.query({ name: "by-id", text: "SELECT v FROM t WHERE id = $1", values: [id] });
    assert.strictEqual(named.rows[0].v, ["one", "two", "three"][id - 1]);
  }
  await client.query("BEGIN");
  await client.query("INSERT INTO t (v) VALUES ($1)", ["node"]);
  await client.query("COMMIT");
  const kept = await client.query("SELECT count(*)::int AS n FROM t WHERE v = $1", ["node"]);
  assert.ok(kept.rows[0].n >= 1);
  await assert.rejects(client.query("SELECT 1 / $1::int", [0]), { code: "22012" });
  await client.end();
}

async function pool() {
  const clients = new Pool({ ...where, max: 5 });
  const sums = await Promise.all(
    Array.from({ length: 40 }, (_, i) => clients.query("SELECT $1::int + 1 AS n", [i])),
  );
  sums.forEach((sum, i) => assert.strictEqual(sum.rows[0].n, i + 1));
  await clients.end();
}

async function listen() {
  const [listens, notifies] = [new Client(where), new Client(where)];
  await Promise.all([listens.connect(), notifies.connect()]);
  const heard = [];
  const all = new Promise((resolve) => {
    listens.on("notification", ({ payload }) => heard.push(payload) === 10 && resolve());
  });
  await listens.query("LISTEN test");
  for (let i = 0; i < 10; i++) await notifies.query("SELECT pg_notify('test', $1)", [String(i)]);
  await all;
  assert.deepStrictEqual(heard, Array.from({ length: 10 }, (_, i) => String(i)));
  await Promise.all([listens.end(), notifies.end()]);
}

({ pg: single, pg_pool: pool, pg_listen: listen })[driver]()
  .then(() => console.log("ok"))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
