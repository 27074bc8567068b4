//! A primary and its standbys.

use crate::{MariaDb, MariaDbBuilder, Server, ServerBuilder};

/// Running servers of one engine, stopped when dropped. Any of them may be stopped, restarted or promoted by itself.
#[derive(Debug)]
pub struct Cluster<S = Server> {
    /// What was started as the primary.
    pub primary: S,
    /// What was started as a standby.
    pub standbys: Vec<S>,
}

impl<S> Cluster<S> {
    /// All servers, the primary first.
    pub fn servers(&self) -> impl Iterator<Item = &S> {
        std::iter::once(&self.primary).chain(&self.standbys)
    }
}

impl Cluster {
    /// A primary with `standbys` standbys that stream from it, all of the usual size.
    pub async fn start(standbys: usize) -> Self {
        let primary = Server::postgres();
        let sizes = vec![primary.size(); standbys];
        Self::start_with(primary, &sizes).await
    }

    /// A primary as given and one standby for each of `sizes`, their `max_connections`: none less than the primary's.
    pub async fn start_with(primary: ServerBuilder, sizes: &[u32]) -> Self {
        let primary = primary.replicating().start().await;
        let mut standbys = Vec::new();
        for size in sizes {
            standbys.push(Server::standby_of(&primary, *size).await);
        }
        Self { primary, standbys }
    }

    /// Waits until every standby has replayed all that the primary has written so far.
    pub async fn caught_up(&self) {
        for standby in &self.standbys {
            standby.caught_up_with(&self.primary).await;
        }
    }
}

impl Cluster<MariaDb> {
    /// A primary with `replicas` replicas that follow it by GTID, all of the usual size.
    pub async fn mariadb(replicas: usize) -> Self {
        Self::mariadb_with(Server::mariadb(), vec![Server::mariadb(); replicas]).await
    }

    /// A primary and replicas as given.
    pub async fn mariadb_with(primary: MariaDbBuilder, replicas: Vec<MariaDbBuilder>) -> Self {
        let primary = primary.replicating().start().await;
        let mut standbys = Vec::new();
        for replica in replicas {
            standbys.push(MariaDb::replica_of(&primary, replica).await);
        }
        Self { primary, standbys }
    }

    /// Waits until every replica has applied all that the primary has written so far.
    pub async fn caught_up(&self) {
        for standby in &self.standbys {
            standby.caught_up_with(&self.primary).await;
        }
    }

    /// Makes a replica the primary in a planned way: the old one takes no more writes, all that it has written
    /// arrives, and it follows the new one. [`Self::primary`] and its place in [`Self::standbys`] are exchanged.
    pub async fn switch_over(&mut self, to: usize) {
        self.primary.direct().await.execute("SET GLOBAL read_only = 1").await;
        self.caught_up().await;
        for standby in &self.standbys {
            standby.direct().await.execute("STOP SLAVE").await;
        }
        std::mem::swap(&mut self.primary, &mut self.standbys[to]);
        self.primary.promote().await;
        for standby in &self.standbys {
            standby.follow(&self.primary).await;
        }
    }
}
