//! SDK for Pinion policy plugins. The plugin contract is specified in `docs/architecture.md`; the hooks arrive with the plugin host.
