//! Which target a request goes to: a pure function of what the targets are now, the endpoint's role, and where a
//! policy wants the request.
//!
//! A `READ_ONLY` endpoint leads to readers whatever a policy says. A `READ_WRITE` endpoint leads to the writer unless a
//! policy says otherwise.

use crate::{
    config::TargetRole,
    protocol::{Fault, FaultKind, Role},
};

/// Where a request should run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Route {
    /// As the endpoint's role says.
    #[default]
    Endpoint,
    /// The writer.
    Writer,
    /// A reader, or the writer when there is none.
    Reader,
    /// The target of this name.
    Target(Box<str>),
}

/// One target as the choice sees it.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// `host:port`.
    pub name: &'a str,
    /// As last found.
    pub role: Role,
    /// It answered when last asked.
    pub usable: bool,
    /// Connections borrowed, and clients in line.
    pub outstanding: usize,
    /// Most connections it may have: its weight.
    pub capacity: usize,
}

/// No target can be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoTarget {
    /// None has this role now; one may come to have it.
    Wait(Role),
    /// Every target is known, and none has this role.
    Never(Role),
    /// The target a policy named is unknown, does not answer, or has not the role that the endpoint demands.
    Named(Box<str>),
}

impl NoTarget {
    /// What the client is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let message = match self {
            Self::Wait(role) | Self::Never(role) => {
                format!("No usable target with the role {}.", role.name())
            }
            Self::Named(name) => format!("No usable target named \"{name}\"."),
        };
        Fault::error(FaultKind::NoTarget, message)
    }

    /// False when waiting is of no use.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Wait(_))
    }
}

/// The index of the target for a request. `turn` decides between readers that are equally loaded: a client that
/// always gives the same number stays with one reader as long as nothing speaks against it.
///
/// A target that does not answer is chosen only where no other has the role: it may be back before anyone has
/// noticed, and who waits there is told of every change.
pub fn choose(
    targets: &[Snapshot<'_>],
    endpoint: TargetRole,
    route: &Route,
    turn: u64,
) -> Result<usize, NoTarget> {
    match (endpoint, route) {
        (_, Route::Target(name)) => {
            let named = |target: &Snapshot<'_>| *target.name == **name && is_fit(target, endpoint, route);
            targets.iter().position(named).ok_or_else(|| NoTarget::Named(name.clone()))
        }
        (TargetRole::ReadOnly, _) => reader(targets, turn)
            .or_else(|| first(targets, Role::ReadOnly))
            .or_else(|| first(targets, Role::Unknown))
            .ok_or(NoTarget::Never(Role::ReadOnly)),
        (TargetRole::ReadWrite, Route::Reader) => reader(targets, turn).map_or_else(|| writer(targets), Ok),
        (TargetRole::ReadWrite, Route::Endpoint | Route::Writer) => writer(targets),
    }
}

/// True when `target` is what such a request asks for, and no stopgap.
#[must_use]
pub fn is_fit(target: &Snapshot<'_>, endpoint: TargetRole, route: &Route) -> bool {
    let role = match (endpoint, route) {
        (TargetRole::ReadWrite, Route::Target(_)) => return target.usable,
        (TargetRole::ReadOnly, _) | (TargetRole::ReadWrite, Route::Reader) => Role::ReadOnly,
        (TargetRole::ReadWrite, Route::Endpoint | Route::Writer) => Role::ReadWrite,
    };
    target.usable && target.role == role
}

/// The first that says it is the writer, before one that said so when it last answered, before one never heard of.
fn writer(targets: &[Snapshot<'_>]) -> Result<usize, NoTarget> {
    targets
        .iter()
        .position(|target| target.usable && target.role == Role::ReadWrite)
        .or_else(|| first(targets, Role::ReadWrite))
        .or_else(|| first(targets, Role::Unknown))
        .ok_or(NoTarget::Wait(Role::ReadWrite))
}

/// The usable reader with the least outstanding connections for its capacity, this one counted in.
fn reader(targets: &[Snapshot<'_>], turn: u64) -> Option<usize> {
    let readers =
        || targets.iter().enumerate().filter(|(_, target)| target.usable && target.role == Role::ReadOnly);
    let count = readers().count();
    if count == 0 {
        return None;
    }
    // Fits, since it is less than `count`.
    let skip = (turn % count as u64) as usize;
    let load = |target: &Snapshot<'_>| (target.outstanding as u128 + 1, target.capacity.max(1) as u128);
    readers()
        .cycle()
        .skip(skip)
        .take(count)
        .min_by(|(_, a), (_, b)| {
            let ((a, a_capacity), (b, b_capacity)) = (load(a), load(b));
            (a * b_capacity).cmp(&(b * a_capacity))
        })
        .map(|(at, _)| at)
}

fn first(targets: &[Snapshot<'_>], role: Role) -> Option<usize> {
    targets.iter().position(|target| target.role == role)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `w` writer, `r` reader, `u` unknown; in capitals when it answers. A reader's outstanding connections and
    /// capacity follow, as in `R3/100`. Targets are named `a`, `b`, `c`.
    fn check(targets: &str, endpoint: TargetRole, route: Route, expected: &str) {
        check_turn(targets, endpoint, route, 0, expected);
    }

    fn check_turn(targets: &str, endpoint: TargetRole, route: Route, turn: u64, expected: &str) {
        let snapshots: Vec<_> = targets
            .split_whitespace()
            .zip(["a", "b", "c"])
            .map(|(text, name)| {
                let (letter, load) = text.split_at(1);
                let (outstanding, capacity) = load.split_once('/').unwrap_or(("0", "100"));
                Snapshot {
                    name,
                    role: match letter.to_ascii_lowercase().as_str() {
                        "w" => Role::ReadWrite,
                        "r" => Role::ReadOnly,
                        _ => Role::Unknown,
                    },
                    usable: letter.chars().all(char::is_uppercase),
                    outstanding: outstanding.parse().expect("a number"),
                    capacity: capacity.parse().expect("a number"),
                }
            })
            .collect();
        let chosen = match choose(&snapshots, endpoint, &route, turn) {
            Ok(at) => snapshots[at].name.to_owned(),
            Err(NoTarget::Wait(_)) => "wait".to_owned(),
            Err(NoTarget::Never(_)) => "never".to_owned(),
            Err(NoTarget::Named(_)) => "named".to_owned(),
        };
        assert_eq!(chosen, expected, "{targets} {endpoint:?} {route:?} {turn}");
    }

    use TargetRole::{ReadOnly, ReadWrite};

    fn named(name: &str) -> Route {
        Route::Target(name.into())
    }

    #[test]
    fn a_read_write_endpoint_leads_to_the_writer() {
        for route in [Route::Endpoint, Route::Writer] {
            for (targets, expected) in [
                ("W", "a"),
                ("R W R", "b"),
                ("W W", "a"), // two writers: the first as configured
                ("w R", "a"), // it may be back before anyone has noticed
                ("w W", "b"), // after a failover
                ("u", "a"),
                ("R u", "b"),
                ("u w", "b"),
                ("R R", "wait"),
                ("R r", "wait"),
            ] {
                check(targets, ReadWrite, route.clone(), expected);
            }
        }
    }

    #[test]
    fn a_read_only_endpoint_leads_to_readers_whatever_a_policy_says() {
        for route in [Route::Endpoint, Route::Writer, Route::Reader] {
            for (targets, expected) in [
                ("W R", "b"),
                ("W r R", "c"),
                ("W r", "b"),
                ("W u", "b"),
                ("W u r", "c"),
                ("W", "never"),
                ("W w", "never"),
                ("R", "a"),
            ] {
                check(targets, ReadOnly, route.clone(), expected);
            }
        }
        check("W R", ReadOnly, named("b"), "b");
        check("W R", ReadOnly, named("a"), "named");
    }

    #[test]
    fn a_policy_may_send_a_request_of_a_read_write_endpoint_elsewhere() {
        check("W R", ReadWrite, Route::Reader, "b");
        check("W r", ReadWrite, Route::Reader, "a");
        check("W", ReadWrite, Route::Reader, "a");
        check("r", ReadWrite, Route::Reader, "wait");
        check("W R", ReadWrite, named("b"), "b");
        check("W R", ReadWrite, named("a"), "a");
        check("W r", ReadWrite, named("b"), "named");
        check("W R", ReadWrite, named("c"), "named");
    }

    #[test]
    fn the_reader_with_the_least_load_for_its_size_is_taken() {
        for (targets, expected) in [
            ("R1/100 R0/100", "b"),
            ("R0/100 R1/100", "a"),
            ("R0/100 R0/200", "b"),
            ("R1/100 R2/200", "b"),
            ("R1/100 R4/200", "a"),
            ("R0/0 R0/1", "a"),
            ("R9/100 r0/100", "a"),
            ("W0/100 R9/100", "b"),
        ] {
            check(targets, ReadOnly, Route::Endpoint, expected);
        }
    }

    #[test]
    fn equal_readers_take_turns_and_a_client_keeps_its_own() {
        for (turn, expected) in [(0, "b"), (1, "c"), (2, "b"), (u64::MAX, "c")] {
            check_turn("W R R", ReadOnly, Route::Endpoint, turn, expected);
        }
        check_turn("W R1/100 R0/100", ReadOnly, Route::Endpoint, 0, "c");
    }

    #[test]
    fn what_is_fit_is_no_stopgap() {
        let target = |role, usable| Snapshot { name: "a", role, usable, outstanding: 0, capacity: 1 };
        assert!(is_fit(&target(Role::ReadWrite, true), ReadWrite, &Route::Endpoint));
        assert!(!is_fit(&target(Role::ReadWrite, false), ReadWrite, &Route::Endpoint));
        assert!(!is_fit(&target(Role::ReadOnly, true), ReadWrite, &Route::Endpoint));
        assert!(!is_fit(&target(Role::ReadWrite, true), ReadWrite, &Route::Reader));
        assert!(is_fit(&target(Role::ReadOnly, true), ReadWrite, &named("a")));
        assert!(!is_fit(&target(Role::ReadWrite, true), ReadOnly, &Route::Writer));
    }

    #[test]
    fn the_fault_names_what_is_missing() {
        assert_eq!(
            NoTarget::Never(Role::ReadOnly).fault().message,
            "No usable target with the role READ_ONLY."
        );
        assert_eq!(
            NoTarget::Wait(Role::ReadWrite).fault().message,
            "No usable target with the role READ_WRITE."
        );
        assert_eq!(
            NoTarget::Named("db9:5432".into()).fault().message,
            "No usable target named \"db9:5432\"."
        );
    }
}
