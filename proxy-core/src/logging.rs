//! Logs by `tracing`: text for people or JSON for collectors, to standard output, with a level that can change.

use std::fmt;

use tracing_subscriber::{EnvFilter, Layer, Registry, fmt::layer, layer::SubscriberExt, reload};

use crate::config::{LogConfig, LogFormat};

/// Changes the level while running.
#[derive(Clone)]
pub struct LevelHandle(reload::Handle<EnvFilter, Registry>);

impl fmt::Debug for LevelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LevelHandle")
    }
}

impl LevelHandle {
    /// Logs by `filter` from now on.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let filter = parse(filter)?;
        self.0.reload(filter).map_err(|e| e.to_string())
    }
}

/// Starts logging. Fails when it was started before.
pub fn start(config: &LogConfig) -> Result<LevelHandle, String> {
    let (filter, handle) = reload::Layer::new(parse(&config.level)?);
    let out = match config.format {
        LogFormat::Text => layer().with_ansi(false).with_target(false).boxed(),
        LogFormat::Json => layer().json().flatten_event(true).with_target(false).boxed(),
    };
    let subscriber = Registry::default().with(filter).with(out);
    tracing::subscriber::set_global_default(subscriber).map_err(|e| e.to_string())?;
    Ok(LevelHandle(handle))
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(filter).map_err(|e| format!("log.level: {e}"))
}
