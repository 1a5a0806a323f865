//! From the names in a manifest to the names on a database server.

/// The longest identifier that PostgreSQL keeps, in bytes; longer ones are cut off silently by the server.
pub const MAX_IDENTIFIER_BYTES: usize = 63;

const OWNER_SUFFIX: &str = "__owner";
const APP_SUFFIX: &str = "__app";
const SECOND_SUFFIX: &str = "__app2";
/// What is left for the database's own name, so that the longer role suffix still fits.
const MAX_DATABASE_BYTES: usize = MAX_IDENTIFIER_BYTES - OWNER_SUFFIX.len();
/// Between a shortened name and its hash. A name that was not shortened never has three `_` in a row.
const HASH_SEPARATOR: &str = "___";
const HASH_CHARS: usize = 10;

/// A name that has no safe form on a database server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a usable name: lower-case letters, digits and single hyphens between them are allowed (\"protocollo\", \"san-dona\")"
)]
pub struct InvalidName(pub String);

/// One of the two logins of an application. One is in force; the other is closed, or still open for a while after a
/// rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Login {
    /// The application's role itself. Whatever the application makes belongs to it, also through the other login.
    First,
    /// A login that acts as the application's role. It exists from the first rotation on.
    Second,
}

impl Login {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// The names that belong to one database of one municipality on a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Names {
    database: String,
    owner: String,
    app: String,
    second: String,
}

impl Names {
    /// The names for database `database` of municipality `comune`.
    ///
    /// Different pairs give different names, and all of them fit into [`MAX_IDENTIFIER_BYTES`].
    ///
    /// # Errors
    /// [`InvalidName`] when one of the two is not lower-case letters, digits and single hyphens between them.
    pub fn new(comune: &str, database: &str) -> Result<Self, InvalidName> {
        let database = database_name(comune, database)?;
        Ok(Self {
            owner: format!("{database}{OWNER_SUFFIX}"),
            app: format!("{database}{APP_SUFFIX}"),
            second: format!("{database}{SECOND_SUFFIX}"),
            database,
        })
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The role that owns the database and its `public` schema; nobody can log in as it.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The application's role: it has the rights, and is the first of the two logins.
    pub fn app(&self) -> &str {
        &self.app
    }

    /// The role of a login.
    pub fn login(&self, login: Login) -> &str {
        match login {
            Login::First => &self.app,
            Login::Second => &self.second,
        }
    }

    /// The login of a role; none when the role is not one of the application's.
    pub fn login_of(&self, role: &str) -> Option<Login> {
        [Login::First, Login::Second].into_iter().find(|login| self.login(*login) == role)
    }
}

/// The name of the database on the server: `san-dona` and `protocollo` give `san_dona__protocollo`.
///
/// A hyphen becomes `_` and the two parts are joined by `__`, which cannot occur inside a part. Names that would be
/// too long are cut and end in a hash of the two full names.
///
/// # Errors
/// [`InvalidName`] when one of the two is not lower-case letters, digits and single hyphens between them.
pub fn database_name(comune: &str, database: &str) -> Result<String, InvalidName> {
    let mut name = format!("{}__{}", part(comune)?, part(database)?);
    // PostgreSQL reserves role names that begin with `pg_`. No other name begins with `_`.
    if name.starts_with("pg_") {
        name.insert(0, '_');
    }
    if name.len() <= MAX_DATABASE_BYTES {
        return Ok(name);
    }
    let hash = blake3::hash(format!("{comune}\0{database}").as_bytes()).to_hex();
    let kept = MAX_DATABASE_BYTES - HASH_SEPARATOR.len() - HASH_CHARS;
    // All bytes are ASCII (see `part`), so cutting cannot split a character.
    name.truncate(kept);
    Ok(format!("{}{HASH_SEPARATOR}{}", name.trim_end_matches('_'), &hash[..HASH_CHARS]))
}

fn part(name: &str) -> Result<String, InvalidName> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let refused = name.is_empty()
        || !name.bytes().all(allowed)
        || name.starts_with('-')
        || name.ends_with('-')
        || name.contains("--");
    if refused { Err(InvalidName(name.to_owned())) } else { Ok(name.replace('-', "_")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        // Few letters, so that near-collisions are common; long ones, so that the limit is crossed.
        prop_oneof![
            proptest::string::string_regex("[ab0]{1,3}(-[ab]{1,3}){0,2}").unwrap(),
            proptest::string::string_regex("(pg|a)(-[a-z]{1,9}){0,6}").unwrap(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn different_pairs_have_different_names(a in (name(), name()), b in (name(), name())) {
            let first = Names::new(&a.0, &a.1).unwrap();
            let second = Names::new(&b.0, &b.1).unwrap();
            prop_assert_eq!(a == b, first.database() == second.database());
            let roles = [&first, &second]
                .map(|names| [names.owner(), names.login(Login::First), names.login(Login::Second)])
                .concat();
            if a != b {
                for (i, one) in roles.iter().enumerate() {
                    prop_assert!(!roles[i + 1..].contains(one));
                }
            }
        }

        #[test]
        fn all_names_fit_and_are_plain(a in name(), b in name()) {
            let names = Names::new(&a, &b).unwrap();
            for one in [names.database(), names.owner(), names.app(), names.login(Login::Second)] {
                prop_assert!(one.len() <= MAX_IDENTIFIER_BYTES);
                prop_assert!(!one.starts_with("pg_"));
                prop_assert!(one.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            }
        }

        #[test]
        fn anything_else_is_refused_or_plain(a in ".*", b in ".*") {
            if let Ok(names) = Names::new(&a, &b) {
                prop_assert!(names.owner().len() <= MAX_IDENTIFIER_BYTES);
                prop_assert!(names.owner().is_ascii());
            }
        }
    }

    #[test]
    fn examples() {
        let names = Names::new("san-dona", "protocollo").unwrap();
        assert_eq!(names.database(), "san_dona__protocollo");
        assert_eq!(names.owner(), "san_dona__protocollo__owner");
        assert_eq!(names.app(), "san_dona__protocollo__app");
        assert_eq!(database_name("pg", "x").unwrap(), "_pg__x");
        assert_eq!(database_name("pg-x", "y").unwrap(), "_pg_x__y");
        assert_eq!(database_name("pgx", "y").unwrap(), "pgx__y");
        let long = database_name("cavallino-treporti", &"a-very-long-name".repeat(5)).unwrap();
        assert!((50..=56).contains(&long.len()));
        assert!(long.starts_with("cavallino_treporti__a_very_long_name"));
    }

    #[test]
    fn names_that_differ_only_beyond_the_limit() {
        let long = "a".repeat(60);
        assert_ne!(database_name(&long, "x").unwrap(), database_name(&long, "y").unwrap());
        // The border between the two parts counts, also where it is cut off.
        let one = database_name(&"a".repeat(50), &"a".repeat(20)).unwrap();
        let two = database_name(&"a".repeat(51), &"a".repeat(19)).unwrap();
        assert_ne!(one, two);
    }

    #[test]
    fn bad_names() {
        for bad in ["", "-a", "a-", "a--b", "A", "a_b", "a.b", "à", "a b", "a\"b", "a\0"] {
            assert_eq!(Names::new(bad, "x").unwrap_err(), InvalidName(bad.to_owned()));
            assert!(Names::new("x", bad).is_err());
        }
    }
}
