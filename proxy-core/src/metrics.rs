//! Every metric of Pinion, in one place: callers hold handles and never write a name.
//!
//! [`METRICS`] is the table; `docs/metrics.md` says the same to people, and a test keeps the two equal. Rows 1 to 24
//! are RDS Proxy's CloudWatch metrics in Prometheus form, so a dashboard made for RDS Proxy can be carried over.
//!
//! [`install`] comes first: a handle made before it records nothing, for ever. Handles are made once per endpoint,
//! target, proxy or process and kept. Making them again with the same labels gives the same series, so a reload
//! goes on counting.

mod histogram;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder as _, SharedString, Unit,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::{
    plugin::UserMetrics,
    protocol::{PinReason, PinReasons, Role},
};
use histogram::BucketHistogram;

/// What a metric's value does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows, from 0 at start.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts samples per bucket; the bounds, ascending.
    Histogram(&'static [f64]),
}

impl Kind {
    /// The word Prometheus has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// One metric, as `docs/metrics.md` lists it.
#[derive(Debug)]
pub struct Metric {
    /// Prometheus name.
    pub name: &'static str,
    /// What its value does.
    pub kind: Kind,
    /// Label names, in the order in which their values are given.
    pub labels: &'static [&'static str],
    /// Unit of the value.
    pub unit: Unit,
    /// One sentence, shown as `# HELP`.
    pub help: &'static str,
    /// Row and name in RDS Proxy's table; `None` for those it has not.
    pub rds: Option<(u8, &'static str)>,
}

/// Bounds of the latency histograms, in seconds.
const LATENCY: &[f64] = &[
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 30.0, 60.0,
];
/// Bounds of how long a pin lasts, in seconds: from one statement to a day.
const PINNED: &[f64] =
    &[0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1_800.0, 3_600.0, 14_400.0, 86_400.0];

/// Bounds of how long a call into a plugin takes, in seconds: from a cached instance's fraction of a microsecond.
const PLUGIN_CALL: &[f64] = &[
    0.000_000_2,
    0.000_000_5,
    0.000_001,
    0.000_002,
    0.000_005,
    0.000_01,
    0.000_02,
    0.000_05,
    0.000_1,
    0.000_2,
    0.000_5,
    0.001,
    0.002,
    0.005,
    0.01,
    0.05,
    0.1,
    1.0,
];

const OF_ENDPOINT: &[&str] = &["proxy", "endpoint"];
const OF_TARGET: &[&str] = &["proxy", "target_group", "target", "target_role"];
/// For what must keep its series when the target's role changes.
const OF_ADDRESS: &[&str] = &["proxy", "target"];

const OF_PLUGIN: &[&str] = &["proxy", "plugin"];
const OF_PLUGIN_HOOK: &[&str] = &["proxy", "plugin", "hook"];

const fn rds(
    row: u8,
    rds: &'static str,
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    unit: Unit,
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, unit, help, rds: Some((row, rds)) }
}

const fn ours(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    unit: Unit,
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, unit, help, rds: None }
}

use Kind::{Counter as C, Gauge as G, Histogram as H};
use Unit::{Count, Percent, Seconds};

#[rustfmt::skip]
mod table {
    use super::*;

    pub(super) const AVAILABILITY: Metric = rds(1, "AvailabilityPercentage",
        "pinion_availability_percentage", G, OF_TARGET, Percent,
        "Share of the last minute's health checks that the target passed.");
    pub(super) const CLIENTS: Metric = rds(2, "ClientConnections",
        "pinion_client_connections", G, OF_ENDPOINT, Count,
        "Client connections now open, those still logging in included.");
    pub(super) const CLIENTS_CLOSED: Metric = rds(3, "ClientConnectionsClosed",
        "pinion_client_connections_closed_total", C, OF_ENDPOINT, Count,
        "Client connections closed, by either side, logged in or not.");
    pub(super) const CLIENTS_NO_TLS: Metric = rds(4, "ClientConnectionsNoTLS",
        "pinion_client_connections_no_tls", G, OF_ENDPOINT, Count,
        "Client connections now open without TLS, those that have not asked for it yet included.");
    pub(super) const CLIENTS_RECEIVED: Metric = rds(5, "ClientConnectionsReceived",
        "pinion_client_connections_received_total", C, OF_ENDPOINT, Count,
        "Client connections received.");
    pub(super) const CLIENTS_FAILED: Metric = rds(6, "ClientConnectionsSetupFailedAuth",
        "pinion_client_connections_setup_failed_auth_total", C, OF_ENDPOINT, Count,
        "Client connections refused for wrong credentials, or for TLS that failed or was missing.");
    pub(super) const CLIENTS_SUCCEEDED: Metric = rds(7, "ClientConnectionsSetupSucceeded",
        "pinion_client_connections_setup_succeeded_total", C, OF_ENDPOINT, Count,
        "Client connections that logged in, with TLS or without.");
    pub(super) const CLIENTS_TLS: Metric = rds(8, "ClientConnectionsTLS",
        "pinion_client_connections_tls", G, OF_ENDPOINT, Count,
        "Client connections now open with TLS.");
    pub(super) const SERVER_REQUESTS: Metric = rds(9, "DatabaseConnectionRequests",
        "pinion_database_connection_requests_total", C, OF_TARGET, Count,
        "Attempts to open a server connection.");
    pub(super) const SERVER_REQUESTS_TLS: Metric = rds(10, "DatabaseConnectionRequestsWithTLS",
        "pinion_database_connection_requests_with_tls_total", C, OF_TARGET, Count,
        "Attempts to open a server connection that asked for TLS.");
    pub(super) const SERVERS: Metric = rds(11, "DatabaseConnections",
        "pinion_database_connections", G, OF_TARGET, Count,
        "Server connections now open, idle ones included.");
    pub(super) const BORROW: Metric = rds(12, "DatabaseConnectionsBorrowLatency",
        "pinion_database_connections_borrow_latency_seconds", H(LATENCY), OF_ENDPOINT, Seconds,
        "Time from asking the pool for a server connection to having one.");
    pub(super) const SERVERS_BORROWED: Metric = rds(13, "DatabaseConnectionsCurrentlyBorrowed",
        "pinion_database_connections_currently_borrowed", G, OF_TARGET, Count,
        "Server connections now held by a client.");
    pub(super) const SERVERS_IN_TRANSACTION: Metric = rds(14, "DatabaseConnectionsCurrentlyInTransaction",
        "pinion_database_connections_currently_in_transaction", G, OF_TARGET, Count,
        "Server connections now in a transaction, failed ones included.");
    pub(super) const SERVERS_PINNED: Metric = rds(15, "DatabaseConnectionsCurrentlySessionPinned",
        "pinion_database_connections_currently_session_pinned", G, OF_TARGET, Count,
        "Server connections now pinned to a client.");
    pub(super) const SERVERS_FAILED: Metric = rds(16, "DatabaseConnectionsSetupFailed",
        "pinion_database_connections_setup_failed_total", C, OF_TARGET, Count,
        "Attempts to open a server connection that failed.");
    pub(super) const SERVERS_SUCCEEDED: Metric = rds(17, "DatabaseConnectionsSetupSucceeded",
        "pinion_database_connections_setup_succeeded_total", C, OF_TARGET, Count,
        "Server connections opened.");
    pub(super) const SERVERS_TLS: Metric = rds(18, "DatabaseConnectionsWithTLS",
        "pinion_database_connections_with_tls", G, OF_TARGET, Count,
        "Server connections now open with TLS.");
    pub(super) const SERVERS_ALLOWED: Metric = rds(19, "MaxDatabaseConnectionsAllowed",
        "pinion_max_database_connections_allowed", G, OF_TARGET, Count,
        "Server connections the pool may open, the monitor's not counted; 0 until the target was first asked.");
    pub(super) const DATABASE_LATENCY: Metric = rds(20, "QueryDatabaseResponseLatency",
        "pinion_query_database_response_latency_seconds", H(LATENCY), OF_ENDPOINT, Seconds,
        "Time from a request sent to the database to the end of its reply.");
    pub(super) const TARGET_LATENCY: Metric = rds(20, "QueryDatabaseResponseLatency",
        "pinion_target_response_latency_seconds", H(LATENCY), OF_TARGET, Seconds,
        "The same time by target.");
    pub(super) const QUERIES: Metric = rds(21, "QueryRequests",
        "pinion_query_requests_total", C, OF_ENDPOINT, Count,
        "Requests answered, by the database or by a refusal; one of several statements counts once.");
    pub(super) const QUERIES_NO_TLS: Metric = rds(22, "QueryRequestsNoTLS",
        "pinion_query_requests_no_tls_total", C, OF_ENDPOINT, Count,
        "Those from clients without TLS.");
    pub(super) const QUERIES_TLS: Metric = rds(23, "QueryRequestsTLS",
        "pinion_query_requests_tls_total", C, OF_ENDPOINT, Count,
        "Those from clients with TLS.");
    pub(super) const LATENCY_SECONDS: Metric = rds(24, "QueryResponseLatency",
        "pinion_query_response_latency_seconds", H(LATENCY), OF_ENDPOINT, Seconds,
        "Time from a request received to the end of its reply, the wait for a server connection included.");

    pub(super) const PINS: Metric = ours(
        "pinion_pins_total", C, &["proxy", "endpoint", "reason"], Count,
        "Pins begun; a pin with several reasons counts once for each.");
    pub(super) const PINNED_SECONDS: Metric = ours(
        "pinion_pinned_seconds", H(PINNED), OF_ENDPOINT, Seconds,
        "How long a pin lasted, counted at its end.");
    pub(super) const CARRIED: Metric = ours(
        "pinion_temporary_tables_carried_total", C, OF_ENDPOINT, Count,
        "Times that a client's temporary tables were taken off a server connection because others waited for one.");
    pub(super) const WAITING: Metric = ours(
        "pinion_pool_waiting", G, OF_ADDRESS, Count,
        "Clients now waiting for a server connection.");
    pub(super) const UP: Metric = ours(
        "pinion_target_up", G, OF_ADDRESS, Count,
        "1 when the last health check of the target passed, else 0.");
    pub(super) const ROLE: Metric = ours(
        "pinion_target_role", G, &["proxy", "target", "role"], Count,
        "1 for the role that the target was last found in, 0 for the others.");
    pub(super) const RESETS: Metric = ours(
        "pinion_connection_resets_total", C, &["proxy", "target", "cause"], Count,
        "Server connections reset before another client may have them; cause is pinned or tainted.");
    pub(super) const SYNCS: Metric = ours(
        "pinion_state_sync_total", C, OF_ADDRESS, Count,
        "Server connections that were made to have another session's settings before they served it.");
    pub(super) const LISTENERS: Metric = ours(
        "pinion_listener_connections", G, OF_ADDRESS, Count,
        "Server connections that hear notifications for clients, one for each database listened to, beside the pool.");
    pub(super) const NOTIFICATIONS: Metric = ours(
        "pinion_notifications_total", C, OF_ADDRESS, Count,
        "Notifications that those connections have heard.");
    pub(super) const CANCELS: Metric = ours(
        "pinion_cancel_requests_total", C, &["proxy", "outcome"], Count,
        "Cancel requests from clients; outcome is forwarded, nothing-running, unknown-key or failed.");
    pub(super) const RELOADS: Metric = ours(
        "pinion_config_reloads_total", C, &["outcome"], Count,
        "Configuration reloads; outcome is applied, partial (some keys need a restart) or refused.");
    pub(super) const PLUGIN_CALLS: Metric = ours(
        "pinion_plugin_calls_total", C, &["proxy", "plugin", "hook", "verdict"], Count,
        "Answers of a plugin by hook and verdict, kept ones not counted; failed is a call that did not end well or was not made because the plugin is switched off.");
    pub(super) const PLUGIN_CALL_SECONDS: Metric = ours(
        "pinion_plugin_call_seconds", H(PLUGIN_CALL), OF_PLUGIN_HOOK, Seconds,
        "Time that a call into a plugin took, of one call in 16; of on-events, each.");
    pub(super) const PLUGIN_CACHE_HITS: Metric = ours(
        "pinion_plugin_cache_hits_total", C, OF_PLUGIN_HOOK, Count,
        "Verdicts that were kept and given again without a call.");
    pub(super) const PLUGIN_CACHE_DISAGREEMENTS: Metric = ours(
        "pinion_plugin_cache_disagreements_total", C, OF_PLUGIN, Count,
        "Times that a plugin gave another verdict than the one kept for the same fields; nothing is kept of it from then on.");
    pub(super) const PLUGIN_TRAPS: Metric = ours(
        "pinion_plugin_traps_total", C, &["proxy", "plugin", "kind"], Count,
        "Calls that ended in a trap; kind is deadline, memory, panic, stack or other.");
    pub(super) const PLUGIN_RELOADS: Metric = ours(
        "pinion_plugin_reloads_total", C, &["proxy", "plugin", "outcome"], Count,
        "Times that a plugin was loaded; outcome is applied, unchanged (the same file and configuration) or refused.");
    pub(super) const PLUGIN_STATE: Metric = ours(
        "pinion_plugin_state", G, &["proxy", "plugin", "state"], Count,
        "1 for the state that the plugin is in, else 0; state is running, failed (never loaded) or broken (switched off).");
    pub(super) const PLUGIN_LOG_DROPPED: Metric = ours(
        "pinion_plugin_log_dropped_total", C, OF_PLUGIN, Count,
        "Log lines of a plugin beyond its log_lines_per_second.");
    pub(super) const PLUGIN_MISUSE: Metric = ours(
        "pinion_plugin_misuse_total", C, OF_PLUGIN, Count,
        "Changes of a metric that the plugin has not registered, or that is of another kind.");
    pub(super) const PLUGIN_SHADOW: Metric = ours(
        "pinion_plugin_shadow_differences_total", C, OF_PLUGIN_HOOK, Count,
        "Verdicts in which a plugin's shadow differed from it, or failed.");
    pub(super) const PLUGIN_EVENTS_LOST: Metric = ours(
        "pinion_plugin_events_lost_total", C, &["proxy"], Count,
        "Events that no observer saw because the queue was full.");
    pub(super) const AUDIT_RECORDS: Metric = ours(
        "pinion_audit_records_total", C, &["sink", "outcome"], Count,
        "Audit records; outcome is written, dropped (the queue was full) or lost (not written when the process ended).");
    pub(super) const AUDIT_ERRORS: Metric = ours(
        "pinion_audit_errors_total", C, &["sink"], Count,
        "Failed attempts to write to the audit sink; each is tried again.");
    pub(super) const AUDIT_QUEUE: Metric = ours(
        "pinion_audit_queue", G, &["sink"], Count,
        "Audit records that wait to be written.");
    pub(super) const BUILD: Metric = ours(
        "pinion_build_info", G, &["version"], Count,
        "Always 1; the version is in the label.");
}

/// Every metric there is, RDS Proxy's first and in its order.
pub const METRICS: [Metric; 52] = {
    use table::*;
    [
        AVAILABILITY,
        CLIENTS,
        CLIENTS_CLOSED,
        CLIENTS_NO_TLS,
        CLIENTS_RECEIVED,
        CLIENTS_FAILED,
        CLIENTS_SUCCEEDED,
        CLIENTS_TLS,
        SERVER_REQUESTS,
        SERVER_REQUESTS_TLS,
        SERVERS,
        BORROW,
        SERVERS_BORROWED,
        SERVERS_IN_TRANSACTION,
        SERVERS_PINNED,
        SERVERS_FAILED,
        SERVERS_SUCCEEDED,
        SERVERS_TLS,
        SERVERS_ALLOWED,
        DATABASE_LATENCY,
        TARGET_LATENCY,
        QUERIES,
        QUERIES_NO_TLS,
        QUERIES_TLS,
        LATENCY_SECONDS,
        PINS,
        PINNED_SECONDS,
        CARRIED,
        WAITING,
        LISTENERS,
        NOTIFICATIONS,
        UP,
        ROLE,
        RESETS,
        SYNCS,
        CANCELS,
        RELOADS,
        PLUGIN_CALLS,
        PLUGIN_CALL_SECONDS,
        PLUGIN_CACHE_HITS,
        PLUGIN_CACHE_DISAGREEMENTS,
        PLUGIN_TRAPS,
        PLUGIN_RELOADS,
        PLUGIN_STATE,
        PLUGIN_LOG_DROPPED,
        PLUGIN_MISUSE,
        PLUGIN_SHADOW,
        PLUGIN_EVENTS_LOST,
        AUDIT_RECORDS,
        AUDIT_ERRORS,
        AUDIT_QUEUE,
        BUILD,
    ]
};

/// RDS Proxy's name for a proxy's only target group.
const TARGET_GROUP: &str = "default";

/// What is counted per endpoint. Cheap to share: keep it in an `Arc`.
#[derive(Debug)]
pub struct EndpointMetrics {
    /// `ClientConnections`, row 2.
    pub client_connections: Gauge,
    /// `ClientConnectionsClosed`, row 3.
    pub client_connections_closed: Counter,
    /// `ClientConnectionsNoTLS`, row 4.
    pub client_connections_no_tls: Gauge,
    /// `ClientConnectionsReceived`, row 5.
    pub client_connections_received: Counter,
    /// `ClientConnectionsSetupFailedAuth`, row 6.
    pub client_connections_setup_failed_auth: Counter,
    /// `ClientConnectionsSetupSucceeded`, row 7.
    pub client_connections_setup_succeeded: Counter,
    /// `ClientConnectionsTLS`, row 8.
    pub client_connections_tls: Gauge,
    /// `DatabaseConnectionsBorrowLatency`, row 12; seconds.
    pub database_connections_borrow_latency: Histogram,
    /// `QueryDatabaseResponseLatency`, row 20; seconds.
    pub query_database_response_latency: Histogram,
    /// `QueryRequests`, row 21.
    pub query_requests: Counter,
    /// `QueryRequestsNoTLS`, row 22.
    pub query_requests_no_tls: Counter,
    /// `QueryRequestsTLS`, row 23.
    pub query_requests_tls: Counter,
    /// `QueryResponseLatency`, row 24; seconds.
    pub query_response_latency: Histogram,
    /// Pins begun, by reason in the order of [`PinReason::ALL`].
    pub pins: [Counter; PinReason::ALL.len()],
    /// How long pins lasted; seconds.
    pub pinned_seconds: Histogram,
    /// Times that temporary tables were taken off a connection.
    pub tables_carried: Counter,
}

impl EndpointMetrics {
    /// The handles of one endpoint; both names are from the configuration.
    #[must_use]
    pub fn new(proxy: &str, endpoint: &str) -> Self {
        let labels = [proxy, endpoint];
        Self {
            client_connections: gauge(&table::CLIENTS, &labels),
            client_connections_closed: counter(&table::CLIENTS_CLOSED, &labels),
            client_connections_no_tls: gauge(&table::CLIENTS_NO_TLS, &labels),
            client_connections_received: counter(&table::CLIENTS_RECEIVED, &labels),
            client_connections_setup_failed_auth: counter(&table::CLIENTS_FAILED, &labels),
            client_connections_setup_succeeded: counter(&table::CLIENTS_SUCCEEDED, &labels),
            client_connections_tls: gauge(&table::CLIENTS_TLS, &labels),
            database_connections_borrow_latency: histogram(&table::BORROW, &labels),
            query_database_response_latency: histogram(&table::DATABASE_LATENCY, &labels),
            query_requests: counter(&table::QUERIES, &labels),
            query_requests_no_tls: counter(&table::QUERIES_NO_TLS, &labels),
            query_requests_tls: counter(&table::QUERIES_TLS, &labels),
            query_response_latency: histogram(&table::LATENCY_SECONDS, &labels),
            pins: PinReason::ALL.map(|reason| counter(&table::PINS, &[proxy, endpoint, reason.name()])),
            pinned_seconds: histogram(&table::PINNED_SECONDS, &labels),
            tables_carried: counter(&table::CARRIED, &labels),
        }
    }

    /// A client was accepted; it counts as one without TLS until [`client_tls`](Self::client_tls).
    pub fn client_connected(&self) {
        self.client_connections_received.increment(1);
        self.client_connections.increment(1.0);
        self.client_connections_no_tls.increment(1.0);
    }

    /// A client finished its TLS handshake; once per client.
    pub fn client_tls(&self) {
        self.client_connections_no_tls.decrement(1.0);
        self.client_connections_tls.increment(1.0);
    }

    /// A client is gone; once for every [`client_connected`](Self::client_connected), `tls` when
    /// [`client_tls`](Self::client_tls) was called for it.
    pub fn client_closed(&self, tls: bool) {
        self.client_connections_closed.increment(1);
        self.client_connections.decrement(1.0);
        if tls { &self.client_connections_tls } else { &self.client_connections_no_tls }.decrement(1.0);
    }

    /// A client logged in.
    pub fn login_succeeded(&self) {
        self.client_connections_setup_succeeded.increment(1);
    }

    /// A client was refused for its credentials or for TLS.
    pub fn login_failed(&self) {
        self.client_connections_setup_failed_auth.increment(1);
    }

    /// The pool lent a server connection after `waited`, or gave up after it.
    pub fn borrowed(&self, waited: Duration) {
        self.database_connections_borrow_latency.record(waited);
    }

    /// The database answered a request. `total` is from its receipt to the end of the reply, `database` the part from
    /// its sending on.
    pub fn query_finished(&self, tls: bool, total: Duration, database: Duration) {
        self.query_refused(tls, total);
        self.query_database_response_latency.record(database);
    }

    /// A request was answered by us, the database never saw it.
    pub fn query_refused(&self, tls: bool, total: Duration) {
        self.query_requests.increment(1);
        if tls { &self.query_requests_tls } else { &self.query_requests_no_tls }.increment(1);
        self.query_response_latency.record(total);
    }

    /// A session became pinned for these reasons, or gained them.
    pub fn pinned(&self, reasons: PinReasons) {
        for (reason, pins) in PinReason::ALL.into_iter().zip(&self.pins) {
            if reasons.contains(reason) {
                pins.increment(1);
            }
        }
    }

    /// A client's temporary tables were taken off its server connection.
    pub fn carried(&self) {
        self.tables_carried.increment(1);
    }

    /// A pin ended, with its last reason or with its session.
    pub fn unpinned(&self, held: Duration) {
        self.pinned_seconds.record(held);
    }
}

/// What is counted per target.
///
/// Most series carry the target's role. When it changes, counting goes on in the series of the new role, and the
/// gauges of the old one go to 0. Gauges that are read rather than counted are set before a scrape.
#[derive(Debug)]
pub struct TargetMetrics {
    proxy: String,
    target: String,
    /// By role, made when the target is first found in it.
    by_role: [OnceLock<RoleMetrics>; Role::ALL.len()],
    /// Index into `by_role`.
    current: AtomicU8,
    /// Keeps a scrape from setting gauges of a role that is being left.
    setting: Mutex<()>,
    /// Server connections open, with TLS and in all.
    open_tls: AtomicUsize,
    open: AtomicUsize,
    /// 1 for the current role.
    pub target_role: [Gauge; Role::ALL.len()],
    /// Clients now waiting for a server connection.
    pub pool_waiting: Gauge,
    /// 1 when the last health check passed, else 0.
    pub target_up: Gauge,
    /// Resets of connections that had been pinned.
    pub resets_pinned: Counter,
    /// Resets of connections that were tainted.
    pub resets_tainted: Counter,
    /// `pinion_state_sync_total`.
    pub state_syncs: Counter,
    /// `pinion_listener_connections`.
    pub listeners: Gauge,
    /// `pinion_notifications_total`.
    pub notifications: Counter,
}

/// What is counted per target and role.
#[derive(Debug)]
pub struct RoleMetrics {
    /// `AvailabilityPercentage`, row 1; give it to [`Availability`].
    pub availability_percentage: Gauge,
    /// `DatabaseConnectionRequests`, row 9.
    pub database_connection_requests: Counter,
    /// `DatabaseConnectionRequestsWithTLS`, row 10.
    pub database_connection_requests_with_tls: Counter,
    /// `DatabaseConnections`, row 11.
    pub database_connections: Gauge,
    /// `DatabaseConnectionsCurrentlyBorrowed`, row 13.
    pub database_connections_currently_borrowed: Gauge,
    /// `DatabaseConnectionsCurrentlyInTransaction`, row 14.
    pub database_connections_currently_in_transaction: Gauge,
    /// `DatabaseConnectionsCurrentlySessionPinned`, row 15.
    pub database_connections_currently_session_pinned: Gauge,
    /// `DatabaseConnectionsSetupFailed`, row 16.
    pub database_connections_setup_failed: Counter,
    /// `DatabaseConnectionsSetupSucceeded`, row 17.
    pub database_connections_setup_succeeded: Counter,
    /// `DatabaseConnectionsWithTLS`, row 18.
    pub database_connections_with_tls: Gauge,
    /// `MaxDatabaseConnectionsAllowed`, row 19.
    pub max_database_connections_allowed: Gauge,
    /// `QueryDatabaseResponseLatency`, row 20, by target; seconds.
    pub target_response_latency: Histogram,
}

impl RoleMetrics {
    fn new(proxy: &str, target: &str, role: Role) -> Self {
        let labels = [proxy, TARGET_GROUP, target, role.name()];
        Self {
            availability_percentage: gauge(&table::AVAILABILITY, &labels),
            database_connection_requests: counter(&table::SERVER_REQUESTS, &labels),
            database_connection_requests_with_tls: counter(&table::SERVER_REQUESTS_TLS, &labels),
            database_connections: gauge(&table::SERVERS, &labels),
            database_connections_currently_borrowed: gauge(&table::SERVERS_BORROWED, &labels),
            database_connections_currently_in_transaction: gauge(&table::SERVERS_IN_TRANSACTION, &labels),
            database_connections_currently_session_pinned: gauge(&table::SERVERS_PINNED, &labels),
            database_connections_setup_failed: counter(&table::SERVERS_FAILED, &labels),
            database_connections_setup_succeeded: counter(&table::SERVERS_SUCCEEDED, &labels),
            database_connections_with_tls: gauge(&table::SERVERS_TLS, &labels),
            max_database_connections_allowed: gauge(&table::SERVERS_ALLOWED, &labels),
            target_response_latency: histogram(&table::TARGET_LATENCY, &labels),
        }
    }

    /// The target is not in this role any more. Its availability there is not 0 but nothing to be spoken of.
    fn leave(&self) {
        self.availability_percentage.set(f64::NAN);
        for gauge in [
            &self.database_connections,
            &self.database_connections_currently_borrowed,
            &self.database_connections_currently_in_transaction,
            &self.database_connections_currently_session_pinned,
            &self.database_connections_with_tls,
            &self.max_database_connections_allowed,
        ] {
            gauge.set(0.0);
        }
    }
}

/// What is read rather than counted, at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct TargetGauges {
    /// Server connections held by a client.
    pub borrowed: usize,
    /// Most server connections.
    pub allowed: usize,
    /// Clients in line.
    pub waiting: usize,
    /// Connections that hear notifications.
    pub listeners: usize,
    /// Server connections in a transaction.
    pub in_transaction: usize,
    /// Server connections pinned.
    pub pinned: usize,
}

/// Why a server connection had to be reset before another client may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetCause {
    /// It had been pinned.
    Pinned,
    /// It might hold state that nobody saw.
    Tainted,
}

impl TargetMetrics {
    /// The handles of one target: `target` is its `host:port` as configured.
    #[must_use]
    pub fn new(proxy: &str, target: &str, role: Role) -> Self {
        let address = [proxy, target];
        let metrics = Self {
            by_role: Default::default(),
            current: AtomicU8::new(role as u8),
            setting: Mutex::default(),
            open_tls: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            target_role: Role::ALL.map(|role| gauge(&table::ROLE, &[proxy, target, role.name()])),
            pool_waiting: gauge(&table::WAITING, &address),
            target_up: gauge(&table::UP, &address),
            resets_pinned: counter(&table::RESETS, &[proxy, target, "pinned"]),
            resets_tainted: counter(&table::RESETS, &[proxy, target, "tainted"]),
            state_syncs: counter(&table::SYNCS, &address),
            listeners: gauge(&table::LISTENERS, &address),
            notifications: counter(&table::NOTIFICATIONS, &address),
            proxy: proxy.to_owned(),
            target: target.to_owned(),
        };
        metrics.now();
        metrics
    }

    /// Those of the role that the target has now.
    pub fn now(&self) -> &RoleMetrics {
        self.of(self.current.load(Ordering::Relaxed))
    }

    fn of(&self, role: u8) -> &RoleMetrics {
        let role = usize::from(role);
        self.by_role[role].get_or_init(|| RoleMetrics::new(&self.proxy, &self.target, Role::ALL[role]))
    }

    /// The target was found in this role.
    pub fn found(&self, role: Role) {
        let _setting = self.setting.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current.swap(role as u8, Ordering::Relaxed);
        if before != role as u8 {
            self.of(before).leave();
            self.of(role as u8);
        }
        for (known, gauge) in Role::ALL.into_iter().zip(&self.target_role) {
            gauge.set(f64::from(u8::from(known == role)));
        }
    }

    /// Sets the gauges before a scrape.
    pub fn set(&self, gauges: TargetGauges) {
        let _setting = self.setting.lock().unwrap_or_else(PoisonError::into_inner);
        self.pool_waiting.set(gauges.waiting as f64);
        self.listeners.set(gauges.listeners as f64);
        let now = self.now();
        now.database_connections.set(self.open.load(Ordering::Relaxed) as f64);
        now.database_connections_with_tls.set(self.open_tls.load(Ordering::Relaxed) as f64);
        now.database_connections_currently_borrowed.set(gauges.borrowed as f64);
        now.database_connections_currently_in_transaction.set(gauges.in_transaction as f64);
        now.database_connections_currently_session_pinned.set(gauges.pinned as f64);
        now.max_database_connections_allowed.set(gauges.allowed as f64);
    }

    /// A server connection is being opened, `tls` when it asks for TLS.
    pub fn connecting(&self, tls: bool) {
        let now = self.now();
        now.database_connection_requests.increment(1);
        if tls {
            now.database_connection_requests_with_tls.increment(1);
        }
    }

    /// It is open and logged in, `tls` when it uses TLS.
    pub fn connected(&self, tls: bool) {
        self.now().database_connections_setup_succeeded.increment(1);
        self.open.fetch_add(1, Ordering::Relaxed);
        if tls {
            self.open_tls.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It could not be opened, or not set up.
    pub fn connect_failed(&self) {
        self.now().database_connections_setup_failed.increment(1);
    }

    /// An open one closed, by either side; once for every [`connected`](Self::connected), with the same `tls`.
    pub fn disconnected(&self, tls: bool) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if tls {
            self.open_tls.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The target answered a request; `database` is what
    /// [`query_finished`](EndpointMetrics::query_finished) was told.
    pub fn responded(&self, database: Duration) {
        self.now().target_response_latency.record(database);
    }

    /// So many notifications came.
    pub fn heard(&self, count: usize) {
        self.notifications.increment(count as u64);
    }

    /// A server connection was made to wear another session's settings.
    pub fn synced(&self) {
        self.state_syncs.increment(1);
    }

    /// A server connection was reset.
    pub fn reset(&self, cause: ResetCause) {
        match cause {
            ResetCause::Pinned => &self.resets_pinned,
            ResetCause::Tainted => &self.resets_tainted,
        }
        .increment(1);
    }
}

/// What became of a client's cancel request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelOutcome {
    /// Sent on to the server that ran the client's query.
    Forwarded,
    /// The client ran nothing.
    NothingRunning,
    /// No client has that key.
    UnknownKey,
    /// The server could not be told.
    Failed,
}

/// What is counted per proxy.
#[derive(Debug)]
pub struct ProxyMetrics {
    /// Cancel requests, in the order of [`CancelOutcome`].
    pub cancel_requests: [Counter; 4],
}

impl ProxyMetrics {
    /// The handles of one proxy, by its name in the configuration.
    #[must_use]
    pub fn new(proxy: &str) -> Self {
        let outcomes = ["forwarded", "nothing-running", "unknown-key", "failed"];
        Self { cancel_requests: outcomes.map(|outcome| counter(&table::CANCELS, &[proxy, outcome])) }
    }

    /// A cancel request was dealt with.
    pub fn cancelled(&self, outcome: CancelOutcome) {
        self.cancel_requests[outcome as usize].increment(1);
    }
}

/// What is counted per plugin.
#[derive(Debug)]
pub struct PluginMetrics {
    /// By hook, then by verdict in the order of [`PluginMetrics::VERDICTS`].
    calls: [Vec<Counter>; 4],
    /// By hook.
    seconds: [Histogram; 4],
    /// By hook.
    pub cache_hits: [Counter; 3],
    /// Kept verdicts that turned out wrong.
    pub cache_disagreements: Counter,
    /// In the order of [`PluginMetrics::TRAPS`].
    pub traps: [Counter; 5],
    /// In the order of [`PluginMetrics::OUTCOMES`].
    pub reloads: [Counter; 3],
    /// In the order of [`PluginMetrics::STATES`].
    states: [Gauge; 3],
    /// Log lines beyond the limit.
    pub log_dropped: Counter,
    /// Changes of metrics that are not there.
    pub misuse: Counter,
    /// By hook.
    pub shadow_differences: [Counter; 3],
}

impl PluginMetrics {
    /// Hooks, in the order of `plugin::Hook`.
    pub const HOOKS: [&'static str; 4] = ["on-query", "on-route", "on-pin", "on-events"];
    /// What each hook can come to.
    pub const VERDICTS: [&'static [&'static str]; 4] = [
        &["pass", "rewrite", "reject", "failed"],
        &["pass", "writer", "reader", "target", "reject", "failed"],
        &["pass", "pin", "replay", "ignore", "reject", "failed"],
        &["pass", "failed"],
    ];
    /// How calls end that do not end well.
    pub const TRAPS: [&'static str; 5] = ["deadline", "memory", "panic", "stack", "other"];
    /// What becomes of a file.
    pub const OUTCOMES: [&'static str; 3] = ["applied", "unchanged", "refused"];
    /// What a plugin is.
    pub const STATES: [&'static str; 3] = ["running", "failed", "broken"];

    /// The handles of one plugin; both names are from the configuration.
    #[must_use]
    pub fn new(proxy: &str, plugin: &str) -> Self {
        let of_hook = |at: usize| [proxy, plugin, Self::HOOKS[at]];
        let calls = |at: usize| {
            let one =
                |verdict: &&str| counter(&table::PLUGIN_CALLS, &[proxy, plugin, Self::HOOKS[at], verdict]);
            Self::VERDICTS[at].iter().map(one).collect()
        };
        Self {
            calls: std::array::from_fn(calls),
            seconds: std::array::from_fn(|at| histogram(&table::PLUGIN_CALL_SECONDS, &of_hook(at))),
            cache_hits: std::array::from_fn(|at| counter(&table::PLUGIN_CACHE_HITS, &of_hook(at))),
            cache_disagreements: counter(&table::PLUGIN_CACHE_DISAGREEMENTS, &[proxy, plugin]),
            traps: Self::TRAPS.map(|kind| counter(&table::PLUGIN_TRAPS, &[proxy, plugin, kind])),
            reloads: Self::OUTCOMES.map(|outcome| counter(&table::PLUGIN_RELOADS, &[proxy, plugin, outcome])),
            states: Self::STATES.map(|state| gauge(&table::PLUGIN_STATE, &[proxy, plugin, state])),
            log_dropped: counter(&table::PLUGIN_LOG_DROPPED, &[proxy, plugin]),
            misuse: counter(&table::PLUGIN_MISUSE, &[proxy, plugin]),
            shadow_differences: std::array::from_fn(|at| counter(&table::PLUGIN_SHADOW, &of_hook(at))),
        }
    }

    /// A hook came to a verdict.
    pub fn answered(&self, hook: usize, verdict: &str) {
        let at = Self::VERDICTS[hook].iter().position(|known| *known == verdict);
        debug_assert!(at.is_some(), "{verdict}");
        if let Some(at) = at {
            self.calls[hook][at].increment(1);
        }
    }

    /// A call took so long.
    pub fn called(&self, hook: usize, took: Duration) {
        self.seconds[hook].record(took);
    }

    /// The plugin is in this state now; `None` when it is gone.
    pub fn in_state(&self, state: Option<&str>) {
        for (name, gauge) in Self::STATES.iter().zip(&self.states) {
            gauge.set(if state == Some(name) { 1.0 } else { 0.0 });
        }
    }
}

/// What is counted for all plugins of one proxy.
#[derive(Debug)]
pub struct PluginsMetrics {
    /// Events that no observer saw.
    pub events_lost: Counter,
}

impl PluginsMetrics {
    /// The handles of one proxy, by its name in the configuration.
    #[must_use]
    pub fn new(proxy: &str) -> Self {
        Self { events_lost: counter(&table::PLUGIN_EVENTS_LOST, &[proxy]) }
    }
}

/// What is counted of the audit sink.
#[derive(Debug)]
pub struct AuditMetrics {
    records: [Counter; 3],
    errors: Counter,
    queue: Gauge,
}

impl AuditMetrics {
    /// The handles of a sink: `file` or `stdout`.
    #[must_use]
    pub fn new(sink: &'static str) -> Self {
        let outcomes = ["written", "dropped", "lost"];
        Self {
            records: outcomes.map(|outcome| counter(&table::AUDIT_RECORDS, &[sink, outcome])),
            errors: counter(&table::AUDIT_ERRORS, &[sink]),
            queue: gauge(&table::AUDIT_QUEUE, &[sink]),
        }
    }

    /// So many records were written.
    pub fn written(&self, count: usize) {
        self.records[0].increment(count as u64);
    }

    /// One found no room.
    pub fn dropped(&self) {
        self.records[1].increment(1);
    }

    /// So many could not be written before the end.
    pub fn lost(&self, count: usize) {
        self.records[2].increment(count as u64);
    }

    /// A write failed.
    pub fn failed(&self) {
        self.errors.increment(1);
    }

    /// So many wait now.
    pub fn queued(&self, count: usize) {
        self.queue.set(count as f64);
    }
}

/// What became of a new configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// All of it holds now.
    Applied,
    /// Some keys hold only after a restart; the rest holds now.
    Partial,
    /// Nothing changed.
    Refused,
}

/// What is counted per process.
#[derive(Debug)]
pub struct ProcessMetrics {
    /// Configuration reloads, in the order of [`ReloadOutcome`].
    pub config_reloads: [Counter; 3],
    /// Always 1.
    pub build_info: Gauge,
}

impl ProcessMetrics {
    /// The handles of this process.
    #[must_use]
    pub fn new() -> Self {
        let build_info = gauge(&table::BUILD, &[env!("CARGO_PKG_VERSION")]);
        build_info.set(1.0);
        let outcomes = ["applied", "partial", "refused"];
        Self { config_reloads: outcomes.map(|outcome| counter(&table::RELOADS, &[outcome])), build_info }
    }

    /// A configuration was read again.
    pub fn reloaded(&self, outcome: ReloadOutcome) {
        self.config_reloads[outcome as usize].increment(1);
    }
}

impl Default for ProcessMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// `AvailabilityPercentage`: the health checks of the last minute, one slot a second.
#[derive(Debug)]
pub struct Availability {
    gauge: Gauge,
    started: Instant,
    slots: [Slot; 60],
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Seconds since `started`.
    second: u64,
    passed: u32,
    checks: u32,
}

impl Availability {
    /// No checks yet: `gauge`, a target's `availability_percentage`, stays as it is until the first.
    #[must_use]
    pub fn new(gauge: Gauge) -> Self {
        Self { gauge, started: Instant::now(), slots: [Slot::default(); 60] }
    }

    /// From now on it is `gauge` that is set: the target's role has changed.
    pub fn shown_by(&mut self, gauge: Gauge) {
        self.gauge = gauge;
    }

    /// Takes in the outcome of one health check and sets the gauge, 0 to 100.
    pub fn record(&mut self, ok: bool) {
        let percent = self.record_at(self.started.elapsed(), ok);
        self.gauge.set(percent);
    }

    fn record_at(&mut self, since_start: Duration, ok: bool) -> f64 {
        let now = since_start.as_secs();
        let slot = &mut self.slots[(now % 60) as usize];
        if slot.second != now {
            *slot = Slot { second: now, ..Slot::default() };
        }
        slot.checks += 1;
        slot.passed += u32::from(ok);
        let (passed, checks) = self
            .slots
            .iter()
            .filter(|slot| now - slot.second < 60)
            .fold((0, 0), |(passed, checks), slot| (passed + slot.passed, checks + slot.checks));
        100.0 * f64::from(passed) / f64::from(checks)
    }
}

/// Why there is no recorder.
#[derive(Debug, thiserror::Error)]
#[error("a metrics recorder was installed before")]
pub struct InstallError;

/// Where all handles of this process record to.
#[derive(Debug)]
pub struct Recorder {
    prometheus: PrometheusHandle,
    histograms: Arc<Histograms>,
    plugins: Arc<UserMetrics>,
}

/// Makes the process's recorder, described and empty. Before any handle is made, and once.
///
/// # Errors
/// When there is one already.
pub fn install() -> Result<Recorder, InstallError> {
    let (recorder, sink) = recorder();
    metrics::set_global_recorder(sink).map_err(|_| InstallError)?;
    Ok(recorder)
}

impl Recorder {
    /// All series in Prometheus' text format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = self.prometheus.render();
        self.histograms.render(&mut out);
        self.plugins.render(&mut out);
        out
    }

    /// Where plugins' own metrics go.
    #[must_use]
    pub fn plugins(&self) -> Arc<UserMetrics> {
        self.plugins.clone()
    }

    /// The exporter's housekeeping; call it every 5 s.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

fn recorder() -> (Recorder, Sink) {
    let prometheus = PrometheusBuilder::new().build_recorder();
    let sink = Sink { prometheus, histograms: Arc::default() };
    for metric in METRICS {
        let (name, unit, help) =
            (KeyName::from_const_str(metric.name), Some(metric.unit), SharedString::const_str(metric.help));
        match metric.kind {
            Kind::Counter => sink.describe_counter(name, unit, help),
            Kind::Gauge => sink.describe_gauge(name, unit, help),
            Kind::Histogram(_) => sink.describe_histogram(name, unit, help),
        }
    }
    let recorder = Recorder {
        prometheus: sink.prometheus.handle(),
        histograms: Arc::clone(&sink.histograms),
        plugins: Arc::default(),
    };
    (recorder, sink)
}

/// The `metrics` crate's end: the exporter keeps counters and gauges, histograms are ours (see `histogram.rs`).
struct Sink {
    prometheus: PrometheusRecorder,
    histograms: Arc<Histograms>,
}

impl metrics::Recorder for Sink {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.prometheus.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.prometheus.describe_gauge(key, unit, description);
    }

    /// Nothing to keep: [`METRICS`] has the text.
    fn describe_histogram(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.prometheus.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.prometheus.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        self.histograms.register(key)
    }
}

/// Every histogram: by metric, then by labels as they are rendered.
#[derive(Default)]
struct Histograms(Mutex<BTreeMap<&'static str, BTreeMap<String, Arc<BucketHistogram>>>>);

impl std::fmt::Debug for Histograms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Histograms")
    }
}

impl Histograms {
    /// The histogram of these labels, made when it is new. One that is not in [`METRICS`] (some dependency's)
    /// records nothing.
    fn register(&self, key: &Key) -> Histogram {
        let of_key = METRICS.iter().find_map(|metric| match metric.kind {
            Kind::Histogram(bounds) if metric.name == key.name() => Some((metric.name, bounds)),
            _ => None,
        });
        let Some((name, bounds)) = of_key else { return Histogram::noop() };
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}=\"{}\"", label.key(), escape(label.value()))).collect();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(name).or_default().entry(labels.join(","));
        Histogram::from_arc(Arc::clone(entry.or_insert_with(|| Arc::new(BucketHistogram::new(bounds)))))
    }

    fn render(&self, out: &mut String) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, by_labels) in &*all {
            let help = METRICS.iter().find(|metric| metric.name == *name).map_or("", |metric| metric.help);
            out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} histogram\n"));
            for (labels, histogram) in by_labels {
                histogram.render(name, labels, out);
            }
            out.push('\n');
        }
    }
}

/// A label value as the text format wants it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn counter(metric: &Metric, values: &[&str]) -> Counter {
    debug_assert_eq!(metric.kind, Kind::Counter, "{}", metric.name);
    metrics::with_recorder(|sink| sink.register_counter(&key(metric, values), &METADATA))
}

fn gauge(metric: &Metric, values: &[&str]) -> Gauge {
    debug_assert_eq!(metric.kind, Kind::Gauge, "{}", metric.name);
    metrics::with_recorder(|sink| sink.register_gauge(&key(metric, values), &METADATA))
}

fn histogram(metric: &Metric, values: &[&str]) -> Histogram {
    debug_assert!(matches!(metric.kind, Kind::Histogram(_)), "{}", metric.name);
    metrics::with_recorder(|sink| sink.register_histogram(&key(metric, values), &METADATA))
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

fn key(metric: &Metric, values: &[&str]) -> Key {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    let labels: Vec<Label> = metric
        .labels
        .iter()
        .zip(values)
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(metric.name, labels)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    const DOC: &str = include_str!("../../docs/metrics.md");
    const ALERTS: &str = include_str!("../../deploy/alerts.yml");
    const DASHBOARD: &str = include_str!("../../deploy/grafana-dashboard.json");

    /// A recorder of its own that sees what `record` makes and counts.
    pub(crate) fn recorded<T>(record: impl FnOnce() -> T) -> (Recorder, T) {
        let (recorder, sink) = recorder();
        let value = metrics::with_local_recorder(&sink, record);
        (recorder, value)
    }

    /// Every handle there is.
    fn everything() -> (EndpointMetrics, TargetMetrics, ProxyMetrics, ProcessMetrics) {
        let _plugins = (PluginMetrics::new("p", "x"), PluginsMetrics::new("p"), AuditMetrics::new("file"));
        (
            EndpointMetrics::new("p", "e"),
            TargetMetrics::new("p", "db:5432", Role::ReadWrite),
            ProxyMetrics::new("p"),
            ProcessMetrics::new(),
        )
    }

    /// The value of the one series that `series` names.
    fn value(text: &str, series: &str) -> f64 {
        let mut found = text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = found.next().unwrap_or_else(|| panic!("no {series} in\n{text}"));
        assert_eq!(found.next(), None, "{series} twice");
        value.parse().unwrap()
    }

    /// The cells of each row of the doc's table, backquotes taken off.
    fn doc_rows() -> Vec<Vec<String>> {
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>();
        DOC.lines()
            .filter(|line| line.starts_with("| `pinion_"))
            .map(|line| cells(line.trim_matches(['|', ' '])))
            .collect()
    }

    #[test]
    fn the_doc_and_the_table_say_the_same() {
        let want: Vec<Vec<String>> = METRICS
            .iter()
            .map(|metric| {
                let rds = metric.rds.map_or_else(|| "-".to_owned(), |(row, name)| format!("{row} {name}"));
                let labels = metric.labels.join(", ");
                [metric.name, metric.kind.name(), &labels, metric.unit.as_str(), metric.help, &rds]
                    .map(str::to_owned)
                    .into()
            })
            .collect();
        assert_eq!(doc_rows(), want);
    }

    #[test]
    fn names_are_unique_and_in_prometheus_form() {
        let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
        for Metric { name, kind, unit, .. } in &METRICS {
            assert!(name.starts_with("pinion_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_seconds"), *unit == Seconds, "{name}");
            if let Kind::Histogram(bounds) = kind {
                assert!(bounds.is_sorted(), "{name}");
            }
        }
    }

    #[test]
    fn all_rows_of_rds_proxy_are_there() {
        let rows: BTreeSet<u8> = METRICS.iter().filter_map(|metric| Some(metric.rds?.0)).collect();
        assert_eq!(rows, (1..=24).collect());
    }

    #[test]
    fn every_metric_is_rendered_from_the_start_with_its_type_help_and_labels() {
        let (recorder, _handles) = recorded(everything);
        let text = recorder.render();
        for metric in METRICS {
            let (name, kind) = (metric.name, metric.kind.name());
            assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} in\n{text}");
            assert!(text.contains(&format!("# HELP {name} {}\n", metric.help)), "{name} in\n{text}");
            let suffix = if kind == "histogram" { "_count" } else { "" };
            let series = format!("{name}{suffix}{{");
            let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(&series)).collect();
            assert!(!lines.is_empty(), "{name} in\n{text}");
            for line in lines {
                let (labels, number) = line.split_once("} ").unwrap();
                let names: Vec<&str> =
                    labels.split(',').map(|label| label.split_once('=').unwrap().0).collect();
                assert_eq!(names, metric.labels, "{name}");
                assert_eq!(number, if name == "pinion_build_info" { "1" } else { "0" }, "{name}");
            }
        }
        let rendered = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
        assert_eq!(rendered, METRICS.len(), "a metric that the table has not:\n{text}");
    }

    #[test]
    fn client_connections_are_always_those_with_tls_and_those_without() {
        let (recorder, (endpoint, ..)) = recorded(everything);
        let gauges = || {
            let text = recorder.render();
            ["", "_no_tls", "_tls"].map(|kind| {
                value(&text, &format!("pinion_client_connections{kind}{{proxy=\"p\",endpoint=\"e\"}}"))
            })
        };
        endpoint.client_connected();
        endpoint.client_connected();
        assert_eq!(gauges(), [2.0, 2.0, 0.0]);
        endpoint.client_tls();
        assert_eq!(gauges(), [2.0, 1.0, 1.0]);
        endpoint.client_closed(true);
        assert_eq!(gauges(), [1.0, 1.0, 0.0]);
        endpoint.client_closed(false);
        assert_eq!(gauges(), [0.0, 0.0, 0.0]);
        let text = recorder.render();
        assert_eq!(value(&text, "pinion_client_connections_received_total{proxy=\"p\",endpoint=\"e\"}"), 2.0);
        assert_eq!(value(&text, "pinion_client_connections_closed_total{proxy=\"p\",endpoint=\"e\"}"), 2.0);
    }

    #[test]
    fn a_refused_query_counts_but_not_as_database_time() {
        let (recorder, (endpoint, target, ..)) = recorded(everything);
        endpoint.query_finished(true, Duration::from_millis(3), Duration::from_millis(2));
        target.responded(Duration::from_millis(2));
        endpoint.query_refused(false, Duration::from_secs(2));
        let text = recorder.render();
        let of_endpoint =
            |name: &str| value(&text, &format!("pinion_query_{name}{{proxy=\"p\",endpoint=\"e\"}}"));
        assert_eq!(of_endpoint("requests_total"), 2.0);
        assert_eq!(of_endpoint("requests_tls_total"), 1.0);
        assert_eq!(of_endpoint("requests_no_tls_total"), 1.0);
        assert_eq!(of_endpoint("response_latency_seconds_count"), 2.0);
        assert_eq!(of_endpoint("response_latency_seconds_sum"), 2.003);
        assert_eq!(of_endpoint("database_response_latency_seconds_count"), 1.0);
        assert_eq!(of_endpoint("database_response_latency_seconds_sum"), 0.002);
        let bucket = |le: &str| {
            let labels = format!("proxy=\"p\",endpoint=\"e\",le=\"{le}\"");
            value(&text, &format!("pinion_query_response_latency_seconds_bucket{{{labels}}}"))
        };
        assert_eq!(
            ["0.00005", "0.002", "0.005", "1", "2", "60", "+Inf"].map(bucket),
            [0., 0., 1., 1., 2., 2., 2.]
        );
    }

    #[test]
    fn a_pin_counts_once_for_each_of_its_reasons() {
        let (recorder, (endpoint, ..)) = recorded(everything);
        let reasons = PinReasons::only(PinReason::Listen).union(PinReasons::only(PinReason::Unknown));
        endpoint.pinned(reasons);
        endpoint.pinned(PinReasons::only(PinReason::Listen));
        endpoint.unpinned(Duration::from_secs(7));
        let text = recorder.render();
        for reason in PinReason::ALL {
            let series =
                format!("pinion_pins_total{{proxy=\"p\",endpoint=\"e\",reason=\"{}\"}}", reason.name());
            let want = match reason {
                PinReason::Listen => 2.0,
                PinReason::Unknown => 1.0,
                _ => 0.0,
            };
            assert_eq!(value(&text, &series), want, "{series}");
        }
        assert_eq!(value(&text, "pinion_pinned_seconds_sum{proxy=\"p\",endpoint=\"e\"}"), 7.0);
    }

    #[test]
    fn a_target_counts_its_connections_and_resets() {
        let (recorder, (_, target, ..)) = recorded(everything);
        let labels = "{proxy=\"p\",target_group=\"default\",target=\"db:5432\",target_role=\"READ_WRITE\"}";
        let of_target = |name: &str| {
            target.set(TargetGauges::default());
            value(&recorder.render(), &format!("pinion_{name}{labels}"))
        };
        target.connecting(true);
        target.connected(true);
        target.connecting(false);
        target.connected(false);
        target.connecting(true);
        target.connect_failed();
        assert_eq!(of_target("database_connection_requests_total"), 3.0);
        assert_eq!(of_target("database_connection_requests_with_tls_total"), 2.0);
        assert_eq!(of_target("database_connections_setup_succeeded_total"), 2.0);
        assert_eq!(of_target("database_connections_setup_failed_total"), 1.0);
        assert_eq!(of_target("database_connections"), 2.0);
        target.disconnected(false);
        assert_eq!(of_target("database_connections"), 1.0);
        assert_eq!(of_target("database_connections_with_tls"), 1.0);
        target.reset(ResetCause::Tainted);
        let resets = "pinion_connection_resets_total{proxy=\"p\",target=\"db:5432\",cause=";
        assert_eq!(value(&recorder.render(), &format!("{resets}\"tainted\"}}")), 1.0);
        assert_eq!(value(&recorder.render(), &format!("{resets}\"pinned\"}}")), 0.0);
    }

    #[test]
    fn a_target_that_changes_its_role_is_counted_on_under_the_new_one() {
        let ((recorder, sink), target) = (recorder(), std::cell::OnceCell::new());
        metrics::with_local_recorder(&sink, || {
            let target = target.get_or_init(|| TargetMetrics::new("p", "db:5432", Role::ReadWrite));
            target.found(Role::ReadWrite);
            target.connected(true);
            target.set(TargetGauges { borrowed: 1, allowed: 9, ..TargetGauges::default() });
            target.found(Role::ReadOnly);
            target.connected(false);
            target.set(TargetGauges { borrowed: 2, allowed: 9, ..TargetGauges::default() });
        });
        let text = recorder.render();
        for (name, before, after) in [
            ("database_connections", 0.0, 2.0),
            ("database_connections_with_tls", 0.0, 1.0),
            ("database_connections_currently_borrowed", 0.0, 2.0),
            ("max_database_connections_allowed", 0.0, 9.0),
            ("database_connections_setup_succeeded_total", 1.0, 1.0),
        ] {
            for (role, want) in [("READ_WRITE", before), ("READ_ONLY", after)] {
                let labels =
                    format!("proxy=\"p\",target_group=\"default\",target=\"db:5432\",target_role=\"{role}\"");
                assert_eq!(value(&text, &format!("pinion_{name}{{{labels}}}")), want, "{name} {role}");
            }
        }
        for (role, want) in [("READ_WRITE", 0.0), ("READ_ONLY", 1.0), ("UNKNOWN", 0.0)] {
            let series = format!("pinion_target_role{{proxy=\"p\",target=\"db:5432\",role=\"{role}\"}}");
            assert_eq!(value(&text, &series), want);
        }
    }

    #[test]
    fn outcomes_land_under_their_own_label() {
        let (recorder, (_, _, proxy, process)) = recorded(everything);
        for (outcome, label) in [
            (CancelOutcome::Forwarded, "forwarded"),
            (CancelOutcome::NothingRunning, "nothing-running"),
            (CancelOutcome::UnknownKey, "unknown-key"),
            (CancelOutcome::Failed, "failed"),
        ] {
            proxy.cancelled(outcome);
            let series = format!("pinion_cancel_requests_total{{proxy=\"p\",outcome=\"{label}\"}}");
            assert_eq!(value(&recorder.render(), &series), 1.0);
        }
        for (outcome, label) in [
            (ReloadOutcome::Applied, "applied"),
            (ReloadOutcome::Partial, "partial"),
            (ReloadOutcome::Refused, "refused"),
        ] {
            process.reloaded(outcome);
            let series = format!("pinion_config_reloads_total{{outcome=\"{label}\"}}");
            assert_eq!(value(&recorder.render(), &series), 1.0);
        }
    }

    #[test]
    fn handles_made_again_go_on_with_the_same_series() {
        let (recorder, ()) = recorded(|| {
            for _ in 0..2 {
                let endpoint = EndpointMetrics::new("a\"b", "e");
                endpoint.client_connected();
                endpoint.borrowed(Duration::from_millis(1));
            }
        });
        let text = recorder.render();
        let labels = "{proxy=\"a\\\"b\",endpoint=\"e\"}";
        assert_eq!(value(&text, &format!("pinion_client_connections{labels}")), 2.0);
        assert_eq!(
            value(&text, &format!("pinion_database_connections_borrow_latency_seconds_count{labels}")),
            2.0
        );
    }

    #[test]
    fn without_a_recorder_handles_do_nothing_and_do_not_fail() {
        let (endpoint, target, ..) = everything();
        endpoint.query_finished(false, Duration::ZERO, Duration::ZERO);
        target.connected(true);
        let (recorder, ()) = recorded(|| ());
        assert_eq!(recorder.render().trim(), "");
    }

    #[test]
    fn availability_is_the_share_of_the_last_minute() {
        let mut availability = Availability::new(Gauge::noop());
        let mut check = |second: u64, ok: bool| availability.record_at(Duration::from_secs(second), ok);
        assert_eq!(check(0, true), 100.0);
        assert_eq!(check(0, false), 50.0);
        assert_eq!(check(30, true), 100.0 * 2.0 / 3.0);
        assert_eq!(check(59, true), 75.0);
        assert_eq!(check(60, true), 100.0); // second 0 has left the minute
        assert_eq!(check(3_600, false), 0.0);
    }

    #[test]
    fn availability_sets_its_gauge() {
        let (recorder, (_, target, ..)) = recorded(everything);
        let mut availability = Availability::new(target.now().availability_percentage.clone());
        availability.record(true);
        let labels = "proxy=\"p\",target_group=\"default\",target=\"db:5432\",target_role=\"READ_WRITE\"";
        assert_eq!(value(&recorder.render(), &format!("pinion_availability_percentage{{{labels}}}")), 100.0);
    }

    #[test]
    fn alerts_and_dashboard_use_only_metrics_that_exist() {
        for (file, text, at_least) in [("alerts.yml", ALERTS, 8), ("grafana-dashboard.json", DASHBOARD, 15)] {
            let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
            let used: BTreeSet<&str> = text.split(word).filter(|name| name.starts_with("pinion_")).collect();
            assert!(used.len() >= at_least, "{file} uses only {used:?}");
            for name in used {
                let known = METRICS.iter().any(|metric| match metric.kind {
                    Kind::Histogram(_) => {
                        matches!(name.strip_prefix(metric.name), Some("_bucket" | "_sum" | "_count"))
                    }
                    _ => metric.name == name,
                });
                assert!(known, "{file}: there is no {name}");
            }
        }
    }

    #[test]
    fn the_dashboard_is_json_with_a_query_in_every_panel() {
        let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let with_data: Vec<_> = panels.iter().filter(|panel| panel["type"] != "row").collect();
        assert!(with_data.len() >= 10);
        let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "ids repeat");
        for panel in with_data {
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{}", panel["title"]);
            for target in targets {
                assert!(target["expr"].as_str().unwrap().contains("pinion_"), "{}", panel["title"]);
            }
        }
    }

    #[test]
    fn every_alert_says_what_to_look_at() {
        let rules: Vec<&str> = ALERTS.split("- alert: ").skip(1).collect();
        assert!(rules.len() >= 8);
        for rule in rules {
            for key in ["expr:", "severity:", "summary:", "description:"] {
                assert!(rule.contains(key), "{key} is missing from {rule}");
            }
        }
    }
}
