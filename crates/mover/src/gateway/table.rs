//! Who is where: the file with sites and routes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::core::calendar::Calendar;
use crate::identity::{Identity, IdentityError, Role, name};
use crate::net::tls;

/// A table that is longer is not one.
const MAX_BYTES: u64 = 4 << 20;
/// How much more one server may count than another.
const MAX_WEIGHT: u32 = 1000;

/// Sites and routes, checked.
#[derive(Debug)]
pub struct Table {
    sites: BTreeMap<String, Site>,
    routes: BTreeMap<String, Route>,
    leases: BTreeMap<String, String>,
    fingerprint: blake3::Hash,
}

/// A municipality, with its line.
#[derive(Debug)]
pub struct Site {
    /// The line by the week.
    pub line: Calendar,
    /// What is needed to be asked for leases; without it, servers are held to their share all the same.
    pub leases: Option<Arc<rustls::ServerConfig>>,
}

/// Where the bearer of a name is led.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Whose it is.
    pub site: String,
    /// Where the receiver is.
    pub address: SocketAddr,
    /// How much it counts when the line is divided.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    sites: BTreeMap<String, WrittenSite>,
    #[serde(default)]
    routes: BTreeMap<String, Route>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSite {
    #[serde(default)]
    identity: Option<PathBuf>,
    #[serde(default)]
    line: Option<Calendar>,
}

/// A table that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadTable {
    /// It cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// It is too long.
    #[error("{0} is longer than {MAX_BYTES} bytes: it is no table of routes")]
    Long(PathBuf),
    /// It cannot be understood.
    #[error("{path}: {error}")]
    Form {
        /// Which file.
        path: PathBuf,
        /// Why, and where.
        error: String,
    },
    /// A route leads to a site that is not there.
    #[error("the route {route} is of the site {site}, which is not under `sites`")]
    NoSite {
        /// Which route.
        route: String,
        /// Its site.
        site: String,
    },
    /// A name that no client can ask for.
    #[error("{0:?} is no name for a route: use what `conme-mover ca receiver` has put into about.json")]
    Name(String),
    /// A weight that means nothing.
    #[error("the route {0} has a weight that is not between 1 and {MAX_WEIGHT}")]
    Weight(String),
    /// One name for two things.
    #[error("{0} is the name of a route and of a site's leases, or of two sites' leases")]
    Twice(String),
    /// The identity of a site cannot be used.
    #[error("the identity of the site {site}: {error}")]
    Identity {
        /// Which site.
        site: String,
        /// Why.
        #[source]
        error: IdentityError,
    },
    /// It is the identity of something else.
    #[error("the identity of the site {0} is not one for a gateway: make it with `conme-mover ca gateway`")]
    NotOurs(String),
}

impl Table {
    /// Reads a table with all that it names.
    ///
    /// # Errors
    /// When anything in it cannot be used.
    pub fn load(path: &Path) -> Result<Self, BadTable> {
        let file = |error| BadTable::File { path: path.into(), error };
        if std::fs::metadata(path).map_err(file)?.len() > MAX_BYTES {
            return Err(BadTable::Long(path.into()));
        }
        let text = std::fs::read_to_string(path).map_err(file)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        Self::read(&text, dir, path)
    }

    fn read(text: &str, dir: &Path, path: &Path) -> Result<Self, BadTable> {
        let written: Written = serde_saphyr::from_str(text)
            .map_err(|error| BadTable::Form { path: path.into(), error: error.to_string() })?;
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(text.as_bytes());
        for (called, route) in &written.routes {
            if !is_route_name(called) {
                return Err(BadTable::Name(called.clone()));
            }
            if !(1..=MAX_WEIGHT).contains(&route.weight) {
                return Err(BadTable::Weight(called.clone()));
            }
            if !written.sites.contains_key(&route.site) {
                return Err(BadTable::NoSite { route: called.clone(), site: route.site.clone() });
            }
        }
        let (mut sites, mut leases) = (BTreeMap::new(), BTreeMap::new());
        for (site, written_site) in written.sites {
            let wrong = |error| BadTable::Identity { site: site.clone(), error };
            name(&site).map_err(wrong)?;
            let mut config = None;
            if let Some(identity) = &written_site.identity {
                let identity = Identity::load(&dir.join(identity)).map_err(wrong)?;
                if identity.about.role != Role::Gateway {
                    return Err(BadTable::NotOurs(site));
                }
                fingerprint.update(identity.certificate_pem.as_bytes());
                let called = identity.about.name.clone();
                let taken = written.routes.contains_key(&called);
                if leases.insert(called.clone(), site.clone()).is_some() || taken {
                    return Err(BadTable::Twice(called));
                }
                config = Some(tls::leases(&identity).map_err(wrong)?);
            }
            sites.insert(site, Site { line: written_site.line.unwrap_or_default(), leases: config });
        }
        Ok(Self { sites, routes: written.routes, leases, fingerprint: fingerprint.finalize() })
    }

    /// A route by its name.
    pub fn route(&self, name: &str) -> Option<&Route> {
        self.routes.get(name)
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = (&String, &Route)> {
        self.routes.iter()
    }

    /// All sites.
    pub fn sites(&self) -> impl Iterator<Item = (&String, &Site)> {
        self.sites.iter()
    }

    /// A site by its name.
    pub fn site(&self, name: &str) -> Option<&Site> {
        self.sites.get(name)
    }

    /// The site whose leases are asked for by this name.
    pub fn leases_of(&self, name: &str) -> Option<&str> {
        self.leases.get(name).map(String::as_str)
    }

    /// Whether both say the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

fn is_route_name(name: &str) -> bool {
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_');
    (1..=253).contains(&name.len()) && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Table, BadTable> {
        Table::read(text, Path::new("/nowhere"), Path::new("table.yaml"))
    }

    const GOOD: &str = "
sites:
  torre-di-mosto:
    line:
      cap: 100 Mbit/s
      hours:
        - {days: [mon, tue], from: '07:30', to: '19:00', cap: 10 Mbit/s}
routes:
  4f3a.mover.invalid: {site: torre-di-mosto, address: '10.0.0.7:7443', weight: 3}
";

    #[test]
    fn a_table_is_read_whole_or_not_at_all() {
        let table = read(GOOD).unwrap();
        assert_eq!(table.route("4f3a.mover.invalid").unwrap().weight, 3);
        assert!(table.is_same(&read(GOOD).unwrap()));
        for (from, to, words) in [
            ("site: torre-di-mosto", "site: elsewhere", "not under `sites`"),
            ("weight: 3", "weight: 0", "between 1 and"),
            ("weight: 3", "wait: 3", "wait"),
            ("'10.0.0.7:7443'", "'receiver:7443'", "address"),
            ("4f3a.mover", "4F3A.mover", "no name for a route"),
            ("10 Mbit/s}", "10 MB/s}", "is no rate"),
            ("line:", "identity: gone\n    line:", "gone"),
            ("'19:00'", "'25:00'", "25:00"),
        ] {
            let bad = GOOD.replace(from, to);
            assert_ne!(bad, GOOD);
            let error = read(&bad).unwrap_err().to_string();
            assert!(error.contains(words), "{to}: {error}");
        }
    }
}
