//! `mysql_async` with the helpers that tests read well with.

use std::{fmt::Debug, str::FromStr};

use mysql_async::{
    Conn, Error, OptsBuilder, Params, Row, ServerError, SslOpts, TxOpts, Value, prelude::Queryable,
};
use tokio::sync::{Mutex, MutexGuard};

use crate::{Address, SOON};

/// One connection. Its own methods use the text protocol unless they say otherwise; [`Self::conn`] gives the rest.
pub struct MySqlClient {
    conn: Mutex<Conn>,
}

impl MySqlClient {
    /// Connects and logs in. The driver asks the server nothing at connect.
    pub async fn connect(address: &Address) -> Result<Self, Error> {
        Self::connect_with(address, |options| options).await
    }

    /// [`Self::connect`] with more settings.
    pub async fn connect_with(
        address: &Address,
        adjust: impl FnOnce(OptsBuilder) -> OptsBuilder,
    ) -> Result<Self, Error> {
        // It would read @@socket and come again by it, past any proxy; the other two it would ask for.
        let options = OptsBuilder::default()
            .ip_or_hostname("localhost")
            .resolved_ips(Some([[127, 0, 0, 1].into()]))
            .tcp_port(address.port)
            .user(Some(&address.user))
            .pass(Some(&address.password))
            .db_name(Some(&address.database).filter(|name| !name.is_empty()))
            .prefer_socket(false)
            .max_allowed_packet(Some(64 << 20))
            .wait_timeout(Some(28_800));
        let options = match &address.ca {
            Some(ca) => {
                let roots = vec![ca.pem().as_bytes().to_vec().into()];
                options.ssl_opts(SslOpts::default().with_root_certs(roots).with_disable_built_in_roots(true))
            }
            None => options,
        };
        let connecting = Conn::new(adjust(options));
        let conn = tokio::time::timeout(SOON, connecting).await.expect("a login or a refusal soon")?;
        Ok(Self { conn: Mutex::new(conn) })
    }

    /// The connection itself.
    pub async fn conn(&self) -> MutexGuard<'_, Conn> {
        self.conn.lock().await
    }

    /// Runs `sql`, which may be several statements; panics on an error.
    pub async fn execute(&self, sql: &str) {
        self.try_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// Runs `sql`, which may be several statements.
    pub async fn try_execute(&self, sql: &str) -> Result<(), Error> {
        self.conn().await.query_drop(sql).await
    }

    /// First column of the only row, read from its text form.
    pub async fn scalar<T: FromStr<Err: Debug>>(&self, sql: &str) -> T {
        let rows = self.rows(sql).await;
        let [row] = rows.as_slice() else { panic!("{sql}: {} rows", rows.len()) };
        let text = row.first().cloned().flatten().unwrap_or_else(|| panic!("{sql}: null"));
        text.parse().unwrap_or_else(|e| panic!("{sql}: {text:?}: {e:?}"))
    }

    /// All rows of all result sets, in text form.
    pub async fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.try_rows(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"))
    }

    /// All rows of all result sets, in text form.
    pub async fn try_rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        let mut conn = self.conn().await;
        let mut results = conn.query_iter(sql).await?;
        let mut rows = Vec::new();
        while !results.is_empty() {
            rows.extend(results.collect::<Row>().await?.into_iter().map(texts));
        }
        Ok(rows)
    }

    /// Prepares `sql` unless this connection has it already, and executes it by the binary protocol; all its rows, each
    /// value as [`Value`] prints itself for SQL.
    pub async fn exec(&self, sql: &str, parameters: impl Into<Params> + Send) -> Vec<Vec<Option<String>>> {
        let rows: Result<Vec<Row>, _> = self.conn().await.exec(sql, parameters).await;
        rows.unwrap_or_else(|e| panic!("{sql}: {e:?}")).into_iter().map(texts).collect()
    }

    /// Rows that the last statement changed, by its own word.
    pub async fn affected(&self) -> u64 {
        self.conn().await.affected_rows()
    }

    /// Error number and SQLSTATE with which `sql` fails; panics if it does not.
    pub async fn error(&self, sql: &str) -> (u16, String) {
        match self.try_execute(sql).await {
            Ok(()) => panic!("{sql}: no error"),
            Err(e) => {
                let error = server_error(&e);
                (error.code, error.state.clone())
            }
        }
    }

    /// Error number with which `sql` fails; panics if it does not.
    pub async fn errno(&self, sql: &str) -> u16 {
        self.error(sql).await.0
    }

    /// `START TRANSACTION`, then `sql`, then COMMIT.
    pub async fn in_transaction(&self, sql: &str) {
        let mut conn = self.conn().await;
        let mut transaction = conn.start_transaction(TxOpts::default()).await.unwrap();
        transaction.query_drop(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        transaction.commit().await.unwrap();
    }

    /// The connection id that the server told at login.
    pub async fn id(&self) -> u32 {
        self.conn().await.id()
    }

    /// Says goodbye and waits until the connection is closed.
    pub async fn close(self) {
        self.conn.into_inner().disconnect().await.ok();
    }
}

impl Debug for MySqlClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MySqlClient").finish_non_exhaustive()
    }
}

/// The server's error in an error of the driver; panics when it came from elsewhere.
pub fn server_error(error: &Error) -> &ServerError {
    match error {
        Error::Server(error) => error,
        other => panic!("not a database error: {other:?}"),
    }
}

fn texts(row: Row) -> Vec<Option<String>> {
    let text = |value| match value {
        Value::NULL => None,
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        other => Some(other.as_sql(true).trim_matches('\'').to_owned()),
    };
    row.unwrap().into_iter().map(text).collect()
}
