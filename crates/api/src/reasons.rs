//! Condition types and reasons: a stable vocabulary that pipelines may depend on.

/// Condition: the data centre has room for this Comune.
pub const ADMITTED: &str = "Admitted";
/// Condition: every namespace exists with its quota, limits and role bindings.
pub const NAMESPACES_READY: &str = "NamespacesReady";
/// Condition: every namespace has its network policies.
pub const NETWORK_ISOLATED: &str = "NetworkIsolated";
/// Condition: every declared database is as declared.
pub const DATABASES_READY: &str = "DatabasesReady";
/// Condition: the objects of every declared service are as declared.
pub const SERVICES_DEPLOYED: &str = "ServicesDeployed";
/// Condition: everything is as declared, at this generation.
pub const READY: &str = "Ready";
/// Condition: the pods of every service are up.
pub const AVAILABLE: &str = "Available";
/// Condition: every workload of the local servers has been taken over.
pub const SERVERS_MIGRATED: &str = "ServersMigrated";
/// Condition: what it has is being deleted, or is going to be. Only on a Comune with `deletionPolicy: Delete` that
/// somebody has deleted.
pub const DELETING: &str = "Deleting";

/// All conditions that every Comune has, in the order in which they are shown.
pub const COMUNE_CONDITIONS: [&str; 8] = [
    ADMITTED,
    NAMESPACES_READY,
    NETWORK_ISOLATED,
    DATABASES_READY,
    SERVICES_DEPLOYED,
    READY,
    AVAILABLE,
    SERVERS_MIGRATED,
];

/// Everything is as the manifest says.
pub const AS_DECLARED: &str = "AsDeclared";
/// The operator is at work on it.
pub const IN_PROGRESS: &str = "InProgress";
/// The manifest names something that does not exist, or contradicts itself.
pub const INVALID: &str = "Invalid";
/// Another Comune, or another owner, holds what this one asks for.
pub const CONFLICT: &str = "Conflict";
/// The data centre would lose its reserve.
pub const INSUFFICIENT_CAPACITY: &str = "InsufficientCapacity";
/// There is no DataCenter object to decide with.
pub const NO_DATA_CENTER: &str = "NoDataCenter";
/// `spec.paused` is set.
pub const PAUSED: &str = "Paused";
/// An API server refused or failed a call.
pub const API_ERROR: &str = "ApiError";
/// A database could not be brought to its declared state.
pub const DATABASE_FAILED: &str = "DatabaseFailed";
/// A database that was provisioned is gone from its server.
pub const DATA_MISSING: &str = "DataMissing";
/// A database holds more than it may: growth is stopped.
pub const DATABASE_FULL: &str = "DatabaseFull";
/// A database holds almost as much as it may. On the database itself, and an event.
pub const DATABASE_NEARLY_FULL: &str = "DatabaseNearlyFull";
/// The manifest names another server than the one that holds the data.
pub const MOVED: &str = "Moved";
/// Event: a database has a new password.
pub const CREDENTIALS_ROTATED: &str = "CredentialsRotated";
/// A database server does not answer.
pub const SERVER_UNREACHABLE: &str = "ServerUnreachable";
/// The quota leaves no room for an object that is declared.
pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
/// The quota is smaller than what is in use.
pub const OVER_LIMIT: &str = "OverLimit";
/// Not every pod is up.
pub const PODS_NOT_READY: &str = "PodsNotReady";
/// Every pod is up.
pub const PODS_READY: &str = "PodsReady";
/// Nothing of this sort is declared.
pub const NONE_DECLARED: &str = "NoneDeclared";
/// Workloads are declared and none has been moved.
pub const NOT_STARTED: &str = "NotStarted";
/// The operator waits for something outside itself.
pub const WAITING: &str = "Waiting";
/// This DataCenter is not the one that the operator serves.
pub const NOT_SELECTED: &str = "NotSelected";
/// The deletion waits for a person's confirmation.
pub const CONFIRMATION_MISSING: &str = "ConfirmationMissing";
/// The deletion is confirmed; nothing is deleted before the grace period has ended.
pub const GRACE_PERIOD: &str = "GracePeriod";
/// Databases and namespaces are being deleted.
pub const CLEANING_UP: &str = "CleaningUp";
/// `spec.protected` is set.
pub const PROTECTED: &str = "Protected";

#[cfg(test)]
mod tests {
    /// Values of the constants above, as they stand in this file.
    fn words() -> Vec<&'static str> {
        let source = include_str!("reasons.rs").split("#[cfg(test)]").next().unwrap_or_default();
        let constants =
            source.lines().filter(|line| line.starts_with("pub const") && line.contains(": &str = "));
        constants.filter_map(|line| line.split('"').nth(1)).collect()
    }

    #[test]
    fn every_condition_and_reason_is_explained_in_both_languages() {
        let words = words();
        assert!(words.len() > 30, "the walk is broken: {words:?}");
        for (file, text) in [
            ("docs/guide/conditions.md", include_str!("../../../docs/guide/conditions.md")),
            ("docs/guida/condizioni.md", include_str!("../../../docs/guida/condizioni.md")),
        ] {
            for word in &words {
                let explained = text.lines().any(|line| {
                    line.starts_with("| ")
                        && line.split(" | ").next().is_some_and(|cell| cell.contains(&format!("`{word}`")))
                });
                assert!(explained, "{file} does not explain {word}");
            }
        }
    }
}
