//! Reads the state of one database and of the server around it.

use std::collections::BTreeMap;

use serde::Deserialize;
use tokio_postgres::{error::SqlState, types::Type};

use super::connect::Session;
use crate::{Desired, Login, Names, Problem};

/// What was seen on a server about one database.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Observed {
    /// The server's version in words.
    pub version: String,
    /// The server's version as a number: 150018 is 15.18.
    pub version_number: i32,
    /// The server's own identity, decimal; absent when the administrator may not ask for it.
    pub system_identifier: Option<String>,
    /// The roles of this database that exist, by name.
    pub roles: BTreeMap<String, SeenRole>,
    /// The database, if it exists.
    pub database: Option<SeenDatabase>,
    /// Extensions that can be installed, of those that are declared or allowed. Read only when one is missing.
    #[serde(default)]
    pub available: BTreeMap<String, Available>,
}

/// A role as seen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SeenRole {
    /// Its comment.
    pub comment: Option<String>,
    /// `LOGIN`
    pub login: bool,
    /// `SUPERUSER`
    pub superuser: bool,
    /// `CREATEDB`
    pub create_database: bool,
    /// `CREATEROLE`
    pub create_role: bool,
    /// `REPLICATION`
    pub replication: bool,
    /// `BYPASSRLS`
    pub bypass_rls: bool,
    /// `CONNECTION LIMIT`; -1 is none.
    pub connection_limit: i32,
    /// Its password has an end date.
    pub expires: bool,
    /// Roles that it is a member of.
    pub member_of: Vec<Membership>,
    /// Roles that are members of it, without superusers and the administrator itself.
    pub members: Vec<Membership>,
    /// Settings of its sessions in all databases, as `name=value`.
    #[serde(default)]
    pub settings: Vec<String>,
    /// Settings of its sessions in this database only, as `name=value`; they count more.
    #[serde(default)]
    pub settings_here: Vec<String>,
    /// Its sessions in this database.
    #[serde(default)]
    pub sessions: u32,
}

/// The other end of a membership and who granted it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Membership {
    /// The other role.
    pub role: String,
    /// Who granted it.
    pub grantor: String,
    /// It gives the rights of the group, may be acted as, and may not be passed on.
    #[serde(default)]
    pub plain: bool,
}

/// A database as seen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SeenDatabase {
    /// Its owner.
    pub owner: String,
    /// Its comment.
    pub comment: Option<String>,
    /// `CONNECTION LIMIT`; -1 is none, -2 marks a database that was half dropped.
    pub connection_limit: i32,
    /// `ALLOW_CONNECTIONS`
    pub allows_connections: bool,
    /// `IS_TEMPLATE`
    pub template: bool,
    /// Size on disk, in bytes.
    pub size_bytes: u64,
    /// Privileges on it, with the defaults spelled out.
    pub grants: Vec<Grant>,
    /// Settings of all its sessions, as `name=value`.
    #[serde(default)]
    pub settings: Vec<String>,
    /// A table of it is being rewritten, as by `VACUUM FULL`.
    #[serde(default)]
    pub rewriting: bool,
    /// What is inside; absent when it could not be looked at.
    #[serde(default)]
    pub inside: Option<Inside>,
}

/// One privilege of one role.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Grant {
    /// The role; absent for `PUBLIC`, which is every role.
    pub grantee: Option<String>,
    /// The comment of that role.
    pub grantee_comment: Option<String>,
    /// For example `CONNECT`.
    pub privilege: String,
    /// It may be passed on.
    pub grantable: bool,
}

/// What is inside a database.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Inside {
    /// Installed extensions, each with those that it needs.
    pub extensions: BTreeMap<String, Vec<String>>,
    /// The schema `public`, if it exists.
    pub public: Option<SeenSchema>,
    /// The application's second login owns something, which its role should own.
    #[serde(default)]
    pub strays: bool,
}

/// A schema as seen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SeenSchema {
    /// Its owner.
    pub owner: String,
    /// Privileges on it, with the defaults spelled out.
    pub grants: Vec<Grant>,
}

/// An extension whose files are on the server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Available {
    /// The schema that it insists on.
    pub schema: Option<String>,
    /// Extensions that it needs.
    pub requires: Vec<String>,
}

// One statement, one round trip, one consistent picture; the answer has the form of `Observed`.
const SERVER: &str = "
select json_build_object(
  'version', current_setting('server_version'),
  'version_number', current_setting('server_version_num')::int,
  'roles', coalesce((select json_object_agg(r.rolname, json_build_object(
      'comment', shobj_description(r.oid, 'pg_authid'),
      'login', r.rolcanlogin, 'superuser', r.rolsuper, 'create_database', r.rolcreatedb,
      'create_role', r.rolcreaterole, 'replication', r.rolreplication, 'bypass_rls', r.rolbypassrls,
      'connection_limit', r.rolconnlimit,
      'expires', r.rolvaliduntil is not null and r.rolvaliduntil <> 'infinity',
      'member_of', coalesce((
        select json_agg(json_build_object('role', g.rolname, 'grantor', pg_get_userbyid(m.grantor), 'plain', not m.admin_option
            and coalesce((to_jsonb(m)->>'inherit_option')::bool, true) and coalesce((to_jsonb(m)->>'set_option')::bool, true)) order by g.rolname, m.grantor)
        from pg_auth_members m join pg_roles g on g.oid = m.roleid where m.member = r.oid), '[]'),
      'members', coalesce((
        select json_agg(json_build_object('role', u.rolname, 'grantor', pg_get_userbyid(m.grantor), 'plain', not m.admin_option
            and coalesce((to_jsonb(m)->>'inherit_option')::bool, true) and coalesce((to_jsonb(m)->>'set_option')::bool, true)) order by u.rolname, m.grantor)
        from pg_auth_members m join pg_roles u on u.oid = m.member
        where m.roleid = r.oid and not u.rolsuper and u.rolname <> current_user), '[]'),
      'settings', coalesce((select to_json(s.setconfig) from pg_db_role_setting s where s.setrole = r.oid and s.setdatabase = 0), '[]'),
      'settings_here', coalesce((
        select to_json(s.setconfig) from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase
        where s.setrole = r.oid and d.datname = $1), '[]'),
      'sessions', (select count(*) from pg_stat_activity a where a.usename = r.rolname and a.datname = $1)))
    from pg_roles r where r.rolname in ($2, $3, $4)), '{}'),
  'database', (select json_build_object(
      'owner', pg_get_userbyid(d.datdba), 'comment', shobj_description(d.oid, 'pg_database'),
      'connection_limit', d.datconnlimit, 'allows_connections', d.datallowconn, 'template', d.datistemplate,
      'size_bytes', case when d.datconnlimit = -2 then 0 else pg_database_size(d.oid) end,
      'grants', coalesce((
        select json_agg(json_build_object(
          'grantee', case when a.grantee <> 0 then pg_get_userbyid(a.grantee) end,
          'grantee_comment', shobj_description(a.grantee, 'pg_authid'),
          'privilege', a.privilege_type, 'grantable', a.is_grantable))
        from aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a), '[]'),
      'settings', coalesce((select to_json(s.setconfig) from pg_db_role_setting s where s.setrole = 0 and s.setdatabase = d.oid), '[]'),
      'rewriting', exists(select from pg_stat_progress_cluster p where p.datid = d.oid))
    from pg_database d where d.datname = $1))::text";

const INSIDE: &str = "
select json_build_object(
  'extensions', coalesce((select json_object_agg(e.extname, coalesce((
      select json_agg(x.extname order by x.extname)
      from pg_depend p join pg_extension x on x.oid = p.refobjid
      where p.classid = 'pg_extension'::regclass and p.objid = e.oid and p.refclassid = 'pg_extension'::regclass), '[]'))
    from pg_extension e), '{}'),
  'strays', exists(
    select from pg_shdepend s join pg_database d on d.oid = s.dbid
    where d.datname = current_database() and s.deptype = 'o' and s.refclassid = 'pg_authid'::regclass
      and s.refobjid = (select r.oid from pg_roles r where r.rolname = $1)),
  'public', (select json_build_object(
      'owner', pg_get_userbyid(n.nspowner),
      'grants', coalesce((
        select json_agg(json_build_object(
          'grantee', case when a.grantee <> 0 then pg_get_userbyid(a.grantee) end,
          'grantee_comment', shobj_description(a.grantee, 'pg_authid'),
          'privilege', a.privilege_type, 'grantable', a.is_grantable))
        from aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a), '[]'))
    from pg_namespace n where n.nspname = 'public'))::text";

const AVAILABLE: &str = "
select coalesce(json_object_agg(v.name, json_build_object('schema', v.schema, 'requires', coalesce(to_json(v.requires), '[]'))), '{}')::text
from pg_available_extensions e
join pg_available_extension_versions v on v.name = e.name and v.version = e.default_version
where e.name = any($1)";

/// Looks at everything about one database. `inside` is a session in the database itself, when there is one.
///
/// # Errors
/// As any statement on the server.
pub async fn observe(admin: &Session, names: &Names) -> Result<Observed, Problem> {
    let names = [names.database(), names.owner(), names.login(Login::First), names.login(Login::Second)];
    let params = names.each_ref().map(|name| (name as _, Type::TEXT));
    let (seen, identifier) = tokio::join!(admin.json(SERVER, &params), system_identifier(admin));
    let mut seen: Observed = seen?;
    seen.system_identifier = identifier?;
    Ok(seen)
}

/// Looks inside a database, through a session in it.
///
/// # Errors
/// As any statement on the server.
pub async fn observe_inside(target: &Session, names: &Names) -> Result<Inside, Problem> {
    target.json(INSIDE, &[(&names.login(Login::Second), Type::TEXT)]).await
}

/// Looks for the extensions that can be installed, of those that are declared or allowed.
///
/// # Errors
/// As any statement on the server.
pub async fn observe_available(
    admin: &Session,
    desired: &Desired,
) -> Result<BTreeMap<String, Available>, Problem> {
    let names: Vec<&str> =
        desired.extensions.union(&desired.allowed_extensions).map(String::as_str).collect();
    admin.json(AVAILABLE, &[(&names, Type::TEXT_ARRAY)]).await
}

/// Whether the answer of [`observe_available`] is needed for a plan.
pub(super) fn needs_available(desired: &Desired, observed: &Observed) -> bool {
    let inside = observed.database.as_ref().and_then(|database| database.inside.as_ref());
    desired.extensions.iter().any(|name| inside.is_none_or(|inside| !inside.extensions.contains_key(name)))
}

async fn system_identifier(admin: &Session) -> Result<Option<String>, Problem> {
    // A statement of its own: where the administrator is no superuser the server may refuse it, and the rest goes on.
    match admin.text("select system_identifier::text from pg_control_system()", &[]).await {
        Ok(identifier) => Ok(Some(identifier)),
        Err(Problem::Server { sqlstate, .. }) if sqlstate == SqlState::INSUFFICIENT_PRIVILEGE.code() => {
            Ok(None)
        }
        Err(problem) => Err(problem),
    }
}
