//! A signal given once, which every task can listen to.

use tokio::sync::watch;

/// The giving end.
#[derive(Debug)]
pub struct Giver(watch::Sender<bool>);

/// A listening end.
#[derive(Debug, Clone)]
pub struct Signal(watch::Receiver<bool>);

/// A signal not yet given.
#[must_use]
pub fn signal() -> (Giver, Signal) {
    let (sender, receiver) = watch::channel(false);
    (Giver(sender), Signal(receiver))
}

impl Giver {
    /// Gives the signal; giving it again does nothing.
    pub fn give(&self) {
        self.0.send_replace(true);
    }
}

impl Signal {
    /// Waits until the signal is given, or its giver is gone.
    pub async fn given(&mut self) {
        let _ = self.0.wait_for(|given| *given).await;
    }
}
