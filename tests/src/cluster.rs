//! A primary and its streaming standbys.

use crate::{Server, ServerBuilder};

/// Running servers, stopped when dropped. Any of them may be stopped, restarted or promoted by itself.
#[derive(Debug)]
pub struct Cluster {
    /// What was started as the primary.
    pub primary: Server,
    /// What was started as a standby.
    pub standbys: Vec<Server>,
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

    /// All servers, the primary first.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.primary).chain(&self.standbys)
    }

    /// Waits until every standby has replayed all that the primary has written so far.
    pub async fn caught_up(&self) {
        for standby in &self.standbys {
            standby.caught_up_with(&self.primary).await;
        }
    }
}
