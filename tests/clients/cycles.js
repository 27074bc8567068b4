// A driver's cycle again and again: cycles.js DRIVER PORT CYCLES CLIENTS. Prints "ok" at the end.
//
// One cycle is connect, begin, select, insert, commit, close; of a pool it is borrow and give back. So many clients do
// it side by side, each its share of the cycles; every one of them reads what it has written.
const assert = require("node:assert");

const [driver, port, cycles, clients] = process.argv.slice(2).map((text, i) => (i ? Number(text) : text));
const where = { host: "127.0.0.1", port, user: "app", password: "app-password", database: "appdb" };

const numbered = { one: "SELECT v FROM t WHERE id = $1", insert: "INSERT INTO t (v) VALUES ($1)" };
const marked = { one: "SELECT v FROM t WHERE id = ?", insert: "INSERT INTO t (v) VALUES (?)" };
const again = { $: "SELECT count(*) AS n FROM t WHERE v = $1", "?": "SELECT count(*) AS n FROM t WHERE v = ?" };

const check = (rows, n) => {
  assert.strictEqual(rows[0].v, "one");
  assert.strictEqual(Number(n[0].n), 1);
};

// What a driver calls its statements; `run` gives rows.
async function transaction(run, texts, mark, name) {
  const rows = await run(texts.one, [1]);
  await run(texts.insert, [name]);
  check(rows, await run(again[mark], [name]));
}

async function pg(name) {
  const { Client } = require("pg");
  const client = new Client(where);
  await client.connect();
  await client.query("BEGIN");
  await transaction(async (text, values) => (await client.query(text, values)).rows, numbered, "$", name);
  await client.query("COMMIT");
  await client.end();
}

const pgPool = {
  begin: () => new (require("pg").Pool)({ ...where, max: clients }),
  async use(pool, name) {
    const client = await pool.connect();
    await client.query("BEGIN");
    await transaction(
      async (text, values) => (await client.query({ name: text.slice(0, 20), text, values })).rows,
      numbered,
      "$",
      name,
    );
    await client.query("COMMIT");
    client.release();
  },
  end: (pool) => pool.end(),
};

async function postgres(name) {
  const sql = require("postgres")({ ...where, max: 1 });
  await sql.begin((sql) => transaction((text, values) => sql.unsafe(text, values, { prepare: true }), numbered, "$", name));
  await sql.end();
}

async function mysql2(name, execute) {
  const connection = await require("mysql2/promise").createConnection(where);
  await connection.beginTransaction();
  const run = async (text, values) => (await connection[execute](text, values))[0];
  await transaction(run, marked, "?", name);
  await connection.commit();
  await connection.end();
}

const mysql2Pool = {
  begin: () => require("mysql2/promise").createPool({ ...where, connectionLimit: clients }),
  async use(pool, name) {
    const connection = await pool.getConnection();
    await connection.beginTransaction();
    await transaction(async (text, values) => (await connection.query(text, values))[0], marked, "?", name);
    await connection.commit();
    connection.release();
  },
  end: (pool) => pool.end(),
};

async function mariadb(name) {
  const connection = await require("mariadb").createConnection(where);
  await connection.beginTransaction();
  await transaction((text, values) => connection.query(text, values), marked, "?", name);
  await connection.commit();
  await connection.reset();
  await connection.end();
}

// An ORM is made once for each client, and its connections by it.
const knex = (client) => ({
  begin: () => require("knex")({ client, connection: where, pool: { min: 0, max: clients } }),
  use: (knex, name) =>
    knex.transaction(async (trx) => {
      const rows = await trx("t").where({ id: 1 });
      await trx("t").insert({ v: name });
      check(rows, await trx("t").where({ v: name }).count({ n: "*" }));
    }),
  end: (knex) => knex.destroy(),
});

const sequelize = (dialect) => ({
  begin() {
    const { Sequelize, DataTypes } = require("sequelize");
    const made = new Sequelize(where.database, where.user, where.password, {
      ...where,
      username: where.user,
      dialect,
      logging: false,
      pool: { max: clients },
    });
    const T = made.define("t", { v: DataTypes.TEXT }, { tableName: "t", timestamps: false });
    return { made, T };
  },
  use: ({ made, T }, name) =>
    made.transaction(async (transaction) => {
      const one = await T.findByPk(1, { transaction });
      await T.create({ v: name }, { transaction });
      check([one], [{ n: await T.count({ where: { v: name }, transaction }) }]);
    }),
  end: ({ made }) => made.close(),
});

const typeorm = (type) => ({
  async begin() {
    const { DataSource, EntitySchema } = require("typeorm");
    const columns = { id: { type: Number, primary: true, generated: true }, v: { type: "text" } };
    const T = new EntitySchema({ name: "t", tableName: "t", columns });
    const source = new DataSource({ ...where, username: where.user, type, poolSize: clients, entities: [T] });
    await source.initialize();
    return { source, T };
  },
  use: ({ source, T }, name) =>
    source.transaction(async (manager) => {
      const rows = await manager.findBy(T, { id: 1 });
      await manager.save(T, { v: name });
      check(rows, [{ n: await manager.countBy(T, { v: name }) }]);
    }),
  end: ({ source }) => source.destroy(),
});

const each = (cycle) => ({ begin: () => undefined, use: (_, name) => cycle(name), end: () => undefined });

const known = {
  pg: each(pg),
  pg_pool: pgPool,
  postgres: each(postgres),
  knex_pg: knex("pg"),
  sequelize_pg: sequelize("postgres"),
  typeorm_pg: typeorm("postgres"),
  mysql2: each((name) => mysql2(name, "query")),
  mysql2_prepared: each((name) => mysql2(name, "execute")),
  mysql2_pool: mysql2Pool,
  mariadb: each(mariadb),
  knex_mysql2: knex("mysql2"),
  sequelize_mysql2: sequelize("mysql"),
  typeorm_mysql2: typeorm("mysql"),
};

async function main() {
  const { begin, use, end } = known[driver];
  const shared = await begin();
  const client = async (number) => {
    for (let n = number; n < cycles; n += clients) {
      await use(shared, `${driver} ${n}`);
    }
  };
  await Promise.all(Array.from({ length: clients }, (_, number) => client(number)));
  await end(shared);
}

main()
  .then(() => console.log("ok"))
  .catch((error) => {
    console.error(error);
    process.exit(1);
  });
