//! Pinning filters as policy.

use pinion_plugin::{PinReason, PinVerdict, Plugin, Query, Subscription};

/// Settings.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// The plugin.
#[derive(Debug)]
pub struct PinFilter;

impl Plugin for PinFilter {
    type Config = Config;
    fn new(_: Config) -> Result<Self, String> {
        Ok(Self)
    }
    fn subscriptions(&self) -> Vec<Subscription> {
        vec![Subscription::on_pin()]
    }
    fn on_pin(&mut self, query: &Query, reason: PinReason, subject: &str) -> PinVerdict {
        pinion_plugin::log::info!("{} {reason} {subject}", query.user());
        PinVerdict::Pass
    }
}

pinion_plugin::export!(PinFilter);
