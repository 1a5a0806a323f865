//! Label and annotation keys, and the field managers that the operator writes with.

/// Label on every child: the name of the Comune it belongs to.
pub const COMUNE: &str = "conme.venis.it/comune";
/// Label on every child: the part of the Comune it implements, such as `isolation` or `service-portale`.
pub const COMPONENT: &str = "conme.venis.it/component";
/// Label on every namespace of a Comune: the environment.
pub const ENVIRONMENT: &str = "conme.venis.it/environment";
/// Label on the objects of a service: its name in the manifest.
pub const SERVICE: &str = "conme.venis.it/service";
/// Label on the objects of a service: the template it comes from.
pub const TEMPLATE: &str = "conme.venis.it/template";
/// Label on namespaces: ISTAT code of the administration.
pub const ISTAT: &str = "conme.venis.it/istat";
/// Label on namespaces: Belfiore (cadastral) code of the administration.
pub const BELFIORE: &str = "conme.venis.it/belfiore";
/// Label on namespaces: IPA code of the administration, in lower case.
pub const IPA: &str = "conme.venis.it/ipa";
/// Annotation on every child: hash of what the operator asked for.
pub const APPLIED: &str = "conme.venis.it/applied";
/// Annotation on namespaces: the host names that this namespace may use, separated by commas.
pub const HOSTNAMES: &str = "conme.venis.it/hostnames";
/// Annotation on a Deployment whose number of pods an autoscaler decides.
pub const AUTOSCALED: &str = "conme.venis.it/autoscaled";
/// Label on a namespace or Secret that no manifest asks for any more; its data is kept.
pub const ORPHANED: &str = "conme.venis.it/orphaned";
/// Annotation beside [`ORPHANED`]: when it became an orphan (RFC 3339).
pub const ORPHANED_AT: &str = "conme.venis.it/orphaned-at";
/// Annotation set by the SAD on a namespace to let a Comune take it over: the name of that Comune.
pub const ADOPT: &str = "conme.venis.it/adopt";
/// Annotation set by the SAD on a Comune, a namespace, a DataCenter or a definition that may be deleted: `<name>/<uid>`. Without
/// it the admission policies refuse.
pub const CONFIRM_DELETE: &str = "conme.venis.it/confirm-delete";
/// Annotation set by the SAD on a Comune: a database that has vanished may be created anew, empty. Its value names the
/// database and the time at which the lost one was provisioned, `protocollo@2026-11-22T09:31:42Z`, so that it never
/// speaks of a later loss; several are separated by commas.
pub const CONFIRM_RECREATE: &str = "conme.venis.it/confirm-recreate";
/// Label on namespaces of a Comune that is cordoned: its people may not write there.
pub const CORDONED: &str = "conme.venis.it/cordoned";
/// Label on namespaces of a Comune that is protected: they may not be deleted.
pub const PROTECTED: &str = "conme.venis.it/protected";
/// Annotation on namespaces: when their Comune was first admitted (RFC 3339). By it a Comune that is applied again
/// keeps its place among the others.
pub const ADMITTED_AT: &str = "conme.venis.it/admitted-at";
/// Annotation on namespaces: unique id of the Comune that they belong to; after it those that it had before it
/// was applied again, separated by commas, the latest first.
pub const COMUNE_UID: &str = "conme.venis.it/comune-uid";
/// Annotation on namespaces: kind of the administration, such as `Unione`.
pub const ENTITY_KIND: &str = "conme.venis.it/entity-kind";
/// Annotation on namespaces: official name of the administration.
pub const DISPLAY_NAME: &str = "conme.venis.it/display-name";
/// Finalizer of a Comune whose `deletionPolicy` is `Delete`, and of no other.
pub const DELETION: &str = "conme.venis.it/deletion";
/// Annotation set by the SAD on a Comune: credentials older than a time are replaced. Its value names the database and
/// the time, `protocollo@2026-11-22T09:31:42Z`, or `*` for all; several are separated by commas.
pub const ROTATE_CREDENTIALS: &str = "conme.venis.it/rotate-credentials";
/// Annotation on pods and binding Secrets whose credential has been replaced: its generation. It changes with nothing
/// else, so that pods restart for a new credential only.
pub const CREDENTIAL: &str = "conme.venis.it/credential";

/// The common label that says which tool manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`] on every child.
pub const MANAGER: &str = "conme";
/// Field manager of children.
pub const FIELD_MANAGER: &str = "conme";
/// Field manager of status.
pub const STATUS_MANAGER: &str = "conme-status";
